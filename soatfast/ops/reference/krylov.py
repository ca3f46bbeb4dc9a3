"""The pure-PyTorch twins of the Krylov ops: one Arnoldi step, its Givens rotation, the small solve, the combination.

A basis is (B, m + 1, D), one sample a block of rows; everything else is the samples' small numbers, (.., B), one
sample beside the other. float32 and float64 only. A sample whose status is not ACTIVE is left as it is: its
rows of the basis become 0, its numbers stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soatfast.ops.constants import ACTIVE, BREAKDOWN, CONVERGED, NONFINITE, SINGULAR


def arnoldi_start(basis: Tensor, r: Tensor, x: Tensor | None, probe: Tensor | None, step: float) -> Tensor:
    m = r.abs().amax(1, keepdim=True)
    m = torch.where(m.isfinite() & (m > 0), m, 1.0)
    norm = torch.linalg.vector_norm(r / m, dim=1, keepdim=True)
    finite = (norm * m).isfinite()
    basis[:, 0] = torch.where(finite & (norm > 0), r / m / torch.where(norm > 0, norm, 1.0), 0.0)
    if x is not None and probe is not None:
        probe.copy_(x + step * basis[:, 0])
    return torch.where(finite, norm * m, torch.nan).squeeze(1)


def arnoldi_step(
    basis: Tensor,
    hessenberg: Tensor,
    norms: Tensor,
    w: Tensor,
    status: Tensor,
    column: int,
    base: Tensor | None,
    x: Tensor | None,
    probe: Tensor | None,
    step: float,
) -> None:
    """Classical Gram-Schmidt, twice (CGS2): orthogonal to rounding, in four products a step."""
    if base is not None:
        w = (w - base) * (1 / step)
    known = basis[:, : column + 1]  # (B, j + 1, D)
    m = w.abs().amax(1, keepdim=True)
    active = (status == ACTIVE).unsqueeze(1)
    m = torch.where(active & m.isfinite() & (m > 0), m, 1.0)
    r = torch.where(active, w / m, 0.0)
    norm = torch.linalg.vector_norm(r, dim=1, keepdim=True)
    finite = (norm * m).isfinite()
    r = torch.where(finite, r, 0.0)
    h = r.new_zeros(len(r), column + 1, 1)
    for _ in range(2):
        part = known @ r.unsqueeze(2)  # (B, j + 1, 1)
        r = r - (known.transpose(1, 2) @ part).squeeze(2)
        h = h + part
    left = torch.linalg.vector_norm(r, dim=1, keepdim=True)
    go_on = finite & ~_exhausted(left, norm)
    basis[:, column + 1] = torch.where(go_on, r / torch.where(go_on, left, 1.0), 0.0)
    entries = torch.where(finite, torch.cat([h.squeeze(2), left], 1) * m, torch.nan)
    hessenberg[column] = 0.0
    hessenberg[column, : column + 2] = entries.t()
    norms[column] = (norm * m).squeeze(1)
    if x is not None and probe is not None:
        probe.copy_(x + step * basis[:, column + 1])


def _exhausted(left: Tensor, norm: Tensor) -> Tensor:
    """Nothing but rounding is left of a vector of this norm."""
    return left <= 10 * torch.finfo(norm.dtype).eps * norm


def givens_step(
    triangle: Tensor,
    rotations: Tensor,
    rhs: Tensor,
    iterations: Tensor,
    status: Tensor,
    hessenberg: Tensor,
    norms: Tensor,
    target: Tensor,
    column: int,
    count: int,
    rcond: float,
) -> Tensor:
    state = (triangle, rotations, rhs, iterations, status)
    columns = range(column, column + count)
    return torch.stack([_givens_column(*state, hessenberg[j], norms[j], target, j, rcond) for j in columns])


def _givens_column(
    triangle: Tensor,
    rotations: Tensor,
    rhs: Tensor,
    iterations: Tensor,
    status: Tensor,
    h: Tensor,
    norm: Tensor,
    target: Tensor,
    j: int,
    rcond: float,
) -> Tensor:
    active = status == ACTIVE
    finite = norm.isfinite() & h[: j + 2].isfinite().all(0)
    running = h[0].clone()
    for i in range(j):
        c, s = rotations[i]
        below = h[i + 1]
        triangle[i, j] = torch.where(active & finite, c * running + s * below, triangle[i, j])
        running = c * below - s * running
    left = h[j + 1]
    rho = torch.hypot(running, left)
    diagonal = triangle.diagonal()[:, :j].abs()  # (B, j)
    largest = torch.cat([rho.unsqueeze(1), diagonal], 1).amax(1)
    accept = active & finite & (rho > rcond * largest)
    safe = torch.where(accept, rho, 1.0)
    c, s = running / safe, left / safe
    triangle[j, j] = torch.where(accept, rho, triangle[j, j])
    rotations[j] = torch.where(accept, torch.stack([c, s]), rotations[j])
    old = rhs[j].clone()
    rhs[j] = torch.where(accept, c * old, old)
    rhs[j + 1] = torch.where(accept, -s * old, rhs[j + 1])
    iterations.copy_(torch.where(accept, j + 1, iterations))
    residual = rhs.gather(0, iterations.long().unsqueeze(0)).squeeze(0).abs()
    fresh = torch.where(_exhausted(left, norm), BREAKDOWN, ACTIVE)
    fresh = torch.where(residual <= target, CONVERGED, fresh)
    fresh = torch.where(accept, fresh, torch.where(finite, SINGULAR, NONFINITE))
    status.copy_(torch.where(active, fresh, status))
    return residual


def triangular_solve(triangle: Tensor, rhs: Tensor, iterations: Tensor) -> Tensor:
    m = triangle.shape[0]
    used = torch.arange(m, device=rhs.device).unsqueeze(1) < iterations  # (m, B): columns behind stay out of it
    known = torch.where(used, triangle, 0.0)
    pivot = torch.where(used, triangle.diagonal().t(), 1.0)
    y = rhs.new_zeros(m, rhs.shape[1])
    for i in reversed(range(m)):
        left = rhs[i] - (known[i] * y).sum(0)
        y[i] = torch.where(used[i], left / pivot[i], 0.0)
    return y


def krylov_combine(basis: Tensor, y: Tensor, x0: Tensor | None = None) -> Tensor:
    y = y.t()  # (B, m)
    used = torch.where((y != 0).unsqueeze(2), basis[:, : y.shape[1]], 0.0)  # others may hold anything
    step = (y.unsqueeze(1) @ used).squeeze(1)
    return step if x0 is None else x0 + step
