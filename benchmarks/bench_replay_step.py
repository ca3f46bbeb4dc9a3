"""replay_step at (128, 3072) float32: 128 scattered rows of a memory of 1024 in each of its dtypes."""

from __future__ import annotations

import math

import pytest
import torch

from .harness import batch, op_candidates, race

SAMPLES = 1024  # of the memory
MEMORY = (torch.float32, torch.bfloat16, torch.int8)


def remembered(dtype: torch.dtype, rows: int, size: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """(memory (N, D), scale (N,) for int8, index (rows,) in no order)."""
    generator = torch.Generator().manual_seed(7)
    u = torch.randn(SAMPLES, size, generator=generator)
    u /= torch.linalg.vector_norm(u, dim=1, keepdim=True)  # in the unit ball of every p >= 2
    index = torch.randperm(SAMPLES, generator=generator)[:rows]
    if dtype != torch.int8:
        return u.to(dtype), None, index
    top = u.abs().amax(1)
    return (127 * u / top.unsqueeze(1)).to(dtype), top, index


@pytest.mark.parametrize("kept", MEMORY, ids=str)
@pytest.mark.parametrize("p", [math.inf, 2.0])
def bench_replay_step(benchmark, p: float, kept: torch.dtype) -> None:
    t = batch(benchmark)
    memory = remembered(kept, *t["x"].shape)
    args = (*memory, t["g"], t["x"], p, 8 / 255, None, 0.5, 0.0, 1.0, False)
    title = f"replay_step {str(kept).removeprefix('torch.')} p={p:g}"
    moved = (12 + 2 * kept.itemsize) * t["x"].numel()  # g, x and the row read; the row and x_adv written
    race(benchmark, title, op_candidates(benchmark, "replay_step", *args), bytes_moved=moved, checked=False)
