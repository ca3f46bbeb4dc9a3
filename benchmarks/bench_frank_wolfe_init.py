"""frank_wolfe_init at (128, 3072) float32, the scaled start."""

from __future__ import annotations

import math

import pytest

from soatfast.ops.constants import INIT_SCALED

from .harness import batch, race_op


@pytest.mark.parametrize("p", [math.inf, 2.0, 1.0, 3.0])
def bench_frank_wolfe_init(benchmark, p: float) -> None:
    t = batch(benchmark)
    args = (t["g"], t["x"], p, 8 / 255, None, INIT_SCALED, 1.05, False, -math.inf, math.inf)
    race_op(benchmark, f"frank_wolfe_init p={p:g}", "frank_wolfe_init", *args)
