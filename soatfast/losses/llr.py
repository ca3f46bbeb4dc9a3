"""LLR, the local linearity regulariser (Qin et al. 2019)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks import PGD
from soatfast.attacks.region import check_numbers
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes
from soatfast.losses.base import fields_of
from soatfast.losses.regulariser import Regularised, gradient_of
from soatfast.ops.arguments import Bounds, as_column, check_number, check_radius, check_steps


@dataclass(frozen=True, kw_only=True, eq=False)
class LLR(Regularised):
    r"""Local linearity regularisation: penalises how far the loss is from its tangent in the ball.

        mean_i [ l_i(x) + strength gamma_i + mu |<v_i, g_i(x)>| ],   gamma(v) = |l(x + v) - l(x) - <v, g(x)>|

    v seeks the largest gamma in the ball, where the loss is furthest from its tangent, by ``steps`` steps

        v <- project(v + step_size step_p( sgn(l(x + v) - l(x) - <v, g>) (g(x + v) - g(x)) ))

    from a random point: at v = 0 gamma and its gradient are 0. The authors take these steps by Adam (0.1); signed steps
    as in PGD do the same here (p = 2, 1: PGD's steps of these norms).

    Differentiated by the parameters: l(x + v), l(x) and g(x). Held fixed: v.

    Args:
        strength: weight of gamma, >= 0.
        mu: weight of the linear part |<v, g>|, >= 0.
        eps, p, bounds: the ball and the box of x + v; p is 1, 2 or math.inf.
        steps: steps of v.
        step_size: in input units; None: eps / 4.
        mode: see :class:`~soatfast.losses.regulariser.Regularised`; of the steps as well.
        generator: random numbers of the first v; on x's device.

    Defaults: the authors' code for CIFAR-10, whose weights 2 (loss), 4 and 4 * 0.3 are strength 2 and mu 0.6 for a loss
    of weight 1; eps 8/255, ramped up from 0; 10 steps. Needs float32: half precision and autocast are refused.

    Passes, M steps: M + 2 forwards, M + 1 backwards to the input and 1 to the parameters; mode "eval" 1 forward more,
    for the training loss.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = LLR(eps=0.1, steps=5, mode="keep")
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (7, 6, 1)
    """

    strength: float = 2.0
    mu: float = 0.6
    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    steps: int = 10
    step_size: float | Tensor | None = None
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.eps, self.bounds, "LLR")
        if self.p not in (1, 2, math.inf):
            raise ValueError(f"p must be 1, 2 or math.inf for LLR, got {self.p!r}")
        _ = self._start  # making the attack checks eps and bounds
        check_number(self.strength, "strength", above=False)
        check_number(self.mu, "mu", above=False)
        check_steps(self.steps)
        if self.step_size is not None:
            check_radius(self.step_size, "step_size")

    @property
    def _start(self) -> PGD:
        """Its random start is the first v."""
        return fields_of(PGD, self)

    def _regulariser(self, oracle: InputGradient, x: Tensor, y: Tensor, losses: Tensor) -> Tensor:
        g = gradient_of(losses, x)
        moved = self.furthest(oracle, x.detach(), y, losses.detach(), g.detach())
        linear = ((moved - x.detach()) * g).flatten(1).sum(1)
        gamma = (self._sample_losses(oracle.model, moved, y) - losses - linear).abs()
        return self.strength * gamma + self.mu * linear.abs()

    def furthest(self, oracle: InputGradient, x: Tensor, y: Tensor, losses: Tensor, g: Tensor) -> Tensor:
        """x + v."""
        alpha = self.eps / 4 if self.step_size is None else self.step_size
        moved = self._start._start(x)
        for _ in range(self.steps):
            loss, gradient = oracle(moved, y)
            remainder = loss - losses - ((moved - x) * g).flatten(1).sum(1)
            ascent = as_column(remainder.sign().to(x.dtype), x) * (gradient - g)
            moved = ops.pgd_step(moved, ascent, x, self.p, self.eps, alpha, bounds=self.bounds, exact=self.p == 1)
        return moved

    def passes(self, batch: int = 1) -> Passes:
        return self._passes(batch, attached=2, gradients=1, steps=self.steps)
