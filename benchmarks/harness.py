"""Times an op against its baselines, and says how near to a copy it is.

A case is a raw op with its arguments. Before anything is timed, the result is compared with float64 under the tests'
budget. The timed backends are interleaved with the reference and with a copy of as many bytes, so that a busy machine
slows all of them alike; medians are compared. ``extra_info`` of the record holds what the report prints.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from soatfast import testing
from soatfast.ops import reference

BACKENDS = ("reference", "torch.compile", "soatfast")
ROWS, SIZE = 128, 3072  # a batch of CIFAR-10
SMOKE_ROWS = 4

# Bytes per element of a float32 batch: reads + writes, one launch (the kernel budget of the architecture).
BYTES = {"lmo": 8, "lp_norm": 4, "frank_wolfe_init": 16, "project": 12, "pgd_step": 16}


def bytes_moved(op: str, args: tuple) -> int:
    """What one launch has to read and write, from the budget."""
    batch = args[0]
    if op == "frank_wolfe_step":
        per_element = 32 if args[9] else 24
    elif op == "frank_wolfe_init":
        per_element = 20 if args[7] else 16
    else:
        per_element = BYTES[op]
    return per_element * batch.numel() * batch.element_size() // 4


def implementation(op: str, backend: str) -> Callable:
    """The op as a backend runs it."""
    if backend == "reference":
        return getattr(reference, op)
    if backend == "torch.compile":
        torch._dynamo.reset()
        return torch.compile(getattr(reference, op), fullgraph=True)
    return getattr(torch.ops.soatfast, op).default


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each call; the calls take turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, record in zip(calls, times, strict=True):
            call()  # what the others left in the caches is not this call's
            record.append(_seconds(call))
    return [statistics.median(record) for record in times]


def run(benchmark: Any, op: str, backend: str, args: tuple) -> None:
    """One record: ``op`` with ``args`` on ``backend``."""
    benchmark.group = f"{op}"
    function = implementation(op, backend)
    testing.check(op, function, args)
    call = partial(function, *args)
    benchmark.extra_info.update(op=op, backend=backend, torch=torch.__version__, threads=torch.get_num_threads())
    if not benchmark.enabled:
        benchmark(call)
        return
    size = bytes_moved(op, args)
    source = torch.randn(size // 8)
    target = torch.empty_like(source)
    twin = partial(getattr(reference, op), *args)
    once = _seconds(twin)
    rounds = max(7, min(int(os.environ.get("BENCH_ROUNDS", "101")), int(0.5 / once)))
    mine, eager, copy = interleaved([call, twin, partial(target.copy_, source)], rounds)
    benchmark.pedantic(call, rounds=rounds, warmup_rounds=2)
    benchmark.extra_info.update(
        microseconds=round(mine * 1e6, 1),
        speedup_over_reference=round(eager / mine, 2),
        bytes=size,
        gigabytes_per_second=round(size / mine / 1e9, 2),
        fraction_of_copy=round(copy / mine, 3),
    )


def batch(benchmark: Any) -> dict[str, Tensor]:
    """The tensors that the benchmarks share; a few rows only when nothing is timed."""
    rows = ROWS if benchmark.enabled else SMOKE_ROWS
    generator = torch.Generator().manual_seed(0)

    def normal(scale: float) -> Tensor:
        return scale * torch.randn(rows, SIZE, generator=generator)

    x = torch.rand(rows, SIZE, generator=generator)
    plus, minus = normal(1e-3), normal(1e-3)
    return {
        "g": normal(1e-3),
        "plus": plus,
        "stacked": torch.cat([plus, minus]),
        "v": normal(0.03),
        "x": x,
        "x_adv": x + normal(0.1),
    }
