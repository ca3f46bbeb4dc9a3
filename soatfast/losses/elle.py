"""ELLE (Abad Rocamora et al., ICLR 2024): FGSM, and a loss that is linear between random points of the ball."""

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
from soatfast.gradients.passes import Passes
from soatfast.gradients.precision import widened
from soatfast.losses.base import Loss, Step, mean
from soatfast.losses.noise import check_linf, into_box, uniform
from soatfast.ops.arguments import Bounds, as_column, check_number, to_multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class ELLE(Loss):
    r"""FGSM training, and a loss that is linear between two random points of the ball.

        mean_i [ l_i(x'_i) + strength (l_i(c_i) - (1 - t_i) l_i(a_i) - t_i l_i(b_i))^2 ],   c = (1 - t) a + t b
        a, b = x + eps U (two draws, U uniform in (-1, 1) per entry),   t uniform in [0, 1) per sample
        x' = clamp(x + clip(eps (noise U + step sgn(g)), -eps, eps)),   g at x + noise eps U

    What GradAlign asks of gradients, asked of three losses instead: no double backward. a, b, c are not clamped, as in
    the authors' code. (Paper, Equation 4.)

    Args:
        eps: radius of the ball; a number or a tensor of shape () or (B,).
        p: math.inf, the only one.
        bounds: the box of valid inputs, of x'.
        noise, step: half width of the start and length of the step in units of eps; >= 0 and > 0.
        strength: lambda, >= 0. The default is ours: the paper tunes it, and its values could not be read.
        mode, engine: of the first pass; see :class:`~soatfast.losses.NFGSM`.
        generator: random numbers; on x's device.

    Raises:
        TypeError, ValueError: a field or the batch is wrong, as the message says; see Attack for the batch.

    Passes: 1 forward and 1 backward to the input; then 1 forward on the batch, 1 on the three stacked points, and 1
    backward to the parameters through both.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> loss = ELLE(eps=0.1)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2])).backward()
    >>> loss.passes(3).forward_samples, loss.passes(3).backward_parameters_samples
    (15, 12)
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    noise: float = 0.0
    step: float = 1.0
    strength: float = 1000.0
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
        check_number(self.strength, "strength", above=False)

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_batch(x, y, self.bounds, self._labels)
        if len(x) == 0:
            return self._trained(model, x, y)
        with (
            InputGradient(model, mode=self.mode, engine=self.engine, **self._asked) as oracle,
            widened(oracle, x) as wide,
        ):
            eps = to_multiply(self.eps, "eps", wide)
            start = self.noise * uniform(wide, self.generator)
            u = start + self.step * oracle.gradient(wide + eps * start, y).sign()
            x_adv = into_box(wide + eps * u.clamp(-1, 1), self.bounds)
        output = self._logits(model, x_adv.to(x.dtype), y)
        a, b = (wide + eps * uniform(wide, self.generator) for _ in range(2))
        t = torch.empty(len(x), dtype=wide.dtype, device=x.device).uniform_(generator=self.generator)
        c = torch.lerp(a, b, as_column(t, wide))
        at_a, at_b, at_c = self._sample_losses(model, torch.cat([a, b, c]).to(x.dtype), y.repeat(3)).chunk(3)
        bend = (at_c - torch.lerp(at_a, at_b, t.to(at_a))).square()
        return mean(self._values(output, y) + self.strength * bend), output

    def passes(self, batch: int = 1) -> Passes:
        return Passes(3, 1, 1, 5 * batch, batch, 4 * batch)

    def with_eps(self, eps: float | Tensor) -> ELLE:
        return dataclasses.replace(self, eps=eps)
