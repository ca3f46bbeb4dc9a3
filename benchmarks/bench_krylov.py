"""Krylov ops and gmres: 128 systems of D = 3072, 20 steps, float32, with products as cheap as they get.

Baselines: the eager PyTorch twins in the same solver, a loop of SciPy's gmres over the samples, and for the small
problems torch.linalg.lstsq on the batch of Hessenberg matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from torch import Tensor

from soatfast import ops
from soatfast.solvers.krylov import arnoldi, gmres

from .harness import SIZE, race, rows, samples

STEPS = 20


def _diagonal(count: int) -> tuple[Tensor, Tensor]:
    """(entries (B, D) of diagonal matrices, b (B, D)): the cheapest product there is, D multiplications."""
    t = rows("x", "b", shape=(count, SIZE))
    return 0.5 + t["x"], t["b"]


def _scipy(matvecs: Iterable[Callable[[np.ndarray], np.ndarray]], b: Tensor) -> Tensor:
    solutions = []
    for matvec, right in zip(matvecs, b.numpy(), strict=True):
        shape = (len(right), len(right))
        operator = scipy.sparse.linalg.LinearOperator(shape, matvec=matvec, dtype=right.dtype)
        x, _ = scipy.sparse.linalg.gmres(operator, right, rtol=0.0, restart=STEPS, maxiter=1)
        solutions.append(torch.from_numpy(x))
    return torch.stack(solutions)


def bench_gmres(benchmark) -> None:
    diagonal, b = _diagonal(samples(benchmark))

    def solve() -> Tensor:
        return gmres(lambda v: v * diagonal, b, max_dim=STEPS, rtol=0.0).x

    def eager() -> Tensor:
        with ops.backend("reference"):
            return solve()

    candidates: dict[str, Callable[[], Tensor]] = {"soatfast": solve, "eager": eager}
    candidates["scipy, one by one"] = lambda: _scipy([partial(np.multiply, d) for d in diagonal.numpy()], b)
    race(benchmark, f"gmres, {STEPS} steps", candidates)


def bench_gmres_without_products(benchmark) -> None:
    """The products of a solve are kept from a first one and handed out again: only what is between them is timed."""
    diagonal, b = _diagonal(samples(benchmark))
    basis = arnoldi(lambda v: v * diagonal, b, max_dim=STEPS).basis
    products = [basis[:, j] * diagonal for j in range(STEPS)]

    def solve() -> Tensor:
        left = iter(products)
        return gmres(lambda v: next(left), b, max_dim=STEPS, rtol=0.0).x

    def eager() -> Tensor:
        with ops.backend("reference"):
            return solve()

    kept: list[list[np.ndarray]] = [[] for _ in b]

    def keep(i: int, v: np.ndarray) -> np.ndarray:
        kept[i].append(v * diagonal[i].numpy())
        return kept[i][-1].copy()  # SciPy orthogonalises in place

    _scipy([partial(keep, i) for i in range(len(b))], b)

    def scipy_loop() -> Tensor:
        again = [iter(products) for products in kept]
        return _scipy([lambda v, left=left: next(left).copy() for left in again], b)

    candidates = {"soatfast": solve, "eager": eager, "scipy, one by one": scipy_loop}
    race(benchmark, f"gmres, {STEPS} steps, products excluded", candidates)


def bench_givens_and_triangular_solve(benchmark) -> None:
    """min ||beta e_1 - H y|| of every sample: rotations and solve, all columns in one call, against a batched lstsq.

    "step by step" is a call for each column, as gmres makes where it asks after every product.
    """
    diagonal, b = _diagonal(samples(benchmark))
    h = arnoldi(lambda v: v * diagonal, b, max_dim=STEPS).hessenberg.contiguous()  # (B, m + 1, m)
    hessenberg = h.permute(2, 1, 0).contiguous()
    count, norms = len(h), torch.linalg.vector_norm(hessenberg, dim=1)
    right = torch.zeros(count, STEPS + 1, 1)
    right[:, 0] = 1.0
    target = torch.zeros(count)

    def solve(columns: int = STEPS) -> Tensor:
        triangle, rotations = torch.zeros(STEPS, STEPS, count), torch.zeros(STEPS, 2, count)
        rhs, whole = torch.zeros(STEPS + 1, count), torch.zeros(2, count, dtype=torch.int32)
        rhs[0] = 1.0
        state = (triangle, rotations, rhs, whole[0], whole[1])
        for j in range(0, STEPS, columns):
            ops.givens_step(*state, hessenberg, norms, target, column=j, count=columns, rcond=0.0)
        return ops.triangular_solve(triangle, rhs, whole[0]).t()

    def eager() -> Tensor:
        with ops.backend("reference"):
            return solve()

    def lstsq() -> Tensor:
        return torch.linalg.lstsq(h, right).solution.squeeze(2)

    race(
        benchmark,
        f"Givens steps and solve, m = {STEPS}",
        {"soatfast": solve, "step by step": partial(solve, 1), "eager": eager, "lstsq": lstsq},
    )


@pytest.mark.parametrize("column", [4, 19])
def bench_arnoldi_step(benchmark, column: int) -> None:
    """Budget: three reads of the basis (the architecture counts four), w, and the new vector."""
    diagonal, b = _diagonal(samples(benchmark))
    space = arnoldi(lambda v: v * diagonal, b, max_dim=STEPS)
    basis, status = space.basis, torch.zeros(len(b), dtype=torch.int32)
    w = basis[:, column] * diagonal
    hessenberg, norms = torch.zeros(STEPS, STEPS + 1, len(b)), torch.zeros(STEPS, len(b))

    def step() -> Tensor:
        ops.arnoldi_step(basis, hessenberg, norms, w, status, column)
        return hessenberg[column]

    def eager() -> Tensor:
        with ops.backend("reference"):
            return step()

    moved = 4 * b.numel() * (3 * (column + 1) + 4)
    race(benchmark, f"arnoldi_step, column {column}", {"soatfast": step, "eager": eager}, bytes_moved=moved)


def bench_krylov_combine(benchmark) -> None:
    diagonal, b = _diagonal(samples(benchmark))
    basis = arnoldi(lambda v: v * diagonal, b, max_dim=STEPS).basis
    y = torch.ones(STEPS, len(b))

    def eager() -> Tensor:
        with ops.backend("reference"):
            return ops.krylov_combine(basis, y, b)

    moved = 4 * b.numel() * (STEPS + 2)
    race(
        benchmark,
        "krylov_combine",
        {"soatfast": lambda: ops.krylov_combine(basis, y, b), "eager": eager},
        bytes_moved=moved,
    )
