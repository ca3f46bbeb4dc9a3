"""What attacks and training steps cost beside those of another commit, in two processes that take turns.

    git worktree add ../before COMMIT    # and build it: make build
    python -m benchmarks.two_trees --before ../before [--only CURE] [--pairs 15]

Each figure of a pair is the least of some calls, on one thread.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import tree_calls
from soatfast.runs.table import Column, Table

_SECONDS = 0.15  # of calls in a figure
_HERE = Path(tree_calls.__file__).parents[1]


@dataclass(frozen=True)
class Options:
    """The other tree, how often, and where the table goes."""

    before: Path
    """A checkout of another commit, built."""
    pairs: int = 15
    """Pairs of figures for each row."""
    only: str = ""
    """A regular expression that is found in the names of the rows."""
    run_dir: Path = Path("runs")
    """The table goes into two_trees.md there."""


class Process:
    """A process whose soatfast is that of a tree."""

    def __init__(self, tree: Path):
        environment = {**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, tree_calls.__file__],
            cwd=tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, name: str, times: int) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([name, times]) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def row(name: str, before: Process, after: Process, pairs: int) -> dict[str, str | float]:
    slowest = max(process.seconds(name, 3) for process in (before, after))
    times = max(1, min(50, int(_SECONDS / slowest)))
    found: dict[str, list[float]] = {"before": [], "after": []}
    for turn in range(pairs):
        order = [("before", before), ("after", after)]
        for key, process in order if turn % 2 == 0 else reversed(order):
            found[key].append(process.seconds(name, times))
    ratios = [late / early for early, late in zip(found["before"], found["after"], strict=True)]
    return {
        "work": name,
        "before": 1e3 * statistics.median(found["before"]),
        "after": 1e3 * statistics.median(found["after"]),
        "ratio": statistics.median(ratios),
        "least": min(found["after"]) / min(found["before"]),
    }


def main(options: Options) -> None:
    columns = [
        Column("work", "work"),
        Column("before", "before, ms", 3),
        Column("after", "after, ms", 3),
        Column("ratio", "after over before", 3),
        Column("least", "ratio of the least", 3),
    ]
    before, after = Process(options.before), Process(_HERE)
    try:
        rows = [row(name, before, after, options.pairs) for name in tree_calls.WORK if re.search(options.only, name)]
    finally:
        before.end()
        after.end()
    note = f"Medians over {options.pairs} pairs; each figure is the least of some calls."
    text = Table("Time of two trees", columns, rows, note).to_markdown()
    print(text)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    (options.run_dir / "two_trees.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
