"""project at (128, 3072) float32; every row starts outside the ball."""

from __future__ import annotations

import math

import pytest

from .harness import batch, race_op

EPS = {math.inf: 8 / 255, 2.0: 2.0, 1.0: 20.0}
BALLS = [(math.inf, False), (2.0, False), (2.0, True), (1.0, False), (1.0, True)]


@pytest.mark.parametrize(("p", "exact"), BALLS)
def bench_project(benchmark, p: float, exact: bool) -> None:
    t = batch(benchmark)
    args = (t["x_adv"], t["x"], p, EPS[p], None, 0.0, 1.0, exact)
    race_op(benchmark, f"project p={p:g}{' exact' if exact else ''}", "project", *args)
