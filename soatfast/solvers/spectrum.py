"""The whole spectrum of each sample's input Hessian: its density, its sorted profile, its trace and Frobenius norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from soatfast.gradients.oracle import InputGradient
from soatfast.ops.arguments import as_column, check_number, check_steps
from soatfast.solvers import hessian
from soatfast.solvers.hessian import Scheme
from soatfast.solvers.krylov import check_max_dim
from soatfast.solvers.lanczos import lanczos
from soatfast.solvers.spaces import check_room


@dataclass(frozen=True)
class Spectrum:
    r"""A spectral density of each sample, as point masses.

    Args:
        nodes: (B, n) float64 places; NaN for a sample with a product that is not finite.
        weights: (B, n) float64 masses, of sum 1.
    """

    nodes: Tensor
    weights: Tensor

    def moment(self, order: int) -> Tensor:
        """(B,) sum_i weight_i node_i^order; its mean over random vectors is tr(H^order) / D."""
        return (self.weights * self.nodes**order).sum(1)

    def density(self, at: Tensor, width: float) -> Tensor:
        """(B, G) the masses smoothed by a Gaussian of this standard deviation, at the points (G,).

        >>> import torch
        >>> mass = Spectrum(torch.zeros(1, 1), torch.ones(1, 1))
        >>> round(float(mass.density(torch.zeros(1), width=0.5)), 4)
        0.7979
        """
        check_number(width, "width")
        z = (at.double().view(1, -1, 1) - self.nodes.unsqueeze(1)) / width
        return (self.weights.unsqueeze(1) * (-0.5 * z.square()).exp()).sum(2) / (width * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class Estimate:
    """A randomised figure of each sample.

    Args:
        value: (B,) float64.
        error: (B,) float64 standard error, from the spread of the random vectors.
    """

    value: Tensor
    error: Tensor


def spectral_density(
    oracle: InputGradient,
    x: Tensor,
    y: Tensor,
    *,
    max_dim: int = 20,
    probes: int = 4,
    scheme: Scheme = "exact",
    h: float | None = None,
    generator: torch.Generator | None = None,
) -> Spectrum:
    r"""The spectral density of each sample's input Hessian by stochastic Lanczos quadrature.

    A random unit vector v has the measure sum_i <v, u_i>^2 delta(lam_i). The Ritz values of its Krylov space, weighted
    by the squared first entries of their vectors, have the same moments <v, H^j v> up to j = 2 max_dim - 1. The mean
    over random vectors estimates the density (Golub and Meurant 1994; Lin, Saad and Yang 2016).

    Args:
        oracle, x, y: as of :func:`soatfast.solvers.top_eigenpairs`.
        max_dim: products of each random vector, 1 <= max_dim <= D.
        probes: random vectors of each sample.
        scheme, h: of :func:`soatfast.solvers.hvp`, along unit vectors.
        generator: random vectors; on x's device.

    Memory: one basis at a time, B (max_dim + 1) D numbers. Passes: "exact" 1 forward and 1 + probes max_dim backwards.

    >>> import torch
    >>> quadratic = lambda z, y: 0.5 * (z * z * torch.tensor([2.0, 2.0])).sum(1)
    >>> with InputGradient(torch.nn.Identity(), objective=quadratic) as oracle:
    ...     found = spectral_density(oracle, torch.zeros(1, 2), torch.tensor([0]), max_dim=1)
    >>> round(float(found.moment(1)), 4)
    2.0
    """
    check_max_dim(max_dim, x[0].numel())
    check_steps(probes, "probes")
    product = _products(oracle, x, y, scheme, h, "spectral_density")
    nodes, weights = [], []
    for _ in range(probes):
        space = lanczos(product, torch.empty_like(x).normal_(generator=generator), max_dim)
        nodes.append(space.values)
        weights.append(space.weights[:, 0].square() / probes)
    return Spectrum(torch.cat(nodes, 1), torch.cat(weights, 1))


def eigenvalue_profile(
    oracle: InputGradient, x: Tensor, y: Tensor, *, scheme: Scheme = "exact", h: float | None = None
) -> Tensor:
    r"""(B, D) float64, all eigenvalues of each sample's input Hessian, largest first: CURE's curvature profile.

    The Hessian is written out by D products, in the dtype of x, and its symmetric part is diagonalised in float64
    (Moosavi-Dezfooli et al. 2019, figure 2 show such profiles).

    Memory: the matrices, B D^2 numbers of x's dtype and of float64, compared with the free memory before anything is
    allocated. Passes: "exact" 1 forward and 1 + D backwards to the input. Time: O(B D^3).

    >>> import torch
    >>> quadratic = lambda z, y: 0.5 * (z * z * torch.tensor([1.0, -4.0, 3.0])).sum(1)
    >>> with InputGradient(torch.nn.Identity(), objective=quadratic) as oracle:
    ...     eigenvalue_profile(oracle, torch.zeros(1, 3), torch.tensor([0]))
    tensor([[ 3.,  1., -4.]], dtype=torch.float64)
    """
    size = x[0].numel()
    check_room("the Hessians", len(x), size * size * (x.element_size() + 8), x.device)
    product = _products(oracle, x, y, scheme, h, "eigenvalue_profile")
    dense = x.new_empty(len(x), size, size)
    for j in range(size):
        v = torch.zeros_like(x, memory_format=torch.contiguous_format)
        v.view(len(x), size)[:, j] = 1.0
        dense[:, j] = product(v).reshape(len(x), size)
    bad = ~dense.flatten(1).isfinite().all(1)
    both = torch.where(bad.view(-1, 1, 1), 0.0, dense).double()
    values = torch.linalg.eigvalsh((both + both.transpose(1, 2)) / 2).flip(1)
    return torch.where(bad.unsqueeze(1), math.nan, values)


def hessian_trace(
    oracle: InputGradient,
    x: Tensor,
    y: Tensor,
    *,
    method: Literal["hutchinson", "hutch++"] = "hutchinson",
    products: int = 30,
    scheme: Scheme = "exact",
    h: float | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""tr(H) of each sample's input Hessian, without bias.

    hutchinson: the mean of <z, H z> over random signs z. hutch++ (Meyer et al. 2021): a third of the products finds a
    space Q = range(H S), whose trace is taken exactly; the rest of the trace is estimated outside it. Its error falls
    like 1 / products where Hutchinson's falls like its root. For a Hessian of rank K - 1 it is exact from
    3 (K - 1) products on.

    Args:
        oracle, x, y: as of :func:`soatfast.solvers.top_eigenpairs`.
        method: "hutchinson" or "hutch++".
        products: products of each sample: at least 2, or 6 for "hutch++", of which a multiple of 3 is used.
        scheme, h: of :func:`soatfast.solvers.hvp`, along unit vectors.
        generator: random signs; on x's device.

    Memory: "hutch++" 2 products / 3 vectors a sample. Passes: "exact" 1 forward and 1 + products backwards.

    >>> import torch
    >>> quadratic = lambda z, y: 0.5 * (z * z * torch.tensor([1.0, -4.0, 6.0])).sum(1)
    >>> with InputGradient(torch.nn.Identity(), objective=quadratic) as oracle:
    ...     float(hessian_trace(oracle, torch.zeros(1, 3), torch.tensor([0])).value.round(decimals=3))
    3.0
    """
    if method not in ("hutchinson", "hutch++"):
        raise ValueError(f'method must be "hutchinson" or "hutch++", got {method!r}')
    check_steps(products, "products", 2 if method == "hutchinson" else 6)
    size = x[0].numel()
    if method == "hutchinson":
        product = _products(oracle, x, y, scheme, h, "hessian_trace")
        draws = [_dot(z, product(z)) * size for z in _signs(x, products, generator)]
        return _mean(torch.stack(draws))
    k = min(products // 3, size)
    check_room("the spaces of Hutch++", len(x), 2 * k * size * x.element_size(), x.device)
    product = _products(oracle, x, y, scheme, h, "hessian_trace")
    sketch = torch.stack([product(z).flatten(1) for z in _signs(x, k, generator)], 2)  # (B, D, k)
    finite = sketch.isfinite().flatten(1).all(1).view(-1, 1, 1)
    q = torch.linalg.qr(torch.where(finite, sketch, 0.0)).Q
    inside = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for j in range(k):
        column = q[:, :, j].reshape(x.shape)
        inside += _dot(column, product(column))
    outside = []
    for z in _signs(x, k, generator):
        flat = z.flatten(1)
        rest = (flat - (q @ (flat.unsqueeze(1) @ q).transpose(1, 2)).squeeze(2)).view_as(z)
        length = torch.linalg.vector_norm(rest.flatten(1), dim=1)
        unit = rest / as_column(torch.where(length > 0, length, 1.0), rest)  # products are along unit vectors
        outside.append(_dot(unit, product(unit)) * length.double().square() * size)
    found = _mean(torch.stack(outside))
    value = torch.where(finite.flatten(), found.value + inside, math.nan)
    return Estimate(value, found.error)


def frobenius_norm(
    oracle: InputGradient,
    x: Tensor,
    y: Tensor,
    *,
    products: int = 30,
    scheme: Scheme = "exact",
    h: float | None = None,
    generator: torch.Generator | None = None,
) -> Estimate:
    r"""||H||_F of each sample's input Hessian: the root of the mean of ||H z||_2^2 over random signs z.

    The square is without bias, the root slightly low. The error is that of the square, carried to the root. Arguments
    as of :func:`hessian_trace`.

    >>> import torch
    >>> quadratic = lambda z, y: 0.5 * (z * z * torch.tensor([3.0, -4.0])).sum(1)
    >>> with InputGradient(torch.nn.Identity(), objective=quadratic) as oracle:
    ...     float(frobenius_norm(oracle, torch.zeros(1, 2), torch.tensor([0])).value.round(decimals=3))
    5.0
    """
    check_steps(products, "products", 2)
    product = _products(oracle, x, y, scheme, h, "frobenius_norm")
    squares = []
    for z in _signs(x, products, generator):
        w = product(z)
        squares.append(_dot(w, w) * x[0].numel())
    square = _mean(torch.stack(squares))
    root = square.value.sqrt()
    return Estimate(root, square.error / (2 * torch.where(root > 0, root, 1.0)))


def _products(
    oracle: InputGradient, x: Tensor, y: Tensor, scheme: Scheme, h: float | None, name: str
) -> Callable[[Tensor], Tensor]:
    if scheme != "exact":
        oracle.expect_full_precision(name)
    return hessian.products(oracle, x, y, scheme, h)


def _signs(x: Tensor, count: int, generator: torch.Generator | None) -> Iterator[Tensor]:
    """Unit vectors of x's shape with random signs: z / sqrt(D)."""
    for _ in range(count):
        ones = torch.empty_like(x).uniform_(-1, 1, generator=generator).sign_()
        yield torch.where(ones == 0, 1.0, ones) / math.sqrt(x[0].numel())


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(B,) float64."""
    return (a.flatten(1).double() * b.flatten(1).double()).sum(1)


def _mean(draws: Tensor) -> Estimate:
    """Of draws (n, B)."""
    return Estimate(draws.mean(0), draws.std(0) / math.sqrt(len(draws)))
