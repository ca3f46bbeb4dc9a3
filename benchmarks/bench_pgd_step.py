"""pgd_step at (128, 3072) float32; every row starts outside the ball."""

from __future__ import annotations

import math

import pytest

from .harness import batch, race_op

EPS = {math.inf: 8 / 255, 2.0: 2.0, 1.0: 20.0}
BALLS = [(math.inf, False), (2.0, False), (2.0, True), (1.0, False), (1.0, True)]


@pytest.mark.parametrize(("p", "exact"), BALLS)
def bench_pgd_step(benchmark, p: float, exact: bool) -> None:
    t = batch(benchmark)
    args = (t["x_adv"], t["g"], t["x"], p, EPS[p], None, EPS[p] / 4, None, 0.0, 1.0, exact, 31)
    race_op(benchmark, f"pgd_step p={p:g}{' exact' if exact else ''}", "pgd_step", *args)
