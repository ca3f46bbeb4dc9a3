"""How far the quadratic model of the loss is from the loss: SCORPIO's Theorem 1 and SOAE's bound, sample by sample."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from soatfast import ops
from soatfast.attacks import PGD, Attack
from soatfast.gradients.objectives import Named, Objective
from soatfast.gradients.oracle import InputGradient
from soatfast.ops.arguments import as_column, check_number, check_steps
from soatfast.solvers import arnoldi, top_eigenpairs, trust_region
from soatfast.solvers.hessian import products

_NO_BOX = (-math.inf, math.inf)
Products = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class QuadraticGap:
    r"""What :func:`quadratic_gap` found; tensors (B,) in float64. v_A is the attack's, v_Q the quadratic model's.

    Args:
        eps, p: the ball.
        clean: l(x).
        attacked: L_A = l(x + v_A), the largest loss that was found in the ball.
        quadratic: L_Q = l(x + v_Q), v_Q the largest value of Q that was found in the ball.
        model: Q(v_Q), with Q(v) = <g, v> + 1/2 <v, H v>.
        remainder: l(x + v_Q) - l(x) - Q(v_Q).
        gradient_norm: ||g||_q, 1/p + 1/q = 1.
        hessian_norm: (B, 2) least and greatest ||H||_{p,q} = max ||H u||_q over ||u||_p = 1; equal at p = 2.
        third: M of |D^3 l(z)[v, v, v]| <= M ||v||_p^3 for all z of the ball.
        third_is_known: whether M was given. Else it is the largest 6 |remainder| / ||v||_p^3 of v_A and v_Q, which is
            at most M: the bounds that are made of it are no bounds.
        alignment: |cos| of the gradient and the eigenvector of the largest eigenvalue.
    """

    eps: float
    p: float
    clean: Tensor
    attacked: Tensor
    quadratic: Tensor
    model: Tensor
    remainder: Tensor
    gradient_norm: Tensor
    hessian_norm: Tensor
    third: Tensor
    third_is_known: bool
    alignment: Tensor = field(repr=False)

    @property
    def gap(self) -> Tensor:
        """L_A - L_Q, >= 0."""
        return self.attacked - self.quadratic

    @property
    def theorem1(self) -> Tensor:
        """2 eps ||g||_q + 2 eps^2 ||H||_{p,q} + eps^3 M / 3, by the upper end of the norm.

        The paper's proof, with its line "<= eps^2 ||H||" read as 2 eps^2 ||H||. A bound of the gap where M is known.
        """
        return 2 * self.eps * self.gradient_norm + 2 * self.eps**2 * self.hessian_norm[:, 1] + self.soae

    @property
    def soae(self) -> Tensor:
        """eps^3 M / 3: SOAE's bound of the gap for a v_Q that maximises Q, where M is known."""
        return self.eps**3 * self.third / 3


def quadratic_gap(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    p: float = math.inf,
    *,
    third: float | Tensor | None = None,
    attack: Attack | None = None,
    restarts: int = 3,
    steps: int = 20,
    max_dim: int | None = None,
    objective: Named | Objective = "ce",
    generator: torch.Generator | None = None,
) -> QuadraticGap:
    r"""How much loss the quadratic model of each sample's loss misses in a ball, and the papers' bounds of it.

    L_A is the largest loss that restarts of a strong attack, and v_Q itself, find. v_Q maximises Q. For p = 2 it does
    so exactly in a Krylov space of the gradient. For p = inf, where the problem is NP-hard, it is the best of
    Frank-Wolfe steps of length 2 / (k + 2) and 1. So at p = inf Q's maximum is approached from below, and a gap above
    eps^3 M / 3 may be its fault. There is no box: the theorems have none.

    ||H||_{2,2} is the eigenvalue of largest magnitude. ||H||_{inf,1} is NP-hard: its lower end comes from alternating
    signs u <- sgn(H sgn(H u)), its upper end is D ||H||_2.

    Args:
        model: in eval mode for this call.
        x, y: (B, ...) batch and labels, float32 or float64.
        eps, p: the ball, eps > 0; p is 2 or math.inf.
        third: M, a number or (B,), where it is known; None: an estimate from below, which the result says.
        attack: the strong attack; its eps, p, bounds and objective are replaced. None: PGD(steps=40).
        restarts: runs of the attack.
        steps: steps on Q at p = inf, and of the signs.
        max_dim: products of the Krylov spaces, at most D; None: min(40, D).
        objective: of the model's output, as of :class:`~soatfast.gradients.InputGradient`.
        generator: random vectors; on x's device.

    Passes: about 3 + restarts * 41 forwards and backwards, and 3 max_dim + 8 steps double backwards.

    >>> import torch
    >>> cubic = lambda z, y: (z**3 - 1e-9 * z).sum(1)  # D^3 l[v, v, v] = 6 v^3
    >>> x, y = torch.zeros(1, 1, dtype=torch.float64), torch.tensor([0])
    >>> found = quadratic_gap(torch.nn.Identity(), x, y, eps=0.1, third=6.0, objective=cubic)
    >>> found.gap.round(decimals=6), found.soae.round(decimals=6)
    (tensor([0.0020], dtype=torch.float64), tensor([0.0020], dtype=torch.float64))
    """
    check_number(eps, "eps")
    if p not in (2, math.inf):
        raise ValueError(f"p must be 2 or math.inf for quadratic_gap, got {p!r}")
    for name, count in (("restarts", restarts), ("steps", steps)):
        check_steps(count, name)
    if third is not None and not isinstance(third, Tensor):
        check_number(third, "third", above=False)
    strong = PGD(steps=40) if attack is None else attack
    strong = dataclasses.replace(strong, eps=eps, p=p, bounds=_NO_BOX, objective=objective)
    m = min(40, x[0].numel()) if max_dim is None else max_dim
    with InputGradient(model, objective) as oracle:
        clean, g = oracle(x, y)
        product = products(oracle, x, y)
        ends = top_eigenpairs(oracle, x, y, 1, which="magnitude", max_dim=m, generator=generator)
        top = top_eigenpairs(oracle, x, y, 1, max_dim=m, generator=generator)
        u = top.vectors[:, 0]
        v_q = _in_krylov_space(product, g, u, eps, m) if p == 2 else _by_steps(product, g, u, eps, p, steps)
        q = _value(product, g, v_q)
        quadratic = oracle.loss(x + v_q, y).double()
        attacked, v_a = quadratic, v_q
        for _ in range(restarts):
            moved = strong(model, x, y)
            loss = oracle.loss(moved, y).double()
            better = loss > attacked
            v_a = torch.where(as_column(better, x), moved - x, v_a)
            attacked = torch.where(better, loss, attacked)
        norm = _hessian_norm(product, x, ends.values[:, 0].abs() + ends.residuals[:, 0], p, steps, generator)
        rest = quadratic - clean - q
        if third is None:
            others = attacked - clean - _value(product, g, v_a)
            sizes = [ops.lp_norm(v, p).double().clamp_min(1e-300) for v in (v_q, v_a)]
            known = torch.stack([6 * r.abs() / s**3 for r, s in zip((rest, others), sizes, strict=True)]).amax(0)
        else:
            known = torch.as_tensor(third, dtype=torch.float64, device=x.device).expand(len(x))
    cosine = torch.nn.functional.cosine_similarity(g.flatten(1), u.flatten(1), dim=1).abs()
    return QuadraticGap(
        eps=float(eps),
        p=float(p),
        clean=clean.double(),
        attacked=attacked,
        quadratic=quadratic,
        model=q,
        remainder=rest,
        gradient_norm=ops.lp_norm(g, 2 if p == 2 else 1).double(),
        hessian_norm=norm,
        third=known,
        third_is_known=third is not None,
        alignment=cosine.double(),
    )


def _value(product: Products, g: Tensor, v: Tensor) -> Tensor:
    """Q(v) (B,) float64."""
    return ((g + product(v) / 2).double() * v.double()).flatten(1).sum(1)


def _in_krylov_space(product: Products, g: Tensor, u: Tensor, eps: float, m: int) -> Tensor:
    """argmax Q over ||v||_2 <= eps in the Krylov space of g, or eps u: g may have no part along the top eigenvector."""
    space = arnoldi(product, g, max_dim=m)
    c = torch.zeros_like(space.basis[:, :m, 0])
    c[:, 0] = space.length
    found = space.combine(trust_region(space.hessenberg[:, :m], c, eps))
    return _best(product, g, [found, eps * u, -eps * u])


def _by_steps(product: Products, g: Tensor, u: Tensor, eps: float, p: float, steps: int) -> Tensor:
    """The best Q of Frank-Wolfe's steps, shrinking and whole, from the gradient's corner and the top eigenvector's."""
    best, largest = torch.zeros_like(g), torch.zeros(len(g), dtype=torch.float64, device=g.device)  # v = 0 has Q = 0
    for start in (g, u, -u):
        for whole in (False, True):
            v = ops.lmo(start, p, eps)
            for k in range(1, steps + 1):
                w = product(v)
                q = ((g + w / 2).double() * v.double()).flatten(1).sum(1)
                best = torch.where(as_column(q > largest, v), v, best)
                largest = torch.maximum(q, largest)
                gamma = 1.0 if whole else 2 / (k + 2)
                v = (1 - gamma) * v + gamma * ops.lmo(g + w, p, eps)
    return best


def _best(product: Products, g: Tensor, found: list[Tensor]) -> Tensor:
    """The one of largest Q, for each sample."""
    values = torch.stack([_value(product, g, v) for v in found])
    index = values.argmax(0)
    return torch.stack(found)[index, torch.arange(len(g), device=g.device)]


def _hessian_norm(
    product: Products, x: Tensor, spectral: Tensor, p: float, steps: int, generator: torch.Generator | None
) -> Tensor:
    """(B, 2) least and greatest ||H||_{p,q}."""
    spectral = spectral.double()
    if p == 2:
        return torch.stack([spectral, spectral], 1)
    u = torch.empty_like(x).normal_(generator=generator).sign()
    low = torch.zeros_like(spectral)
    for _ in range(steps):
        w = product(u)
        low = torch.maximum(low, w.double().abs().flatten(1).sum(1))
        u = product(w.sign()).sign()
    return torch.stack([low, torch.maximum(low, spectral * x[0].numel())], 1)
