"""lmo at (128, 3072) float32."""

from __future__ import annotations

import math

import pytest

from .harness import batch, race_op


@pytest.mark.parametrize("p", [math.inf, 2.0, 1.0, 3.0])
def bench_lmo(benchmark, p: float) -> None:
    t = batch(benchmark)
    race_op(benchmark, f"lmo p={p:g}", "lmo", t["g"], p, 8 / 255, None)
