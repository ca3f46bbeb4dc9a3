"""HAAT: PGD with a second step along the Hessian's dominant eigenvector, from power iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import check_step_size
from soatfast.attacks.second_order import SecondOrderAttack
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import as_column, check_number, check_radius, check_steps, to_multiply
from soatfast.solvers.hessian import unit_step

_PAPER_H = 1e-6


@dataclass(frozen=True, kw_only=True, eq=False)
class HAAT(SecondOrderAttack):
    r"""Each step moves along the gradient's sign and along the dominant eigenvector u of the Hessian, p = inf.

        u_0 ~ N(0, I) normalised;   u <- H u / ||H u||_2, ``power`` times;   H u = [g(x_t + h u) - g(x_t)] / h
        x_{t+1} = project(x_t + alpha sgn(g) + alpha u / ||u||_inf)

    variant "resolved": u and -u are both eigenvectors, so u is turned to ascend (<g, u> >= 0), and it is left out
    where <u, H u> < 0, where the loss bends down along it. "paper": neither, the second step as printed,
    eps sqrt(D) u / ||u||_inf, which the projection cuts almost everywhere, and h = 1e-6, which in float32 does not
    change most entries of x at all; for study. "literal": as "paper", and x moves inside the power loop, as Algorithm 1
    is printed: after every power step, with the gradient at the point just reached.

    Args:
        steps: outer steps.
        power: power iterations of each.
        step_size: alpha in input units, the report's w1 eps; None: eps / 4.
        w2: length of the second step in input units; None: alpha ("resolved") or eps sqrt(D).
        h: finite-difference step along unit vectors; None: 2e-5 sqrt(D) in float32, 1e-6 sqrt(D) in float64.
        variant: "resolved", "paper" or "literal".
        random_start: start at a uniform point of the ball in place of x.
        generator: random numbers of u_0 and of the start; on x's device.

    Defaults: the report's (10 steps, 5 power iterations, eps 8/255, alpha eps/4); its code takes 7 steps.

    Passes: steps (1 + power) forwards and as many backwards to the input; "literal" 2 steps power.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([1, 2])
    >>> attack = HAAT(eps=0.1, steps=3, power=2)
    >>> round(float((attack(model, x, y) - x).abs().max()), 4), attack.passes().forward
    (0.1, 9)
    """

    steps: int = 10
    power: int = 5
    step_size: float | Tensor | None = None
    h: float | None = None
    w2: float | Tensor | None = None
    variant: Literal["resolved", "paper", "literal"] = "resolved"
    random_start: bool = False
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    watchable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p != math.inf:
            raise ValueError(f"p must be math.inf for HAAT, got {self.p!r}")
        check_steps(self.steps)
        check_steps(self.power, "power")
        check_step_size(self)
        if self.w2 is not None:
            check_radius(self.w2, "w2")
        if self.variant not in ("resolved", "paper", "literal"):
            raise ValueError(f'variant must be "resolved", "paper" or "literal", got {self.variant!r}')
        if self.h is not None:
            check_number(self.h, "h")

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        size = x[0].numel()
        h = self.h
        if h is None:
            h = unit_step(x.dtype, size) if self.variant == "resolved" else _PAPER_H
        alpha = self.eps / 4 if self.step_size is None else self.step_size
        x_t = x
        if self.random_start:
            noise = self._free(torch.empty_like(x).uniform_(-1, 1, generator=self.generator))
            x_t = (x + to_multiply(self.eps, "eps", x) * noise).clamp_(*self.bounds)  # type: ignore[arg-type]
        if self.variant == "literal":
            return self._literal(oracle, x, y, x_t, None if self.random_start else g0, h, alpha)
        for t in range(self.steps):
            g = g0 if t == 0 and g0 is not None and not self.random_start else oracle.gradient(x_t, y)
            u, rayleigh = self._eigenvector(oracle, x_t, y, g, h)
            moved = x_t + self._second_step(g, u, rayleigh, alpha, size)
            x_t = ops.pgd_step(moved, g, x, self.p, self.eps, alpha, bounds=self.bounds)
        return x_t

    def _literal(
        self,
        oracle: InputGradient,
        x: Tensor,
        y: Tensor,
        x_t: Tensor,
        g: Tensor | None,
        h: float,
        alpha: float | Tensor,
    ) -> Tensor:
        size = x[0].numel()
        for _ in range(self.steps):
            u = self._start_vector(x)
            for _ in range(self.power):
                if g is None:
                    g = oracle.gradient(x_t, y)
                u, _, rayleigh, _ = ops.power_step(g, oracle.gradient(x_t + h * u, y), u, x_t, h)
                moved = x_t + self._second_step(g, u, rayleigh, alpha, size)
                x_t = ops.pgd_step(moved, g, x, self.p, self.eps, alpha, bounds=self.bounds)
                g = None
        return x_t

    def _start_vector(self, x: Tensor) -> Tensor:
        u = self._free(torch.empty_like(x).normal_(generator=self.generator))
        return u / as_column(ops.lp_norm(u, 2).to(x.dtype), x)

    def _eigenvector(self, oracle: InputGradient, x: Tensor, y: Tensor, g: Tensor, h: float) -> tuple[Tensor, Tensor]:
        """(u of x's shape, <u, H u> (B,)) after the power iterations."""
        u = self._start_vector(x)
        probe = x + h * u
        rayleigh = None
        for _ in range(self.power):
            u, probe, rayleigh, _ = ops.power_step(g, oracle.gradient(probe, y), u, x, h)
        assert rayleigh is not None
        return u, rayleigh

    def _second_step(self, g: Tensor, u: Tensor, rayleigh: Tensor, alpha: float | Tensor, size: int) -> Tensor:
        unit = u / as_column(ops.lp_norm(u, math.inf).to(u.dtype), g)
        if self.w2 is not None:
            length = to_multiply(self.w2, "w2", g)
        elif self.variant != "resolved":
            length = to_multiply(self.eps, "eps", g) * math.sqrt(size)
        else:
            length = to_multiply(alpha, "eps" if self.step_size is None else "step_size", g)
        if self.variant != "resolved":
            return length * unit
        along = as_column((g * u).flatten(1).sum(1), g)
        unit = torch.where(along < 0, -unit, unit)
        return length * torch.where(as_column(rayleigh, g) < 0, 0.0, unit)

    def passes(self, batch: int = 1) -> Passes:
        each = self.steps * (2 * self.power if self.variant == "literal" else 1 + self.power)
        return passes_of(batch, forward=each, backward_input=each)
