"""What the active set saves of an evaluation: sample passes and time of the suite, with and without it.

    python -m benchmarks.suite_passes [--run-dir runs/demo] [--method pgd10] [--eps 0.2 0.25 0.3]

Evaluates a model that `soatfast compare` left on its held-out samples, without AutoAttack. Every figure is compared
with the plain evaluation, in which each attack is run on every sample to its end. No share can fall below that of the
samples that survive everything: all attacks have to be run on them to the end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from torch import nn

from soatfast.attacks import PGD
from soatfast.evaluate import (
    Column,
    SuiteResult,
    Table,
    accuracy_against_eps,
    standard_attacks,
    steps_plateau,
    suite,
)
from soatfast.evaluate.accuracies import batches, gather
from soatfast.gradients.passes import Passes
from soatfast.runs.files import read_json
from soatfast.train import Data, build_model, load_data
from soatfast.train.checkpoint import WEIGHTS, load_weights
from soatfast.train.models import model_options


@dataclass(frozen=True)
class Options:
    """Which model, and in which balls."""

    run_dir: Path = Path("runs/demo")
    """Folder that soatfast compare wrote."""
    method: str = "pgd10"
    """Which of its methods."""
    eps: tuple[float, ...] = (0.2, 0.25, 0.3)
    """Radii (p = inf)."""
    batch_size: int = 250
    """Samples of a batch."""


def load(options: Options) -> tuple[nn.Module, Data]:
    made = read_json(options.run_dir / "results.json")["config"]
    data = load_data(made["data"], made["data_root"], False)
    model = build_model(
        made["model"], data.shape[0], data.classes, **model_options(made["model"], made.get("width"), data.shape[-1])
    )
    load_weights(model, options.run_dir / options.method / "seed-0" / WEIGHTS)
    return model, data


def total(passes: Passes) -> int:
    return passes.forward_samples + passes.backward_input_samples


def suites(options: Options, model: nn.Module, data: Data) -> Table:
    loader = list(batches(*gather(data.test), options.batch_size))
    rows = []
    for eps in options.eps:
        found: dict[str, SuiteResult] = {}
        seconds = {}
        for name, choice in (
            ("plain", {"compact": False}),
            ("each attack's figure", {}),
            ("worst case only", {"worst_case": True}),
        ):
            start = time.perf_counter()
            found[name] = suite(model, loader, standard_attacks(eps=eps), **choice)  # type: ignore[arg-type]
            seconds[name] = time.perf_counter() - start
        for name, result in found.items():
            passes = total(result.passes)
            rows.append(
                {
                    "eps": f"{eps:g}",
                    "name": name,
                    "worst": 100 * result.worst_case,
                    "passes": passes,
                    "share": 100 * passes / total(found["plain"].passes),
                    "seconds": seconds[name],
                }
            )
    columns = [
        Column("eps", "eps"),
        Column("name", "evaluation"),
        Column("worst", "worst case %"),
        Column("passes", "sample passes", 0),
        Column("share", "of plain", 1, " %"),
        Column("seconds", "s"),
    ]
    return Table(f"The suite on {options.method}, {sum(len(y) for _, y in loader)} samples", columns, rows)


def curves(options: Options, model: nn.Module, data: Data) -> Table:
    eps = options.eps[0]
    radii = [eps * k / 4 for k in range(1, 9)]
    found = {
        "PGD-20 at 8 radii": accuracy_against_eps(model, data.test, PGD(steps=20), radii),
        "PGD-1 to PGD-100, 7 runs": steps_plateau(model, data.test, eps=eps),
        "the same, one step size": steps_plateau(model, data.test, attack=PGD(eps=eps, step_size=eps / 10)),
    }
    rows = [
        {
            "name": name,
            "passes": total(curve.passes),
            "share": 100 * total(curve.passes) / (total(curve.passes) + total(curve.saved)),
            "figures": " ".join(f"{100 * value:.1f}" for value in curve.accuracy),
        }
        for name, curve in found.items()
    ]
    columns = [
        Column("name", "curve"),
        Column("passes", "sample passes", 0),
        Column("share", "of plain", 1, " %"),
        Column("figures", "accuracy %"),
    ]
    return Table(f"Curves on {options.method}", columns, rows)


def main(options: Options) -> None:
    model, data = load(options)
    print(suites(options, model, data).to_markdown())
    print(curves(options, model, data).to_markdown())


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
