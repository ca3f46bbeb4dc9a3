"""frank_wolfe_step at (128, 3072) float32, forward Euler and central differences."""

from __future__ import annotations

import math

import pytest

from .harness import batch, race_op


@pytest.mark.parametrize("scheme", ["fe", "cd"])
@pytest.mark.parametrize("p", [math.inf, 2.0, 1.0, 3.0])
def bench_frank_wolfe_step(benchmark, p: float, scheme: str) -> None:
    t = batch(benchmark)
    central = scheme == "cd"
    g1 = t["pair"] if central else t["plus"]
    args = (t["g"], g1, t["v"], t["x"], p, 8 / 255, None, 0.5, 1.05, central, False, 0.0, 1.0, False)
    race_op(benchmark, f"frank_wolfe_step {scheme} p={p:g}", "frank_wolfe_step", *args)
