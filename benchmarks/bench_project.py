"""project at (128, 3072) float32; most rows are outside the ball."""

from __future__ import annotations

import math

import pytest

from . import harness

EPS = {math.inf: 8 / 255, 2.0: 2.0, 1.0: 20.0}


@pytest.mark.parametrize("backend", harness.BACKENDS)
@pytest.mark.parametrize(("p", "exact"), [(math.inf, False), (2.0, False), (2.0, True), (1.0, False), (1.0, True)])
def test_project(benchmark, p: float, exact: bool, backend: str) -> None:
    t = harness.batch(benchmark)
    harness.run(benchmark, "project", backend, (t["x_adv"], t["x"], p, EPS[p], None, 0.0, 1.0, exact))
