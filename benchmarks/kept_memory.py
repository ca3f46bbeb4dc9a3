"""What `soatfast.keep_memory` saves: attacks and training steps in processes with and without it, in turns.

    python -m benchmarks.kept_memory [--rounds 3]

The setting is a process's, for good, so each figure is the median of a process of its own. Peak: the largest resident
size of the process, with PyTorch's libraries.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from benchmarks.bench_training_step import problem, step
from soatfast import keep_memory
from soatfast.attacks import PGD
from soatfast.losses import SCORPIO, AdversarialTraining
from soatfast.runs.table import Column, Table

WORK = {
    "PGD-10, small CNN, batch 128": 20,
    "PGD-10, small CNN, batch 512": 6,
    "PGD-10 training step, small CNN, batch 100": 12,
    "SCORPIO FE(3) training step, small CNN, batch 100": 20,
    "PGD-10, ResNet-18, batch 16": 2,
    "SCORPIO FE(3) training step, ResNet-18, batch 16": 2,
}
"""Calls that are timed, after two that are not."""


@dataclass(frozen=True)
class Options:
    """How often, and where the table goes."""

    rounds: int = 3
    """Pairs of processes for each row."""
    only: str = ""
    """Rows whose name has this in it."""
    run_dir: Path = Path("runs")
    """The table goes into kept_memory.md there."""


def call(name: str) -> Callable[[], object]:
    what, network, batch = name.split(", ")
    model, x, y = problem(
        {"small CNN": "SmallCNN", "ResNet-18": "ResNet18"}[network], int(batch.removeprefix("batch "))
    )
    attack = PGD(eps=0.1, steps=10)
    if what == "PGD-10":
        model.eval()
        return lambda: attack(model, x, y)
    loss = AdversarialTraining(attack) if what.startswith("PGD") else SCORPIO(eps=0.1, mode="keep")
    return step(loss, model, x, y)


def measure(name: str, kept: bool) -> dict[str, float]:
    """In this process: median milliseconds of a call, and the process's peak in megabytes."""
    if kept and not keep_memory():
        raise RuntimeError(
            "keep_memory() does nothing here: it needs glibc, and an environment without settings of malloc"
        )
    run = call(name)
    times = []
    for turn in range(2 + WORK[name]):
        start = time.perf_counter()
        run()
        if turn >= 2:
            times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"ms": 1e3 * statistics.median(times), "peak": peak}


def _child(name: str, kept: bool) -> dict[str, float]:
    program = f"import json; from benchmarks.kept_memory import measure; print(json.dumps(measure({name!r}, {kept})))"
    ran = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    found: dict[str, float] = json.loads(ran.stdout)
    return found


def row(name: str, rounds: int) -> dict[str, str | list[float]]:
    found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
    for turn in range(rounds):
        for kept in (False, True) if turn % 2 == 0 else (True, False):
            found[kept].append(_child(name, kept))
    ratios = [mine["ms"] / usual["ms"] for usual, mine in zip(found[False], found[True], strict=True)]
    cells: dict[str, str | list[float]] = {"work": name, "ratio": ratios}
    for kept, processes in found.items():
        cells |= {f"{measured} {kept}": [process[measured] for process in processes] for measured in ("ms", "peak")}
    return cells


def main(options: Options) -> None:
    columns = [
        Column("work", "work"),
        Column("ms False", "ms"),
        Column("ms True", "ms, kept"),
        Column("ratio", "kept over usual", 2),
        Column("peak False", "peak, MB", 0),
        Column("peak True", "peak, MB, kept", 0),
    ]
    note = f"Mean and standard deviation over {options.rounds} pairs of processes; torch {torch.__version__}."
    rows = [row(name, options.rounds) for name in WORK if options.only in name]
    text = Table("Time and peak with and without keep_memory", columns, rows, note).to_markdown()
    print(text)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    (options.run_dir / "kept_memory.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
