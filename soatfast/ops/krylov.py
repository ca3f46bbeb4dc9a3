"""The ops of a batched Krylov solve. :func:`soatfast.solvers.gmres` puts them together; most need only that.

A sample's state is its own: the basis V (B, m + 1, D); the Hessenberg matrix, column j in hessenberg[j] (m, m + 1, B),
and norms[j] = ||A v_j|| (m, B); the triangle R (m, m, B) that Givens rotations (m, 2, B) make of it; the rotated
right-hand side (m + 1, B); and two whole numbers, iterations (columns in use) and status
(:mod:`soatfast.ops.constants`). The small numbers of all samples lie side by side, B last: lanes of a vector on the
CPU, neighbouring threads on CUDA. Samples that are done are left alone, whatever comes in for them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from soatfast.ops.arguments import dtype_or_kind
from soatfast.ops.dispatch import kernel

_WHOLE = ("iterations", "status")


def _checked(like: Tensor, shapes: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Every tensor of its shape, of like's dtype (int32 for the whole numbers) and device."""
    if not isinstance(like, Tensor) or like.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"expected float32 or float64 tensors, got {getattr(like, 'dtype', type(like).__name__)}")
    for name, (t, shape) in shapes.items():
        dtype = torch.int32 if name in _WHOLE else like.dtype
        if not isinstance(t, Tensor) or t.dtype != dtype:
            raise TypeError(f"{name} must be a tensor of {dtype}, got {dtype_or_kind(t)}")
        if t.shape != shape:
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


def _check_column(column: int, m: int, count: int = 1) -> None:
    if not 0 <= column < m:
        raise ValueError(f"column must lie in 0..{m - 1}, got {column!r}")
    if not 1 <= count <= m - column:
        raise ValueError(f"count must lie in 1..{m - column}, got {count!r}")


def _probed(
    basis: Tensor, x: Tensor | None, probe: Tensor | None, step: float, **others: Tensor | None
) -> dict[str, tuple[Tensor, tuple[int, ...]]]:
    if (x is None) != (probe is None):
        raise ValueError("x and probe come together, got one of them")
    if not step > 0:
        raise ValueError(f"step must be > 0, got {step!r}")
    if probe is not None:
        _updated(probe=probe)
    shape = (basis.shape[0], basis.shape[2])
    return {name: (t, shape) for name, t in {"x": x, "probe": probe, **others}.items() if t is not None}


def arnoldi_start(
    basis: Tensor, r: Tensor, *, x: Tensor | None = None, probe: Tensor | None = None, step: float = 1.0
) -> Tensor:
    r"""v_0 = r / ||r||_2, the first block of the basis; returns ||r|| (B,), NaN for a sample that is not finite.

    v_0 = 0 where r is zero or not finite. The norm is scaled by max|r|.

    Args:
        basis: (B, m + 1, D); block 0 is written. Contiguous.
        r: (B, D).
        x, probe: (B, D); where they are given, probe becomes x + step v_0. probe is contiguous.
        step: see :func:`arnoldi_step`.

    >>> import torch
    >>> basis = torch.zeros(1, 2, 2)
    >>> arnoldi_start(basis, torch.tensor([[3.0, 4.0]])), basis[0, 0]
    (tensor([5.]), tensor([0.6000, 0.8000]))
    """
    rows, _, size = _dims(basis, "basis", "(B, m + 1, D)")
    _checked(basis, {"r": (r, (rows, size)), **_probed(basis, x, probe, step)})
    _updated(basis=basis)
    return kernel("arnoldi_start")(basis, r, x, probe, float(step))


def arnoldi_step(
    basis: Tensor,
    hessenberg: Tensor,
    norms: Tensor,
    w: Tensor,
    status: Tensor,
    column: int,
    *,
    base: Tensor | None = None,
    x: Tensor | None = None,
    probe: Tensor | None = None,
    step: float = 1.0,
) -> None:
    r"""Orthogonalises w = A v_j against v_0 .. v_j (classical Gram-Schmidt, twice) and appends v_{j+1} to the basis.

        h_i = <v_i, w>,  w' = w - sum_i h_i v_i  (twice; h adds up),  h_{j+1} = ||w'||,  v_{j+1} = w' / h_{j+1}

    Norms are scaled by max|w|. Where w' is rounding only, h_{j+1} <= 10 eps ||w||, the space is exhausted and
    v_{j+1} = 0. A sample with a NaN or an infinite entry in w gets h = NaN, which :func:`givens_step` takes note of,
    and v_{j+1} = 0: nothing that is not finite enters the basis.

    Args:
        basis: (B, m + 1, D) with v_0 .. v_j; v_{j+1} is written.
        hessenberg: (m, m + 1, B); hessenberg[j] is written: h, 0 behind j + 1.
        norms: (m, B); norms[j] = ||w|| is written.
        w: (B, D) matrix-vector product.
        status: (B,) int32; samples that are not active (0) get v_{j+1} = 0, h = 0 and norm 0.
        column: j.
        base: (B, D) gradient at x; where it is given, w is a gradient at a probe, and (w - base) / step stands for w.
        x, probe: (B, D); where they are given, probe becomes x + step v_{j+1}, the point of the next gradient. With
            them the op is all that a finite-difference Krylov step does between two passes.
        step: finite-difference step.

    What is written is contiguous.

    >>> import torch
    >>> basis = torch.zeros(1, 3, 2)
    >>> basis[0, 0, 0] = 1.0
    >>> hessenberg, norms = torch.zeros(2, 3, 1), torch.zeros(2, 1)
    >>> arnoldi_step(basis, hessenberg, norms, torch.tensor([[3.0, 4.0]]), torch.zeros(1, dtype=torch.int32), 0)
    >>> hessenberg[0, :, 0], norms[0], basis[0, 1]
    (tensor([3., 4., 0.]), tensor([5.]), tensor([0., 1.]))
    """
    rows, blocks, size = _dims(basis, "basis", "(B, m + 1, D)")
    state = {"hessenberg": (hessenberg, (blocks - 1, blocks, rows)), "norms": (norms, (blocks - 1, rows))}
    read = {"w": (w, (rows, size)), "status": (status, (rows,)), **_probed(basis, x, probe, step, base=base)}
    _checked(basis, {**state, **read})
    _updated(basis=basis, hessenberg=hessenberg, norms=norms)
    _check_column(column, blocks - 1)
    kernel("arnoldi_step")(basis, hessenberg, norms, w, status, column, base, x, probe, float(step))


def givens_step(
    triangle: Tensor,
    rotations: Tensor,
    rhs: Tensor,
    iterations: Tensor,
    status: Tensor,
    hessenberg: Tensor,
    norms: Tensor,
    target: Tensor,
    *,
    column: int,
    count: int = 1,
    rcond: float,
) -> Tensor:
    r"""Columns of the QR factorisation of the Hessenberg matrix, and the residuals that come with them for free.

    The stored rotations turn h, a new one (c, s) makes its last entry 0 and rho = hypot(h_j, h_{j+1}) the diagonal of
    R; the right-hand side turns with it, and |rhs_{j+1}| is the residual norm of the least-squares solution.

    A column with rho <= rcond max |R_ii| is rejected: the matrix is numerically singular on the Krylov space, and using
    it would blow the solution up. Status: CONVERGED where residual <= target, else BREAKDOWN where the space is
    exhausted, SINGULAR where the column is rejected, NONFINITE where h is not finite. Samples that are not active keep
    every number.

    Args:
        triangle, rotations, rhs, iterations, status: state, updated; see the module.
        hessenberg, norms: of :func:`arnoldi_step`.
        target: (B,) residual norm to reach.
        column: first j.
        count: columns.
        rcond: relative pivot below which a column is rejected, >= 0.

    Returns:
        residual (count, B): |rhs_{iterations}| after each column.
    """
    m, _, rows = _dims(triangle, "triangle", "(m, m, B)")
    state = {
        "triangle": (triangle, (m, m, rows)),
        "rotations": (rotations, (m, 2, rows)),
        "rhs": (rhs, (m + 1, rows)),
        "iterations": (iterations, (rows,)),
        "status": (status, (rows,)),
    }
    read = {"hessenberg": (hessenberg, (m, m + 1, rows)), "norms": (norms, (m, rows)), "target": (target, (rows,))}
    _checked(triangle, {**state, **read})
    _updated(**{name: t for name, (t, _) in state.items()})
    _check_column(column, m, count)
    if not rcond >= 0:
        raise ValueError(f"rcond must be >= 0, got {rcond!r}")
    updated = (triangle, rotations, rhs, iterations, status)
    return kernel("givens_step")(*updated, hessenberg, norms, target, column, count, float(rcond))


def triangular_solve(triangle: Tensor, rhs: Tensor, iterations: Tensor) -> Tensor:
    r"""y (m, B) with R y = rhs on each sample's first ``iterations`` columns, 0 behind them: back-substitution.

    Args:
        triangle: (m, m, B) upper triangles.
        rhs: (m + 1, B) right-hand sides; the last entry has no part in it.
        iterations: (B,) int32, columns in use.
    """
    m, _, rows = _dims(triangle, "triangle", "(m, m, B)")
    _checked(
        triangle,
        {"triangle": (triangle, (m, m, rows)), "rhs": (rhs, (m + 1, rows)), "iterations": (iterations, (rows,))},
    )
    return kernel("triangular_solve")(triangle, rhs, iterations)


def krylov_combine(basis: Tensor, y: Tensor, x0: Tensor | None = None) -> Tensor:
    r"""x = x0 + sum_{i < m} y_i v_i: (B, D).

    Args:
        basis: (B, m + 1, D); its last block has no part in it, nor have blocks behind the last y that is not 0.
        y: (m, B) coefficients.
        x0: (B, D), or None for 0.
    """
    rows, blocks, size = _dims(basis, "basis", "(B, m + 1, D)")
    shapes = {"y": (y, (blocks - 1, rows))}
    if x0 is not None:
        shapes["x0"] = (x0, (rows, size))
    _checked(basis, shapes)
    return kernel("krylov_combine")(basis, y, x0)
