"""Candidates that take turns on one input: medians, ratios, and how near to a copy an op is.

:func:`race` times any candidates; the first is ours. Taking turns makes a busy machine slow all of them alike, so the
ratios of medians hold where the times do not. ``extra_info`` of pytest-benchmark's record keeps them for the report.
:func:`race_op` races an op against its eager reference and torch.compile of it, after comparing the result with
float64 under the tests' budget. With ``--benchmark-disable`` everything runs once, on a few rows, and nothing is
compiled.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from soatfast import testing
from soatfast.ops import reference

ROWS, SIZE = 128, 3072  # a batch of CIFAR-10
SMOKE_ROWS = 4
LONG = 0.5  # seconds of a call, in which filling the caches anew does not show

# Bytes per element of a float32 batch in one launch, reads + writes (architecture, kernel budget).
BUDGET = {
    "lmo": 8,
    "lp_norm": 4,
    "frank_wolfe_init": 16,
    "frank_wolfe_step": 24,
    "frank_wolfe_step central": 32,
    "project": 12,
    "pgd_step": 16,
    "power_step": 24,
    "cross_entropy_derivative": 8,
}


def race(
    benchmark: Any,
    title: str,
    candidates: dict[str, Callable[[], Any]],
    *,
    rounds: int = 101,
    inner: int = 1,
    bytes_moved: int | None = None,
    checked: bool = True,
    series: tuple[str, int] | None = None,
) -> None:
    """Time the candidates in turns and record their medians; the first one is the record's own.

    Args:
        benchmark: pytest-benchmark's fixture.
        title: the row of the report.
        candidates: name -> call; the first is ours.
        rounds: turns of every candidate; fewer where one turn of all takes longer than 0.1 s.
        inner: calls per timing.
        bytes_moved: what one call has to read and write; adds GB/s and the share of a copy of as many bytes.
        checked: compare every candidate's result with the first's.
        series: the plot that the ratios go into, and their place on its axis (the batch size).
    """
    benchmark.group = title
    first = next(iter(candidates.values()))
    if checked:
        expected = first()
        for name, call in candidates.items():
            torch.testing.assert_close(call(), expected, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    if benchmark.disabled:
        for call in candidates.values():
            call()
        benchmark(first)
        return
    calls = dict(candidates)
    if bytes_moved is not None:
        source = torch.randn(bytes_moved // 8)
        calls["copy"] = partial(torch.empty_like(source).copy_, source)
    times: dict[str, list[float]] = {name: [] for name in calls}
    turn = {name: _seconds(call, inner) for name, call in calls.items()}
    rounds = max(7, min(rounds, int(10 / sum(turn.values()))))
    for _ in range(rounds):
        for name, call in calls.items():
            if turn[name] < LONG:
                call()  # what the others left in the caches is not this call's
            times[name].append(_seconds(call, inner))
    medians = {name: statistics.median(record) for name, record in times.items()}
    mine = medians[next(iter(candidates))]
    short = turn[next(iter(candidates))] < LONG
    benchmark.pedantic(first, rounds=min(rounds, 20) if short else 1, warmup_rounds=int(short))
    benchmark.extra_info.update(
        title=title,
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        microseconds={name: round(seconds * 1e6, 1) for name, seconds in medians.items() if name != "copy"},
        ratios={name: round(seconds / mine, 3) for name, seconds in medians.items()},
    )
    if series is not None:
        benchmark.extra_info["series"], benchmark.extra_info["at"] = series
    if bytes_moved is not None:
        benchmark.extra_info["bytes"] = bytes_moved
        benchmark.extra_info["gigabytes_per_second"] = round(bytes_moved / mine / 1e9, 2)
        benchmark.extra_info["share_of_copy"] = round(medians["copy"] / mine, 3)


def _seconds(call: Callable[[], Any], inner: int) -> float:
    start = time.perf_counter()
    for _ in range(inner):
        call()
    return (time.perf_counter() - start) / inner


def race_op(benchmark: Any, title: str, op: str, *args: Any) -> None:
    """An op against its eager reference and torch.compile of it, on the arguments of the raw op."""
    central = op == "frank_wolfe_step" and args[9]
    budget = BUDGET["frank_wolfe_step central" if central else op]
    candidates = op_candidates(benchmark, op, *args)
    # The slow baselines of the sorting projections would take minutes: `race` cuts the rounds, not below 7.
    race(benchmark, title, candidates, bytes_moved=budget * args[0].numel(), checked=False)


def op_candidates(benchmark: Any, op: str, *args: Any) -> dict[str, Callable[[], Any]]:
    """The op as each backend runs it, checked against float64; torch.compile only where something is timed."""
    kernel, twin = getattr(torch.ops.soatfast, op).default, getattr(reference, op)
    functions = {"soatfast": kernel, "eager": twin}
    if not benchmark.disabled:
        torch._dynamo.reset()
        functions["torch.compile"] = torch.compile(twin, fullgraph=True)
    for function in functions.values():
        testing.check(op, function, args)
    return {name: partial(function, *args) for name, function in functions.items()}


def samples(benchmark: Any) -> int:
    """How many an op is timed on (``--rows``); a few only when nothing is timed."""
    return SMOKE_ROWS if benchmark.disabled else ROWS


def rows(*names: str, shape: tuple[int, int]) -> dict[str, Tensor]:
    """Fixed random tensors by name: ``x`` uniform in the box, all others normal."""
    tensors = {}
    for seed, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed)
        make = torch.rand if name == "x" else torch.randn
        tensors[name] = make(shape, generator=generator)
    return tensors


def batch(benchmark: Any) -> dict[str, Tensor]:
    """Gradients, perturbation, inputs and iterates of usual sizes."""
    count = samples(benchmark)
    t = rows("g", "plus", "minus", "v", "x", "noise", shape=(count, SIZE))
    g, plus, minus = 1e-3 * t["g"], 1e-3 * t["plus"], 1e-3 * t["minus"]
    x_adv = t["x"] + 0.1 * t["noise"]
    pair = torch.cat([plus, minus])
    return {"g": g, "plus": plus, "pair": pair, "v": 0.03 * t["v"], "x": t["x"], "x_adv": x_adv}
