"""frank_wolfe_init at (128, 3072) float32, the scaled start."""

from __future__ import annotations

import math

import pytest

from soatfast.ops.reference import INIT_SCALED

from . import harness


@pytest.mark.parametrize("backend", harness.BACKENDS)
@pytest.mark.parametrize("p", [math.inf, 2.0, 1.0, 3.0])
def test_frank_wolfe_init(benchmark, p: float, backend: str) -> None:
    t = harness.batch(benchmark)
    args = (t["g"], t["x"], p, 8 / 255, None, INIT_SCALED, 1.05, False)
    harness.run(benchmark, "frank_wolfe_init", backend, args)
