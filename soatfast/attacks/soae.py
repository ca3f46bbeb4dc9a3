"""SOAE: the second-order adversarial example of Qian et al. (arXiv 2207.01396), and the exact step it approximates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.pgd import PGD
from soatfast.attacks.second_order import SecondOrderAttack
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import as_column, check_number, check_steps, per_sample, to_multiply
from soatfast.solvers import quadratic
from soatfast.solvers.ggn import gauss_newton
from soatfast.solvers.hessian import hvp, unit_step
from soatfast.solvers.krylov import arnoldi, check_max_dim, gmres
from soatfast.solvers.spaces import Difference

_MAX_DIM = 20


@dataclass(frozen=True, kw_only=True, eq=False)
class SOAE(SecondOrderAttack):
    r"""Outer steps along a direction that a second-order model of the loss gives, each found in a Krylov space.

        x_{t+1} = project(x_t + step(d_t)),   d_t from  Q(d) = <g, d> + 1/2 <d, H d>  at x_t

    variant "newton": H d = g by GMRES, the paper's direction with the sign that ascends. The paper prints -H^{-1} g,
    the stationary point of Q, which for a piecewise-linear network (H positive semidefinite) is its minimiser;
    +H^{-1} g climbs, and where <g, d> < 0 all the same d is turned. "literal": the paper's sign, for study.
    "tr": the maximiser of Q in the L2 ball that holds the step's ball, from the same Krylov space (GLTR, Gould et al.
    1999). It is what Q has to offer; the Newton direction is not the maximiser of Q on any ball.

    A model of the loss is not the loss: at equal passes PGD is the stronger attack (docs/second-order.md).

    Args:
        steps: outer steps T (the paper: "less than 4 iterations").
        variant: "newton", "tr" or "literal".
        scheme: how H v is made: "fe", "cd", "exact", or "gn", the Gauss-Newton form, with which the direction is found
            exactly in K - 1 dimensions (K classes); cross-entropy only.
        max_dim: Krylov dimension; None: min(20, D). "tr" is converged at 4 to 8.
        rtol: GMRES stops at a residual of rtol ||g||; finite differences have noise of 1e-3 to 1e-1.
        h: finite-difference step along unit vectors; None: 2e-5 sqrt(D) in float32, 1e-6 sqrt(D) in float64.
        stop: "residual", or "subdiag": the paper's line 12 as Saad has it, h_{j+1,j} <= rtol, not relative.
        step: "lmo" moves eps/T along the steepest direction of the p-norm for d (the sign for p = inf; for p = 1 and 2
            over ball and box, :func:`soatfast.ops.lmo` at x_t); "raw" adds eps/T d as printed, of any length, or with
            "tr" d itself, which has the step's length already.
        rcond: where a Krylov space ends, see :mod:`soatfast.solvers.krylov`; None by dtype.
        check_every: ask every so many products whether all samples are solved, one synchronisation with the device
            each; None never asks.
        compact: leave samples out of the passes that are solved already (one synchronisation a product).
        random_start: GMRES starts from a random delta_0 of the step's ball in place of 0, as in the paper's equation 8.
            What of it lies in the null space of H stays in the direction. Not for "tr" and "gn", which have no start.
        generator: random numbers of delta_0; on x's device.

    p is 1, 2 or inf. A direction that is zero or not finite is replaced by the gradient.

    Passes, at most, with m = max_dim: fe T (1 + m) forwards and backwards to the input; cd the same calls with T (1 +
    2 m) sample passes; exact T forwards and T (1 + m) backwards; gn T forwards and T (K - 1) backwards. Products stop
    early where every sample is solved; "tr" makes min(m, dimension of the space). random_start makes one product more
    in each of the T steps.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([1, 2])
    >>> x_adv = SOAE(eps=0.1, steps=2, variant="tr")(model, x, y)
    >>> round(float((x_adv - x).abs().max()), 4)
    0.1
    """

    steps: int = 4
    variant: Literal["newton", "tr", "literal"] = "newton"
    scheme: Literal["fe", "cd", "exact", "gn"] = "fe"
    max_dim: int | None = None
    rtol: float = 1e-2
    h: float | None = None
    stop: Literal["residual", "subdiag"] = "residual"
    step: Literal["lmo", "raw"] = "lmo"
    rcond: float | None = None
    check_every: int | None = 1
    compact: bool = False
    random_start: bool = False
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    watchable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)
        if self.p not in (1, 2, math.inf):
            raise ValueError(f"p must be 1, 2 or math.inf for SOAE, got {self.p!r}")
        for name, options in (
            ("variant", ("newton", "tr", "literal")),
            ("scheme", ("fe", "cd", "exact", "gn")),
            ("stop", ("residual", "subdiag")),
            ("step", ("lmo", "raw")),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name} must be one of {', '.join(options)}, got {getattr(self, name)!r}")
        if self.random_start and (self.variant == "tr" or self.scheme == "gn"):
            raise ValueError(
                f'random_start is of GMRES: it takes variant "newton" or "literal" and scheme "fe", "cd" or "exact", '
                f"got {self.variant!r} and {self.scheme!r}"
            )
        if self.max_dim is not None:
            check_steps(self.max_dim, "max_dim")
        if self.check_every is not None:
            check_steps(self.check_every, "check_every")
        for name in ("rtol", "rcond"):
            value = getattr(self, name)
            if value is not None:
                check_number(value, name, above=False)
        if self.h is not None:
            check_number(self.h, "h")

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        per_sample(self.eps, "eps", x)  # its shape is checked before any pass
        if self.max_dim is not None and self.scheme != "gn":
            check_max_dim(self.max_dim, x[0].numel())
        reach = self.eps / self.steps
        x_t = x
        for t in range(self.steps):
            g, d = self._direction(oracle, x_t, y, g0 if t == 0 else None, reach)
            x_t = self._move(x_t, self._ascending(g, d), x, reach)
            del g, d  # or they would lie there during the next passes, where the memory peaks
        return x_t

    def _move(self, x_t: Tensor, d: Tensor, x: Tensor, reach: float | Tensor) -> Tensor:
        if self.step == "lmo" and self.p == math.inf:
            return ops.pgd_step(x_t, d, x, self.p, self.eps, reach, bounds=self.bounds)
        if self.step == "lmo":
            moved = x_t + ops.lmo(d, self.p, reach, x=x_t, bounds=self.bounds)
        elif self.variant == "tr":
            moved = x_t + d
        else:
            moved = x_t + to_multiply(reach, "eps", x) * d
        return ops.project(moved, x, self.p, self.eps, bounds=self.bounds, exact=self.p != math.inf)

    def _ascending(self, g: Tensor, d: Tensor) -> Tensor:
        """d, turned where it descends ("newton"), as -d for "literal"; g where d is no direction."""
        flat = d.flatten(1)
        largest = flat.abs().amax(1)
        usable = as_column(largest.isfinite() & (largest > 0), g)
        if self.variant == "literal":
            d = -d
        elif self.variant == "newton":
            along = as_column((g.flatten(1) * flat).sum(1), g)
            d = d * torch.where(along < 0, -1.0, 1.0)
        return self._free(torch.where(usable, d, g))

    def _direction(
        self, oracle: InputGradient, x: Tensor, y: Tensor, g: Tensor | None, reach: float | Tensor
    ) -> tuple[Tensor, Tensor]:
        """(g, d) at x."""
        size = x[0].numel()
        if self.scheme == "gn":
            form = gauss_newton(oracle, x, y)
            basis, t, c = form.reduced()
            z = quadratic.trust_region(t, c, self._l2(reach, size)) if self.variant == "tr" else quadratic.newton(t, c)
            d = (z.unsqueeze(1).to(basis.dtype) @ basis).squeeze(1)
            return form.gradient.view_as(x).to(x.dtype), d.view_as(x).to(x.dtype)
        if self.scheme == "exact":
            _, g, exact = oracle.differentiable(x, y)
        elif g is None:
            g = oracle.gradient(x, y)

        h = unit_step(x.dtype, size) if self.h is None else self.h  # the solvers multiply unit vectors

        def matvec(v: Tensor, index: Tensor | None = None) -> Tensor:
            if self.scheme == "exact":
                return exact(v)
            some = (x, y, g) if index is None else (x[index], y[index], g[index])
            return hvp(oracle, some[0], some[1], v, scheme=self.scheme, h=h, g0=some[2])  # type: ignore[arg-type]

        product: Callable[..., Tensor] = matvec
        if self.scheme == "fe" and not self.compact:
            product = Difference(lambda probe: oracle.gradient(probe, y), x, g, h)
        m = min(_MAX_DIM, size) if self.max_dim is None else self.max_dim
        compact = self.compact and self.scheme != "exact"  # the exact product is of the whole batch
        solver: dict[str, Any] = {"rcond": self.rcond, "check_every": self.check_every, "compact": compact}
        if self.variant == "tr":
            space = arnoldi(product, g, max_dim=m, **solver)
            c = torch.zeros_like(space.basis[:, :m, 0])
            c[:, 0] = space.length
            z = quadratic.trust_region(space.hessenberg[:, :m], c, self._l2(reach, size))
            return g, space.combine(z)
        start = self._random(x, reach) if self.random_start else None
        found = gmres(product, g, start, max_dim=m, rtol=self.rtol, stop=self.stop, **solver)
        return g, found.x

    def _random(self, x: Tensor, reach: float | Tensor) -> Tensor:
        """delta_0, uniform in the step's ball."""
        ball = PGD(eps=reach, p=self.p, bounds=(-math.inf, math.inf), mask=self.mask, generator=self.generator)
        return ball._start(torch.zeros_like(x))

    def _l2(self, reach: float | Tensor, size: int) -> float | Tensor:
        """Radius of the smallest L2 ball around the step's ball."""
        return reach * math.sqrt(size) if self.p == math.inf else reach

    def passes(self, batch: int = 1, classes: int = 10) -> Passes:
        """Passes of one call, at most; classes matter for "gn" only, and max_dim None counts as 20."""
        if self.scheme == "gn":
            return passes_of(batch, forward=self.steps, backward_input=self.steps * (classes - 1))
        m = (_MAX_DIM if self.max_dim is None else self.max_dim) + self.random_start
        if self.scheme == "exact":
            return passes_of(batch, forward=self.steps, backward_input=self.steps * (1 + m))
        products = passes_of(
            batch * (2 if self.scheme == "cd" else 1), forward=self.steps * m, backward_input=self.steps * m
        )
        return passes_of(batch, forward=self.steps, backward_input=self.steps) + products
