"""Arguments and calls of the Krylov ops, for the tests on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from soatfast.ops import reference
from soatfast.ops.constants import CONVERGED

OPS = ("arnoldi_start", "arnoldi_step", "difference_step", "givens_step", "triangular_solve", "krylov_combine")
SHAPES = ((1, 1, 1), (3, 2, 5), (2, 7, 33), (3, 9, 1000), (2, 6, 4099))  # B, m, D
DTYPES = (torch.float32, torch.float64)
# difference_step is arnoldi_step with all its options.
UPDATED = {
    "arnoldi_start": (0, 3),
    "arnoldi_step": (0, 1, 2),
    "difference_step": (0, 1, 2, 8),
    "givens_step": (0, 1, 2, 3, 4),
}
OF_SAMPLES = {
    "arnoldi_start": (0, 1, 2, 3),
    "arnoldi_step": (0, 3, 4),
    "difference_step": (0, 3, 4, 6, 7, 8),
    "krylov_combine": (0, 2),
}  # arguments with the batch first; else it is last

every_op = pytest.mark.parametrize("op", OPS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def kernel(op: str) -> Callable:
    return getattr(torch.ops.soatfast, name_of(op)).default


def twin(op: str) -> Callable:
    return getattr(reference, name_of(op))


def name_of(op: str) -> str:
    return "arnoldi_step" if op == "difference_step" else op


def make_args(op: str, rows: int, m: int, size: int, dtype: torch.dtype = torch.float64, column: int | None = None):
    """Arguments of a step in the middle of a solve; the last sample of three or more is done already."""
    generator = torch.Generator().manual_seed(7 * rows + m + size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    j = min(m, size) // 2 if column is None else column
    status = torch.zeros(rows, dtype=torch.int32)
    status[2:] = CONVERGED
    if op in ("arnoldi_start", "arnoldi_step", "difference_step", "krylov_combine"):
        basis = torch.zeros(rows, m + 1, size, dtype=torch.float64)
        known = min(j + 1, size)
        basis[:, :known] = torch.linalg.qr(normal(rows, size, known)).Q.transpose(1, 2)
        w, base, x, probe = (normal(rows, size).to(dtype) for _ in range(4))
        if op == "arnoldi_start":
            return basis.to(dtype), w, x, probe, 0.01
        if op in ("arnoldi_step", "difference_step"):
            hessenberg, norms = normal(m, m + 1, rows).to(dtype), normal(m, rows).to(dtype)
            options = (base, x, probe, 0.01) if op == "difference_step" else (None, None, None, 1.0)
            return basis.to(dtype), hessenberg, norms, w, status, j, *options
        return basis.to(dtype), normal(m, rows).to(dtype), normal(rows, size).to(dtype)
    triangle = (torch.triu(normal(rows, m, m)) + 3 * torch.eye(m, dtype=torch.float64)).permute(1, 2, 0).contiguous()
    rhs, iterations = normal(m + 1, rows), torch.full((rows,), j, dtype=torch.int32)
    if op == "triangular_solve":
        return triangle.to(dtype), rhs.to(dtype), iterations
    angle = normal(m, rows)
    rotations = torch.stack([angle.cos(), angle.sin()], 1)
    h = torch.triu(normal(rows, m + 1, m), diagonal=-1).permute(2, 1, 0).contiguous()
    h[range(m), range(1, m + 1)] = h[range(m), range(1, m + 1)].abs()
    state = (triangle, rotations, rhs, iterations, status, h, torch.linalg.vector_norm(h, dim=1))
    numbers = tuple(t.to(dtype) if t.is_floating_point() else t for t in state)
    return (*numbers, torch.full((rows,), 1e-3, dtype=dtype), j, min(2, m - j), 1e-5)


def call(op: str, function: Callable, args: tuple) -> tuple[Tensor, ...]:
    """Results, then the arguments as they are afterwards; args stay."""
    args = tuple(a.clone() if isinstance(a, Tensor) else a for a in args)
    out = function(*args)
    return (*(() if out is None else (out,)), *(args[i] for i in UPDATED.get(op, ())))


def samples(op: str, args: tuple, chosen: slice | list[int]) -> tuple:
    """The arguments of some samples."""
    first = OF_SAMPLES.get(op, ())
    return tuple(
        (a[chosen] if i in first else a[..., chosen].contiguous()) if isinstance(a, Tensor) else a
        for i, a in enumerate(args)
    )


def results_of(op: str, results: tuple[Tensor, ...], chosen: slice | list[int]) -> list[Tensor]:
    """The same of what :func:`call` returns: a basis and a combination have the batch first."""
    first = {"arnoldi_start": (1, 2), "arnoldi_step": (0,), "difference_step": (0, 3), "krylov_combine": (0,)}
    return [t[chosen] if i in first.get(op, ()) else t[..., chosen] for i, t in enumerate(results)]


def double(args: tuple) -> tuple:
    return tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
