"""Batches of linear systems, their products, and when two solves are the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import scipy.sparse.linalg
import torch
from torch import Tensor

from soatfast.solvers.krylov import GMRESResult

D = 24
KINDS = ("spd", "indefinite", "nonsymmetric", "singular-consistent", "repeated")


def system(kind: str, rows: int = 4, size: int = D, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """(A (B, D, D), b (B, D)) of moderate condition."""
    generator = torch.Generator().manual_seed(sum(map(ord, kind)))
    noise = torch.randn(rows, size, size, generator=generator, dtype=torch.float64)
    q = torch.linalg.qr(noise).Q
    b = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    values = torch.linspace(0.5, 4, size, dtype=torch.float64)
    if kind == "indefinite":
        values = torch.cat([-values[: size // 2], values[size // 2 :]])
    if kind == "singular-consistent":
        values = torch.where(torch.arange(size) < size // 3, 0.0, values)
    if kind == "repeated":
        values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).repeat(size)[:size]
    a = q @ torch.diag(values) @ q.transpose(1, 2)
    if kind == "nonsymmetric":
        a = 2 * torch.eye(size, dtype=torch.float64) + noise / math.sqrt(size)
    if kind == "singular-consistent":
        b = (a @ b.unsqueeze(2)).squeeze(2)
    return a.to(dtype), b.to(dtype)


def product(a: Tensor) -> Callable[[Tensor], Tensor]:
    """A product in which no sample depends on which others are there."""
    return lambda v: torch.stack([m @ row for m, row in zip(a, v, strict=True)])


def scipy_history(a: Tensor, b: Tensor, restart: int, cycles: int = 1) -> list[float]:
    history: list[float] = []
    scipy.sparse.linalg.gmres(
        a.numpy(),
        b.numpy(),
        rtol=1e-14,
        restart=restart,
        maxiter=cycles,
        callback=history.append,
        callback_type="pr_norm",
    )
    return history


def equal(one: GMRESResult, other: GMRESResult) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("x", "residual", "iterations", "status", "history")
    )
