"""N-FGSM (de Jorge et al., NeurIPS 2022, arXiv 2202.01181): one full step from a start of strong noise, not clipped."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from soatfast.attacks.base import Attack
from soatfast.attacks.region import check_numbers
from soatfast.gradients.checks import check_batch
from soatfast.gradients.engine import Name
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import widened
from soatfast.losses.base import Loss, Step
from soatfast.losses.noise import check_linf, into_box, uniform
from soatfast.ops.arguments import Bounds, check_number, to_multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class NFGSM(Loss):
    r"""Adversarial training with one full step from a start of strong noise: mean_i l_i(x'_i).

        z = clamp(x + noise eps U),   U uniform in (-1, 1) per entry
        x' = clamp(z + step eps sgn(g(z)))

    x' is clamped to the box and not to the ball: it can be (noise + step) eps away from x. That is the method, so it is
    a loss and no attack. (Paper, Algorithm 1.)

    Args:
        eps: radius that the model is trained for; a number or a tensor of shape () or (B,).
        p: math.inf, the only one.
        bounds: the box of valid inputs.
        noise: half width of the start in units of eps, >= 0.
        step: length of the step in units of eps, > 0.
        mode: of the first pass: "keep" (as the training forward sees the model; the authors'), "eval" or "train".
            The training forward alone updates running statistics.
        engine: of the first pass; see :class:`~soatfast.attacks.Attack`.
        generator: random numbers of U; on x's device.

    Defaults: the authors' for CIFAR-10, eps = 8/255, noise 2, step 1.

    Raises:
        TypeError, ValueError: a field or the batch is wrong, as the message says; see Attack for the batch.

    Passes: 1 forward and 1 backward to the input, then 1 forward and 1 backward to the parameters.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = NFGSM(eps=0.1)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (2, 1, 1)
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    noise: float = 2.0
    step: float = 1.0
    mode: Mode = "keep"
    engine: Name = "eager"
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        Attack(eps=self.eps, bounds=self.bounds, mode=self.mode, engine=self.engine)  # has the checks of these
        check_linf(self)
        check_numbers(self.eps, self.bounds, type(self).__name__)
        check_number(self.noise, "noise", above=False)
        check_number(self.step, "step")

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        return self._trained(model, self.perturb(model, x, y), y)

    def perturb(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x', like x, without gradient: for a script that has a loss of its own. 1 forward, 1 backward to the input."""
        check_batch(x, y, self.bounds, self._labels)
        if len(x) == 0:
            return x.detach().clone()
        with (
            InputGradient(model, mode=self.mode, engine=self.engine, **self._asked) as oracle,
            widened(oracle, x) as wide,
        ):
            eps = to_multiply(self.eps, "eps", wide)
            start = into_box(wide + self.noise * eps * uniform(wide, self.generator), self.bounds)
            x_adv = into_box(start + self.step * eps * oracle.gradient(start, y).sign(), self.bounds)
        return x_adv.to(x.dtype)

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=2, backward_input=1, backward_parameters=1)

    def with_eps(self, eps: float | Tensor) -> NFGSM:
        return dataclasses.replace(self, eps=eps)
