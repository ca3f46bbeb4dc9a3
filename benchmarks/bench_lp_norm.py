"""lp_norm at (128, 3072) float32."""

from __future__ import annotations

import math

import pytest

from . import harness


@pytest.mark.parametrize("backend", harness.BACKENDS)
@pytest.mark.parametrize("p", [math.inf, 2.0, 1.0, 3.0])
def test_lp_norm(benchmark, p: float, backend: str) -> None:
    t = harness.batch(benchmark)
    harness.run(benchmark, "lp_norm", backend, (t["g"], p))
