"""Quadratic models q(z) = <c, z> + 1/2 <z, T z> in a few dimensions, a batch of them: maximised on a ball, exactly.

A Krylov space or the row space of a Jacobian turns a problem in D dimensions into one in k: with orthonormal columns V,
c = V^T g and T = V^T H V. k is small, so everything is done through eigh, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soatfast.ops.arguments import check_number

_NEWTON = 14  # two more than problems over 12 orders of magnitude in 1 to 50 dimensions need to the last bit


def trust_region(t: Tensor, c: Tensor, radius: float | Tensor) -> Tensor:
    r"""argmax of <c, z> + 1/2 <z, T z> over ||z||_2 <= radius, for each of a batch.

    The maximiser solves (lam I - T) z = c with lam >= max(lam_max(T), 0), and lam = 0 or ||z|| = radius (More and
    Sorensen 1983). lam is found by Newton's method on 1 / ||z(lam)||, which is concave in it, from the left: no step
    goes too far. Where c has no part along the top eigenvector and what is left does not reach the sphere (the hard
    case), the top eigenvector fills it up.

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
    safe = reach.clamp_min(1e-300)
    tiny = 1e-14 * torch.maximum(gap.amax(1, keepdim=True), size / safe).clamp_min(1e-300)
    inside = torch.linalg.vector_norm(a / (gap + tiny), dim=1, keepdim=True) <= reach
    # No entry of z alone leaves the ball: a shift below the one sought, where ||z|| <= sqrt(k) radius.
    shift = torch.maximum((a.abs() / safe - gap).amax(1, keepdim=True), tiny)
    for _ in range(_NEWTON):
        damped = gap + shift
        squares = (a / damped).square()
        norm2 = squares.sum(1, keepdim=True)
        slope = (squares / damped).sum(1, keepdim=True).clamp_min(1e-300)
        shift = shift + (norm2.sqrt() / safe - 1).clamp_min(0) * norm2 / slope
    # Inside already at the floor: an interior maximum where T < 0, else the hard case.
    damped = gap + torch.where(inside, 0.0, shift)
    z = torch.where(damped > tiny, a / damped.clamp_min(1e-300), 0.0)
    missing = (reach.square() - z.square().sum(1, keepdim=True)).clamp_min(0.0).sqrt()
    hard = inside & (values[:, -1:] >= 0)
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
    check_number(rcond, "rcond", above=False)
    values, vectors = torch.linalg.eigh((t + t.transpose(1, 2)).double() / 2)
    used = values.abs() > rcond * values.abs().amax(1, keepdim=True)
    a = (vectors.transpose(1, 2) @ c.double().unsqueeze(2)).squeeze(2)
    z = torch.where(used, a / torch.where(used, values, 1.0), 0.0)
    return (vectors @ z.unsqueeze(2)).squeeze(2).to(c.dtype)
