"""The ops of a batched Krylov solve. :func:`soatfast.krylov.gmres` puts them together; most users need only that.

A sample's state is its own: the basis V (B, m + 1, D), the triangle R (B, m, m) that Givens rotations (B, m, 2) make of
the Hessenberg matrix, the rotated right-hand side (B, m + 1), and two whole numbers, iterations (columns in use) and
status (:mod:`soatfast.ops.constants`). Samples that are done are left alone, whatever comes in for them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ._dispatch import kernel

_WHOLE = ("iterations", "status")


def _checked(like: Tensor, shapes: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Every tensor of its shape, of like's dtype (int32 for the whole numbers) and device."""
    if not isinstance(like, Tensor) or like.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected float32 or float64 tensors, got {getattr(like, 'dtype', type(like).__name__)}")
    for name, (t, shape) in shapes.items():
        dtype = torch.int32 if name in _WHOLE else like.dtype
        if not isinstance(t, Tensor) or t.dtype != dtype:
            raise TypeError(f"{name} must be a tensor of {dtype}, got {getattr(t, 'dtype', type(t).__name__)}")
        if tuple(t.shape) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(t.shape)}")
        if t.device != like.device:
            raise ValueError(f"{name} is on {t.device}, expected {like.device}")


def _updated(**tensors: Tensor) -> None:
    for name, t in tensors.items():
        if not t.is_contiguous():
            raise ValueError(f"{name} must be contiguous: it is updated in place")


def _dims(t: Tensor, name: str, what: str) -> tuple[int, int, int]:
    if not isinstance(t, Tensor) or t.dim() != 3:
        raise ValueError(f"{name} must have shape {what}, got {tuple(getattr(t, 'shape', ()))}")
    return tuple(t.shape)  # type: ignore[return-value]


def _check_column(column: int, m: int) -> None:
    if not 0 <= column < m:
        raise ValueError(f"column must lie in 0..{m - 1}, got {column!r}")


def arnoldi_step(basis: Tensor, w: Tensor, status: Tensor, column: int) -> tuple[Tensor, Tensor]:
    r"""Orthogonalises w = A v_j against v_0 .. v_j (classical Gram-Schmidt, twice) and appends v_{j+1} to the basis.

        h_i = <v_i, w>,  w' = w - sum_i h_i v_i  (twice; h adds up),  h_{j+1} = ||w'||,  v_{j+1} = w' / h_{j+1}

    Norms are scaled by max|w|. Where w' is rounding only, h_{j+1} <= 10 eps ||w||, the space is exhausted and
    v_{j+1} = 0. A sample with a NaN or an infinite entry in w gets h = NaN, which :func:`givens_step` takes note of,
    and v_{j+1} = 0: nothing that is not finite enters the basis.

    Args:
        basis: (B, m + 1, D) with v_0 .. v_j; v_{j+1} is written. Contiguous.
        w: (B, D) matrix-vector product.
        status: (B,) int32; samples that are not active (0) get v_{j+1} = 0 and h = 0.
        column: j.

    Returns:
        h (B, m + 1), column j of the Hessenberg matrix, 0 behind j + 1; ||w|| (B,), 0 where not active.

    >>> import torch
    >>> basis = torch.zeros(1, 3, 2)
    >>> basis[0, 0, 0] = 1.0
    >>> arnoldi_step(basis, torch.tensor([[3.0, 4.0]]), torch.zeros(1, dtype=torch.int32), 0)
    (tensor([[3., 4., 0.]]), tensor([5.]))
    >>> basis[0, 1]
    tensor([0., 1.])
    """
    rows, blocks, size = _dims(basis, "basis", "(B, m + 1, D)")
    _checked(basis, {"w": (w, (rows, size)), "status": (status, (rows,))})
    _updated(basis=basis)
    _check_column(column, blocks - 1)
    return kernel("arnoldi_step")(basis, w, status, column)


def givens_step(
    triangle: Tensor,
    rotations: Tensor,
    rhs: Tensor,
    iterations: Tensor,
    status: Tensor,
    h: Tensor,
    norm: Tensor,
    target: Tensor,
    *,
    column: int,
    rcond: float,
) -> Tensor:
    r"""Column j of the QR factorisation of the Hessenberg matrix, and the residual that comes with it for free.

    The stored rotations turn h, a new one (c, s) makes its last entry 0 and rho = hypot(h_j, h_{j+1}) the diagonal of
    R; the right-hand side turns with it, and |rhs_{j+1}| is the residual norm of the least-squares solution.

    A column with rho <= rcond max |R_ii| is rejected: the matrix is numerically singular on the Krylov space, and using
    it would blow the solution up. Status: CONVERGED where residual <= target, else BREAKDOWN where the space is
    exhausted, SINGULAR where the column is rejected, NONFINITE where h is not finite. Samples that are not active keep
    every number.

    Args:
        triangle, rotations, rhs, iterations, status: state, updated; see the module.
        h, norm: of :func:`arnoldi_step`.
        target: (B,) residual norm to reach.
        column: j.
        rcond: relative pivot below which a column is rejected, >= 0.

    Returns:
        residual (B,): |rhs_{iterations}|.
    """
    rows, m, _ = _dims(triangle, "triangle", "(B, m, m)")
    state = {
        "triangle": (triangle, (rows, m, m)),
        "rotations": (rotations, (rows, m, 2)),
        "rhs": (rhs, (rows, m + 1)),
        "iterations": (iterations, (rows,)),
        "status": (status, (rows,)),
    }
    _checked(triangle, {**state, "h": (h, (rows, m + 1)), "norm": (norm, (rows,)), "target": (target, (rows,))})
    _updated(**{name: t for name, (t, _) in state.items()})
    _check_column(column, m)
    if not rcond >= 0:
        raise ValueError(f"rcond must be >= 0, got {rcond!r}")
    return kernel("givens_step")(triangle, rotations, rhs, iterations, status, h, norm, target, column, float(rcond))


def triangular_solve(triangle: Tensor, rhs: Tensor, iterations: Tensor) -> Tensor:
    r"""y (B, m) with R y = rhs on each sample's first ``iterations`` columns, 0 behind them: back-substitution.

    Args:
        triangle: (B, m, m) upper triangles.
        rhs: (B, m + 1) right-hand sides; the last entry has no part in it.
        iterations: (B,) int32, columns in use.
    """
    rows, m, _ = _dims(triangle, "triangle", "(B, m, m)")
    _checked(
        triangle,
        {"triangle": (triangle, (rows, m, m)), "rhs": (rhs, (rows, m + 1)), "iterations": (iterations, (rows,))},
    )
    return kernel("triangular_solve")(triangle, rhs, iterations)


def krylov_combine(basis: Tensor, y: Tensor, x0: Tensor | None = None) -> Tensor:
    r"""x = x0 + sum_{i < m} y_i v_i: (B, D).

    Args:
        basis: (B, m + 1, D); its last block has no part in it, nor have blocks behind the last y that is not 0.
        y: (B, m) coefficients.
        x0: (B, D), or None for 0.
    """
    rows, blocks, size = _dims(basis, "basis", "(B, m + 1, D)")
    shapes = {"y": (y, (rows, blocks - 1))}
    if x0 is not None:
        shapes["x0"] = (x0, (rows, size))
    _checked(basis, shapes)
    return kernel("krylov_combine")(basis, y, x0)
