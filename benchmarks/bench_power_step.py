"""power_step at (128, 3072) float32."""

from __future__ import annotations

from .harness import batch, race_op


def bench_power_step(benchmark) -> None:
    t = batch(benchmark)
    race_op(benchmark, "power_step", "power_step", t["g"], t["plus"], t["v"], t["x"], 0.1)
