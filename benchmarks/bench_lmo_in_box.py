"""lmo over ball and box at (128, 3072) float32."""

from __future__ import annotations

import math

import pytest

from .harness import batch, race_op

EPS = {math.inf: 8 / 255, 2.0: 2.0, 1.0: 20.0}


@pytest.mark.parametrize("p", [math.inf, 2.0, 1.0])
def bench_lmo_in_box(benchmark, p: float) -> None:
    t = batch(benchmark)
    race_op(benchmark, f"lmo in box p={p:g}", "lmo", t["g"], p, EPS[p], None, t["x"], 0.0, 1.0)
