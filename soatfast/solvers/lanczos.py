"""The Lanczos process with full reorthogonalisation, continued where a space is exhausted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soatfast import ops
from soatfast.ops.arguments import Layout
from soatfast.solvers.krylov import check_basis
from soatfast.solvers.spaces import Basis, Differences, Product, product_of

_SEED = 0x5EED
_EXHAUSTED = {torch.float32: 1e-5, torch.float64: 1e-11}  # of ||A v_j||; what is left of it has no digits


@dataclass(frozen=True)
class RitzSpace:
    """A on an orthonormal basis of each sample: its Ritz values and vectors.

    Args:
        values: (B, m) ascending, float64; NaN where a product was not finite.
        weights: (B, m, m) float64, column k the Ritz vector k in the basis.
        residual: (B, m) bounds of ||A u_k - value_k u_k||_2, float64.
        basis: (B, m + 1, D).
        layout: how rows of D become samples.
    """

    values: Tensor
    weights: Tensor
    residual: Tensor
    basis: Tensor = field(repr=False)
    layout: Layout = field(repr=False)

    def vectors(self, index: Tensor) -> Tensor:
        """(B, k, ...) of b's shape: the Ritz vectors named by index (B, k)."""
        m = self.values.shape[1]
        chosen = self.weights.gather(2, index.unsqueeze(1).expand(-1, m, -1)).to(self.basis.dtype)  # (B, m, k)
        rows = torch.where(self.values[:, :1].isnan().unsqueeze(2), math.nan, chosen.transpose(1, 2))
        found = rows @ self.basis[:, :m]
        return torch.stack([self.layout.restore(found[:, k].contiguous()) for k in range(index.shape[1])], 1)


def lanczos(matvec: Callable[[Tensor], Tensor], start: Tensor, max_dim: int) -> RitzSpace:
    r"""max_dim products with a symmetric A of each sample, from the vector ``start`` (B, ...) on.

    Where a Krylov space ends before, as for a Hessian of rank K - 1, the process continues with a random vector that is
    orthogonal to it: an eigenvalue of multiplicity 3 is then found three times. The matrix on the basis is taken from
    all coefficients of the orthogonalisation, so that it is V^T A V whatever the vectors are.

    >>> import torch
    >>> double = torch.tensor([2.0, 2.0, 5.0], dtype=torch.float64)
    >>> lanczos(lambda v: v * double, torch.ones(1, 3, dtype=torch.float64), 3).values.round(decimals=6)
    tensor([[2., 2., 5.]], dtype=torch.float64)
    """
    layout = check_basis(start, max_dim)
    product = product_of(matvec, layout, compact=False)
    rows = layout.rows(start, "start")
    space = Basis(rows, max_dim)
    space.start(product, rows)
    status = torch.zeros(len(rows), dtype=torch.int32, device=rows.device)
    dropped = torch.zeros_like(space.norms)
    generator = torch.Generator(rows.device).manual_seed(_SEED)  # its own: who ends early changes no other
    for j in range(max_dim):
        product.step(space, status, j)
        left = space.hessenberg[j, j + 1]
        gone = ~(left > _EXHAUSTED[rows.dtype] * space.norms[j])
        if j + 1 < max_dim and gone.any():
            dropped[j] = torch.where(gone & left.isfinite(), left, 0.0)
            _renew(space, product, gone, status, j, generator)
    dropped[max_dim - 1] = space.hessenberg[max_dim - 1, max_dim]
    upper = space.hessenberg[:, :max_dim].permute(2, 1, 0).double().triu()
    bad = ~space.norms.isfinite().all(0)
    t = torch.where(bad.view(-1, 1, 1), 0.0, upper + upper.triu(1).transpose(1, 2))
    values, weights = torch.linalg.eigh(t)
    apart = (dropped.t().double().unsqueeze(2) * weights).square().sum(1).sqrt()
    hidden = bad.unsqueeze(1)
    residual = torch.where(hidden, math.nan, apart)
    return RitzSpace(torch.where(hidden, math.nan, values), weights, residual, space.basis, layout)


def _renew(space: Basis, product: Product, gone: Tensor, status: Tensor, j: int, generator: torch.Generator) -> None:
    """A random v_{j+1}, orthogonal to the basis, for the samples that have none."""
    kept = space.basis[:, j + 1].clone()
    hessenberg, norms = torch.empty_like(space.hessenberg), torch.empty_like(space.norms)
    for _ in range(3):  # a start from the same seed would lie in the space
        fresh = torch.empty_like(kept).normal_(generator=generator)
        ops.arnoldi_step(space.basis, hessenberg, norms, fresh, status, j)
        if (hessenberg[j, j + 1] > 1e-5 * norms[j]).all():
            break
    space.basis[:, j + 1] = torch.where(gone.unsqueeze(1), space.basis[:, j + 1], kept)
    if isinstance(product, Differences):
        product.probe.copy_(product.x).add_(space.basis[:, j + 1], alpha=product.h)
