"""replay_start at (128, 3072) float32: 128 scattered rows of a memory of 1024 in each of its dtypes."""

from __future__ import annotations

import pytest
import torch

from .bench_replay_step import MEMORY, remembered
from .harness import batch, op_candidates, race


@pytest.mark.parametrize("kept", MEMORY, ids=str)
def bench_replay_start(benchmark, kept: torch.dtype) -> None:
    t = batch(benchmark)
    args = (*remembered(kept, *t["x"].shape), t["x"], 8 / 255, None, 0.0, 1.0)
    moved = (8 + kept.itemsize) * t["x"].numel()  # x and the row read, x_adv written
    title = f"replay_start {str(kept).removeprefix('torch.')}"
    race(benchmark, title, op_candidates(benchmark, "replay_start", *args), bytes_moved=moved)
