"""Per-sample extreme eigenvalues of the Hessian of the loss by the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from soatfast import ops
from soatfast.gradients.oracle import InputGradient
from soatfast.ops.arguments import as_column, check_flag, check_number, check_steps
from soatfast.solvers.hessian import Scheme, hvp, products, unit_step
from soatfast.solvers.krylov import arnoldi, check_max_dim
from soatfast.solvers.lanczos import lanczos
from soatfast.solvers.spaces import Difference


@dataclass(frozen=True)
class Eigenpair:
    """One eigenvalue of each sample's Hessian.

    Args:
        value: (B,).
        vector: unit vectors, of the inputs' shape; the sign is arbitrary.
        residual: (B,) ||H u - value u||_2 by the method's own products: some eigenvalue lies within it of value.
        changes: (B, steps) ||u_i - u_{i-1}||_2 of each power step; None without ``history``. It stays at 2 where the
            eigenvalue is negative: u turns round in every step.
        rayleigh: (B, steps) <u_{i-1}, H u_{i-1}> of each power step; None without ``history``.
    """

    value: Tensor
    vector: Tensor
    residual: Tensor
    changes: Tensor | None = None
    rayleigh: Tensor | None = None


@dataclass(frozen=True)
class Eigenpairs:
    """k eigenvalues of each sample's Hessian, in the order that was asked for.

    Args:
        values: (B, k), NaN for a sample with a product that is not finite.
        vectors: (B, k, ...) orthonormal; the signs are arbitrary.
        residuals: (B, k) bounds of ||H u - value u||_2: some eigenvalue lies within it of the value.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def top_eigenpairs(
    oracle: InputGradient,
    x: Tensor,
    y: Tensor,
    k: int = 3,
    *,
    which: Literal["largest", "smallest", "magnitude"] = "largest",
    max_dim: int | None = None,
    scheme: Scheme = "exact",
    h: float | None = None,
    generator: torch.Generator | None = None,
) -> Eigenpairs:
    r"""The k largest or smallest eigenvalues of each sample's input Hessian with their vectors, by Lanczos.

    Rayleigh-Ritz in the Krylov space of a random vector with full reorthogonalisation, continued by a random vector
    where the space ends: repeated eigenvalues come out repeatedly. The residuals say how far it has converged; a larger
    max_dim lowers them, and max_dim = D gives the whole spectrum.

    Args:
        oracle: an entered :class:`~soatfast.gradients.InputGradient`.
        x, y: (B, ...) batch and labels.
        k: pairs, 1 <= k <= max_dim.
        which: "largest" (most positive first), "smallest" (most negative first) or "magnitude".
        max_dim: products, k <= max_dim <= D; None: max(20, 3 k), at most D. They are made for every sample.
        scheme, h: of :func:`soatfast.solvers.hvp`, along unit vectors. "exact" by default; differences cross kinks.
        generator: random vectors; on x's device.

    Memory: the basis, B (max_dim + 1) D numbers, compared with the free memory before anything is allocated. Passes:
    "exact" 1 forward and 1 + max_dim backwards to the input.

    Raises:
        ValueError: k or max_dim out of range; a model that cannot be differentiated twice with "exact".
        MemoryError: the basis does not fit; the message names its size and what fits.

    >>> import torch
    >>> quadratic = lambda z, y: 0.5 * (z * z * torch.tensor([1.0, -4.0, 3.0, 3.0])).sum(1)
    >>> x, y = torch.zeros(1, 4), torch.tensor([0])
    >>> with InputGradient(torch.nn.Identity(), objective=quadratic) as oracle:
    ...     pairs = top_eigenpairs(oracle, x, y, k=2)
    ...     lowest = top_eigenpairs(oracle, x, y, k=1, which="smallest")
    >>> pairs.values.round(decimals=3), lowest.values.round(decimals=3)
    (tensor([[3., 3.]]), tensor([[-4.]]))
    """
    size = x[0].numel()
    if which not in ("largest", "smallest", "magnitude"):
        raise ValueError(f'which must be "largest", "smallest" or "magnitude", got {which!r}')
    check_max_dim(k, size, "k")
    m = check_max_dim(min(max(20, 3 * k), size) if max_dim is None else max_dim, size)
    if k > m:
        raise ValueError(f"k must be at most max_dim = {m}, got {k}")
    if scheme != "exact":
        oracle.expect_full_precision("top_eigenpairs")
    start = torch.empty_like(x).normal_(generator=generator)
    space = lanczos(products(oracle, x, y, scheme, h), start, m)
    key = {"largest": -space.values, "smallest": space.values, "magnitude": -space.values.abs()}[which]
    index = key.argsort(1)[:, :k]
    values, residuals = (t.gather(1, index).to(x.dtype) for t in (space.values, space.residual))
    return Eigenpairs(values, space.vectors(index), residuals)


def top_eigenpair(
    oracle: InputGradient,
    x: Tensor,
    y: Tensor,
    *,
    method: Literal["lanczos", "power"] = "lanczos",
    which: Literal["largest", "magnitude"] = "largest",
    max_dim: int = 20,
    scheme: Scheme = "fe",
    h: float | None = None,
    history: bool = False,
    generator: torch.Generator | None = None,
) -> Eigenpair:
    r"""The largest eigenvalue of each sample's input Hessian, or the one of largest magnitude.

    lanczos: Rayleigh-Ritz in the Krylov space of a random vector, ``max_dim`` products; both ends of the spectrum
    converge fast. power: u <- H u / ||H u||, the largest magnitude only; max_dim products and hardly any memory.

    Args:
        oracle: an entered :class:`~soatfast.gradients.InputGradient`.
        x, y: (B, ...) batch and labels.
        method: "lanczos" or "power".
        which: "largest" (most positive; lanczos) or "magnitude".
        max_dim: Hessian-vector products, 1 <= max_dim <= D.
        scheme, h: of :func:`soatfast.solvers.hvp`; power takes "fe". Differences in float32 cross kinks of ReLUs: on a
            small CNN the median of the eigenvalues came out 1.6 to 6 times the exact one, in float64 equal.
        history: keep the changes and Rayleigh quotients of the power steps (HAAT's figures 4 and 5); no pass more.
        generator: random start vectors; on x's device.

    Passes: 1 + max_dim forwards and backwards to the input ("fe"); fewer where every space is exhausted.

    >>> import torch
    >>> quadratic = lambda z, y: 0.5 * (z * z * torch.tensor([1.0, -4.0, 3.0])).sum(1)
    >>> x, y = torch.zeros(1, 3), torch.tensor([0])
    >>> with InputGradient(torch.nn.Identity(), objective=quadratic) as oracle:
    ...     pair = top_eigenpair(oracle, x, y, max_dim=3, h=1.0)
    >>> round(float(pair.value), 3)
    3.0
    """
    if method not in ("lanczos", "power"):
        raise ValueError(f'method must be "lanczos" or "power", got {method!r}')
    if which not in ("largest", "magnitude"):
        raise ValueError(f'which must be "largest" or "magnitude", got {which!r}')
    if method == "power" and (which != "magnitude" or scheme != "fe"):
        raise ValueError(f'power iteration takes which="magnitude" and scheme="fe", got {which!r} and {scheme!r}')
    check_flag(history, "history")
    if history and method != "power":
        raise ValueError(f'history is of the power steps: it takes method="power", got {method!r}')
    if h is not None:
        check_number(h, "h")
    if method == "power":
        check_steps(max_dim, "max_dim")
    else:
        check_max_dim(max_dim, x[0].numel())
    start = torch.empty_like(x).normal_(generator=generator)
    if scheme != "exact":
        oracle.expect_full_precision("top_eigenpair")
    if method == "power":
        return _power(oracle, x, y, start, max_dim, h, history)
    if scheme == "exact":
        exact = oracle.differentiable(x, y)[2]
        space = arnoldi(exact, start, max_dim=max_dim)
    else:
        h = unit_step(x.dtype, x[0].numel()) if h is None else h  # the vectors of a basis have length 1
        if scheme == "fe":
            g = oracle.gradient(x, y)
            space = arnoldi(Difference(lambda probe: oracle.gradient(probe, y), x, g, h), start, max_dim=max_dim)
        else:
            space = arnoldi(lambda v: hvp(oracle, x, y, v, scheme=scheme, h=h), start, max_dim=max_dim)
    small = space.hessenberg[:, :max_dim].double()
    small = (small + small.transpose(1, 2)) / 2
    unused = torch.arange(max_dim, device=x.device) >= space.iterations.unsqueeze(1)
    least = -small.abs().sum((1, 2)) - 1  # below every eigenvalue: what pads an exhausted space is never the largest
    if which == "largest":
        small = small + torch.diag_embed(torch.where(unused, least.unsqueeze(1), 0.0))
    values, vectors = torch.linalg.eigh(small)
    best = (values if which == "largest" else values.abs()).argmax(1, keepdim=True)
    value = values.gather(1, best).squeeze(1)
    z = vectors.gather(2, best.unsqueeze(1).expand(-1, max_dim, 1)).squeeze(2)
    below = space.hessenberg.diagonal(-1, 1, 2).double()  # h_{j+1,j}
    last = (space.iterations - 1).clamp_min(0).long().unsqueeze(1)
    residual = (below.gather(1, last) * z.gather(1, last)).abs().squeeze(1)
    return Eigenpair(value.to(x.dtype), space.combine(z.to(x.dtype)), residual.to(x.dtype))


def _power(
    oracle: InputGradient, x: Tensor, y: Tensor, u: Tensor, steps: int, h: float | None, history: bool
) -> Eigenpair:
    h = unit_step(x.dtype, x[0].numel()) if h is None else h
    u = u / as_column(ops.lp_norm(u, 2).to(u.dtype), u)
    g = oracle.gradient(x, y)
    probe, value, norm = x + h * u, None, None
    before = u
    changes: list[Tensor] = []
    quotients: list[Tensor] = []
    for _ in range(steps):
        before = u
        u, probe, value, norm = ops.power_step(g, oracle.gradient(probe, y), u, x, h)
        if history:
            changes.append(ops.lp_norm(u - before, 2))
            quotients.append(value)
    assert value is not None and norm is not None, "max_dim must be at least 1"
    residual = (norm.square() - value.square()).clamp_min(0).sqrt()
    if not history:
        return Eigenpair(value, before, residual)
    return Eigenpair(value, before, residual, torch.stack(changes, 1), torch.stack(quotients, 1))
