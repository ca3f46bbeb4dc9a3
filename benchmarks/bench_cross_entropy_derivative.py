"""cross_entropy_derivative at (128, 10) and (128, 1000) float32."""

from __future__ import annotations

import pytest
import torch

from .harness import SMOKE_ROWS, race_op, rows


@pytest.mark.parametrize("classes", [10, 1000])
def bench_cross_entropy_derivative(benchmark, classes: int) -> None:
    count = SMOKE_ROWS if benchmark.disabled else 128
    logits = 4 * rows("logits", shape=(count, classes))["logits"]
    y = torch.arange(count) % classes
    race_op(benchmark, f"cross_entropy_derivative, K = {classes}", "cross_entropy_derivative", logits, y, 1.0)
