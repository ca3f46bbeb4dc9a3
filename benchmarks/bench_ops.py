"""Each op at (128, 3072) float32 against the eager reference and torch.compile of it.

    pytest benchmarks/bench_ops.py --benchmark-json=runs/bench.json && python -m benchmarks.report runs/bench.json
"""

import math

import pytest

from benchmarks.harness import BUDGET, op_candidates, race, rows

ELEMENTS = 128 * 3072
EPS = {1: 12.0, 1.5: 3.0, 2: 0.5, 3: 0.2, math.inf: 8 / 255}
BOUNDS = (0.0, 1.0)


def run(benchmark, title: str, name: str, *args) -> None:
    budget = BUDGET.get(f"{name} central" if "central" in title else name, BUDGET[name])
    race(benchmark, title, op_candidates(benchmark, name, *args), inner=4, bytes_moved=budget * ELEMENTS)


@pytest.mark.parametrize("p", [math.inf, 2, 1, 3])
def bench_lmo(benchmark, p):
    run(benchmark, f"lmo p={p}", "lmo", rows("g")["g"], float(p), EPS[p], None)


@pytest.mark.parametrize("p", [math.inf, 2])
def bench_lp_norm(benchmark, p):
    run(benchmark, f"lp_norm p={p}", "lp_norm", rows("g")["g"], float(p))


@pytest.mark.parametrize("p", [math.inf, 2])
def bench_frank_wolfe_init(benchmark, p):
    t = rows("g0", "x")
    run(benchmark, f"frank_wolfe_init p={p}", "frank_wolfe_init", t["g0"], t["x"], float(p), EPS[p], None, 0, 1.05, False)


@pytest.mark.parametrize("p", [math.inf, 2, 3])
def bench_frank_wolfe_step(benchmark, p):
    t = rows("g0", "g1", "v", "x")
    args = (t["g0"], t["g1"], 0.01 * t["v"], t["x"], float(p), EPS[p], None, 2 / 3, 1.05, False, False, *BOUNDS)
    run(benchmark, f"frank_wolfe_step p={p}", "frank_wolfe_step", *args)


@pytest.mark.parametrize("p", [math.inf, 2])
def bench_frank_wolfe_step_central(benchmark, p):
    t = rows("g0", "v", "x")
    pair = rows("pair", shape=(256, 3072))["pair"]
    args = (t["g0"], pair, 0.01 * t["v"], t["x"], float(p), EPS[p], None, 2 / 3, 0.95, True, False, *BOUNDS)
    run(benchmark, f"frank_wolfe_step central p={p}", "frank_wolfe_step", *args)


@pytest.mark.parametrize("p", [math.inf, 2])
def bench_pgd_step(benchmark, p):
    t = rows("noise", "g", "x")
    x_adv = (t["x"] + 0.02 * t["noise"]).clamp(*BOUNDS)
    args = (x_adv, t["g"], t["x"], float(p), EPS[p], None, EPS[p] / 4, None, *BOUNDS, False, 31)
    run(benchmark, f"pgd_step p={p}", "pgd_step", *args)


@pytest.mark.parametrize(("p", "exact"), [(math.inf, False), (2, False), (2, True), (1, True)])
def bench_project(benchmark, p, exact):
    t = rows("noise", "x")
    x_adv = t["x"] + 0.05 * t["noise"]
    title = f"project p={p}" + (" exact" if exact else "")
    run(benchmark, title, "project", x_adv, t["x"], float(p), EPS[p], None, *BOUNDS, exact)
