"""GradAlign (Andriushchenko and Flammarion, NeurIPS 2020, arXiv 2007.02617): FGSM, and input gradients that agree."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from soatfast.attacks.base import Attack
from soatfast.attacks.region import check_numbers
from soatfast.gradients.checks import check_batch
from soatfast.gradients.kernels import twice_differentiable
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes
from soatfast.gradients.state import check_second_derivative
from soatfast.losses.base import Loss, Step, mean
from soatfast.losses.noise import check_linf, into_box, uniform
from soatfast.losses.regulariser import attached_gradient, norms
from soatfast.ops.arguments import Bounds, check_number, to_multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class GradAlign(Loss):
    r"""FGSM training, and input gradients that point the same way at x and at a random point near it.

        mean_i [ l_i(x'_i) + strength (1 - cos(g(x_i), g(x_i + eta_i))) ],   eta uniform in (-eps, eps) per entry
        x' = clamp(x + clip(step eps sgn(g(x)), -eps, eps))

    The cosine is differentiated by the parameters through both gradients, by double backward: the model needs
    twice-differentiable operations. x' carries no gradient. A gradient that is 0 counts as cosine 0, with no slope.
    (Paper, Equation 6; FGSM without a random start, as its results.)

    Args:
        eps: radius of the ball; a number or a tensor of shape () or (B,).
        p: math.inf, the only one.
        bounds: the box of valid inputs, of x'; x + eta is not clamped, as in the authors' code.
        step: length of the step in units of eps, > 0.
        strength: lambda, >= 0.
        generator: random numbers of eta; on x's device.

    All passes see the model as the caller has it; the training forward alone updates running statistics.
    Defaults: the authors' at 8/255 on CIFAR-10, strength 0.2.

    Raises:
        TypeError, ValueError: a field or the batch is wrong, as the message says; see Attack for the batch.

    Passes: 3 forwards, 2 backwards to the input, and 1 backward to the parameters through all of them.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> loss = GradAlign(eps=0.1)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (3, 2, 1)
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    step: float = 1.0
    strength: float = 0.2
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        Attack(eps=self.eps, bounds=self.bounds)  # has the checks of these
        check_linf(self)
        check_numbers(self.eps, self.bounds, type(self).__name__)
        check_number(self.step, "step")
        check_number(self.strength, "strength", above=False)

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_batch(x, y, self.bounds, self._labels)
        check_second_derivative("GradAlign", model)
        if len(x) == 0:
            return self._trained(model, x, y)
        x = x.detach()
        eps = to_multiply(self.eps, "eps", x)
        with (
            InputGradient(model, mode="keep", freeze=False, **self._asked) as oracle,
            torch.enable_grad(),
            twice_differentiable(),
        ):
            g = attached_gradient(self, oracle.model, x, y)
            other = attached_gradient(self, oracle.model, x + eps * uniform(x, self.generator), y)
        x_adv = into_box(x + min(self.step, 1) * eps * g.detach().sign(), self.bounds)
        output = self._logits(model, x_adv, y)
        return mean(self._values(output, y) + self.strength * (1 - cosines(g, other))), output

    def passes(self, batch: int = 1) -> Passes:
        return Passes(3, 2, 1, 3 * batch, 2 * batch, 3 * batch)

    def with_eps(self, eps: float | Tensor) -> GradAlign:
        return dataclasses.replace(self, eps=eps)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """cos(a_i, b_i) (B,), differentiable; 0 with slope 0 where one of them is 0. Tiny gradients do not underflow."""
    units = []
    for t in (a, b):
        rows = t.flatten(1)
        size = norms(rows, 2)
        units.append(rows / torch.where(size > 0, size, 1).unsqueeze(1))
    return (units[0] * units[1]).sum(1)
