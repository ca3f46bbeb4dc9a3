"""Quadratic models q(z) = <c, z> + 1/2 <z, T z> in a few dimensions, a batch of them: maximised on a ball, exactly.

A Krylov space or the row space of a Jacobian turns a problem in D dimensions into one in k: with orthonormal columns V,
c = V^T g and T = V^T H V. k is small, so everything is done through eigh, in float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BISECTIONS = 100  # halves 1 to below the last bit of float64 twice over


def trust_region(t: Tensor, c: Tensor, radius: float | Tensor) -> Tensor:
    r"""argmax of <c, z> + 1/2 <z, T z> over ||z||_2 <= radius, for each of a batch.

    The maximiser solves (lam I - T) z = c with lam >= max(lam_max(T), 0), and lam = 0 or ||z|| = radius (More and
    Sorensen 1983). lam is bisected between max(lam_max, 0) and that plus ||c|| / radius. Where c has no part along the
    top eigenvector and what is left does not reach the sphere (the hard case), the top eigenvector fills it up.

    Args:
        t: (B, k, k) symmetric; only its symmetric part is used.
        c: (B, k).
        radius: a number >= 0 or a tensor of shape () or (B,).

    Returns:
        z (B, k) in c's dtype.

    >>> import torch
    >>> t = torch.diag(torch.tensor([1.0, -2.0])).unsqueeze(0)
    >>> trust_region(t, torch.tensor([[0.0, 1.0]]), 2.0).round(decimals=3)
    tensor([[1.9720, 0.3330]])
    """
    if t.dim() != 3 or t.shape[1] != t.shape[2] or c.shape != t.shape[:2]:
        raise ValueError(f"expected t (B, k, k) and c (B, k), got {tuple(t.shape)} and {tuple(c.shape)}")
    reach = torch.as_tensor(radius, dtype=torch.float64, device=c.device)
    if reach.numel() not in (1, len(c)):
        raise ValueError(f"radius must be a number or of shape () or ({len(c)},), got {tuple(reach.shape)}")
    reach = reach.reshape(-1, 1).expand(len(c), 1)
    values, vectors = torch.linalg.eigh((t + t.transpose(1, 2)).double() / 2)  # ascending
    a = (vectors.transpose(1, 2) @ c.double().unsqueeze(2)).squeeze(2)
    floor = values[:, -1:].clamp_min(0.0)
    gap = floor - values  # >= 0
    size = torch.linalg.vector_norm(a, dim=1, keepdim=True)
    tiny = 1e-14 * torch.maximum(gap.amax(1, keepdim=True), size / reach.clamp_min(1e-300)).clamp_min(1e-300)

    def point(shift: Tensor) -> Tensor:
        return a / (gap + shift).clamp_min(1e-300)

    low = torch.zeros_like(size)
    high = size / reach.clamp_min(1e-300)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        outside = torch.linalg.vector_norm(point(middle), dim=1, keepdim=True) > reach
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    # Inside already at the floor: an interior maximum where T < 0, else the hard case.
    z = torch.where(gap + high > tiny, point(high), 0.0)
    missing = (reach.square() - z.square().sum(1, keepdim=True)).clamp_min(0.0).sqrt()
    hard = (high <= tiny) & (values[:, -1:] >= 0)
    top = torch.zeros_like(z)
    top[:, -1:] = torch.where(a[:, -1:] < 0, -missing, missing)
    z = torch.where(hard, z + top, z)
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    z = z * torch.where(length > reach, reach / length.clamp_min(1e-300), 1.0)
    return (vectors @ z.unsqueeze(2)).squeeze(2).to(c.dtype)


def newton(t: Tensor, c: Tensor, rcond: float = 1e-10) -> Tensor:
    r"""T^+ c for each of a batch: the stationary point of <c, z> - 1/2 <z, T z>.

    Eigenvalues up to rcond max|lam| count as 0.

    >>> import torch
    >>> newton(torch.diag(torch.tensor([2.0, 0.0])).unsqueeze(0), torch.tensor([[1.0, 1.0]]))
    tensor([[0.5000, 0.0000]])
    """
    if not 0 <= rcond < math.inf:
        raise ValueError(f"rcond must be finite and >= 0, got {rcond!r}")
    values, vectors = torch.linalg.eigh((t + t.transpose(1, 2)).double() / 2)
    used = values.abs() > rcond * values.abs().amax(1, keepdim=True)
    a = (vectors.transpose(1, 2) @ c.double().unsqueeze(2)).squeeze(2)
    z = torch.where(used, a / torch.where(used, values, 1.0), 0.0)
    return (vectors @ z.unsqueeze(2)).squeeze(2).to(c.dtype)
