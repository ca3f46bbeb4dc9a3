"""What an evaluation found: figures of each attack, and the records of every sample."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from soatfast.evaluate import records
from soatfast.evaluate.checks import Check, lines_of, square_check
from soatfast.evaluate.intervals import Paired, in_percent, interval, paired
from soatfast.gradients.passes import Passes
from soatfast.runs.errors import RunFolderError
from soatfast.runs.table import Column, Table

CLEAN = "clean"
WORST = "worst case"


@dataclass(frozen=True)
class AttackResult:
    """One attack's figures, and the record of each of the N samples, in the loader's order.

    prediction, margin, norm, psnr and ssim are of one example of each sample: the first that fools it, else the final
    one; where the sample was not attacked, the example known before.
    """

    name: str
    accuracy: float
    """Share of the samples that are right on clean input and that no example of this attack fools."""
    passes: Passes
    """Those that were made, scoring of the final examples included."""
    saved: Passes
    """Sample passes that the same run on every sample to its end would have cost on top, at least."""
    seconds: float
    """Wall time."""
    prediction: np.ndarray = field(repr=False)
    """(N,) class that the model gives the example."""
    margin: np.ndarray = field(repr=False)
    """(N,) z_y - max_{j != y} z_j of the example."""
    norm: np.ndarray = field(repr=False)
    """(N,) norm of x_adv - x, in the attack's p."""
    correct: np.ndarray = field(repr=False)
    """(N,) bool: not fooled."""
    attacked: np.ndarray = field(repr=False)
    """(N,) bool: the attack was run on the sample."""
    forward: np.ndarray = field(repr=False)
    """(N,) forwards of the sample; equal shares where an attack asks about parts of a batch."""
    backward: np.ndarray = field(repr=False)
    """(N,) backwards to the input, likewise."""
    first: np.ndarray = field(repr=False)
    """(N,) number of the attack's forward that fooled the sample, from 1; 0: none did, or the attack is not watched."""
    psnr: np.ndarray = field(repr=False)
    """(N,) in dB; inf where the example is the clean image, NaN where it was not measured."""
    ssim: np.ndarray = field(repr=False)
    """(N,) 1 where the example is the clean image, NaN where not measured (no torchmetrics, images under 11 x 11)."""

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % interval (Wilson's)."""
        return interval(int(self.correct.sum()), len(self.correct))

    @property
    def quality(self) -> tuple[float | None, float | None]:
        """(mean PSNR in dB, mean SSIM) over the perturbed images, those of a finite PSNR; None: of none measured."""
        perturbed = np.isfinite(self.psnr)
        psnr, ssim = (
            float(np.mean(values[perturbed], dtype=np.float64)) if perturbed.any() else math.nan
            for values in (self.psnr, self.ssim)
        )
        return (None if math.isnan(psnr) else psnr, None if math.isnan(ssim) else ssim)

    @property
    def share(self) -> float:
        """Sample passes that were made, of those of the plain run."""
        return _share(self.passes, self.saved)


@dataclass(frozen=True)
class SuiteResult:
    """The result of each attack of an evaluation, and of all of them together."""

    label: np.ndarray = field(repr=False)
    """(N,) true classes."""
    results: dict[str, AttackResult]
    """The samples without an attack, "clean", and each attack, in the order in which they were run."""
    worst_case: float
    """Share of the samples that nothing fooled."""
    options: dict[str, Any] = field(repr=False)
    """What the evaluation was asked for."""
    checks: tuple[Check, ...] = field(default=(), repr=False)
    """What each check of the model found (:class:`~soatfast.evaluate.checks.Check`)."""

    @property
    def withstood(self) -> np.ndarray:
        """(N,) bool: nothing fooled the sample."""
        return np.logical_and.reduce([result.correct for result in self.results.values()])

    @property
    def worst_case_interval(self) -> tuple[float, float]:
        """The 95 % interval of ``worst_case`` (Wilson's)."""
        return interval(int(self.withstood.sum()), len(self.label))

    def paired(self, other: SuiteResult) -> dict[str, Paired]:
        """This model against another one on the same samples: for each attack that both have, and the worst case.

        ValueError unless both are of the same samples; see :func:`~soatfast.evaluate.intervals.paired`.
        """
        if not np.array_equal(self.label, other.label):
            raise ValueError(
                "two evaluations are compared on the same samples, got labels that differ, of "
                f"{len(self.label)} and {len(other.label)} samples"
            )
        both = [name for name in self.results if name in other.results]
        found = {name: paired(self[name].correct, other[name].correct) for name in both}
        return {**found, WORST: paired(self.withstood, other.withstood)}

    def __getitem__(self, name: str) -> AttackResult:
        return self.results[name]

    @property
    def passes(self) -> Passes:
        return sum((result.passes for result in self.results.values()), Passes())

    @property
    def saved(self) -> Passes:
        return sum((result.saved for result in self.results.values()), Passes())

    @property
    def share(self) -> float:
        """Sample passes that were made, of those of the plain evaluation of every sample by every attack."""
        return _share(self.passes, self.saved)

    def to_json(self) -> dict[str, Any]:
        """The figures, without the records of the samples: accuracies and intervals are shares."""
        figures = {
            name: {
                "accuracy": result.accuracy,
                "interval": list(result.interval),
                "attacked": int(result.attacked.sum()),
                "passes": dataclasses.asdict(result.passes),
                "saved": dataclasses.asdict(result.saved),
                "seconds": result.seconds,
            }
            for name, result in self.results.items()
        }
        worst = {"accuracy": self.worst_case, "interval": list(self.worst_case_interval)}
        checks = [dataclasses.asdict(check) for check in self.checks]
        return {"samples": len(self.label), "attacks": figures, "worst_case": worst, "checks": checks}

    def table(self, title: str = "Evaluation") -> Table:
        columns = [
            Column("name", "attack"),
            Column("accuracy", "accuracy %"),
            Column("interval", "95 % interval"),
            Column("attacked", "attacked", 0),
            Column("passes", "sample passes", 0),
            Column("share", "of plain", 1, " %"),
            Column("psnr", "PSNR dB"),
            Column("ssim", "SSIM", 3),
            Column("seconds", "s"),
        ]
        rows: list[dict[str, Any]] = [
            {
                "name": result.name,
                "accuracy": 100 * result.accuracy,
                "interval": in_percent(result.interval),
                "attacked": int(result.attacked.sum()),
                "passes": _total(result.passes),
                "share": 100 * result.share,
                "psnr": result.quality[0],
                "ssim": result.quality[1],
                "seconds": result.seconds,
            }
            for result in self.results.values()
        ]
        rows.append(
            {
                "name": WORST,
                "accuracy": 100 * self.worst_case,
                "interval": in_percent(self.worst_case_interval),
                "passes": _total(self.passes),
                "share": 100 * self.share,
                "seconds": sum(result.seconds for result in self.results.values()),
            }
        )
        mode = "survivors of the attacks above it" if self.options["worst_case"] else "samples right on clean input"
        note = (
            f"{len(self.label)} samples; each attack was run on the {mode}. Sample passes: forwards and backwards to "
            "the input, counted; of plain: of what every attack costs on every sample to its end. 95 % interval: "
            "Wilson's, for the samples' chance alone. "
        )
        note += (
            "PSNR, SSIM: means over the perturbed images."
            if self.options["quality"]
            else "No PSNR and SSIM: they were not asked for, or torchmetrics is missing (pip install torchmetrics)."
        )
        return Table(title, columns, rows, " ".join((note, lines_of(self.checks))).strip())


def load_suite(folder: str | Path) -> SuiteResult:
    """The result that :func:`suite` left in `folder`.

    Raises:
        RunFolderError: there is none, its file is damaged, or the evaluation is not finished.
    """
    store = records.Store.open(Path(folder))
    if not store.finished:
        raise RunFolderError(
            f"{Path(folder) / records.FILE} is of an unfinished evaluation ({len(store)} batches are done); "
            "run it again to resume"
        )
    return result_of(store)


def _total(passes: Passes) -> int:
    return passes.forward_samples + passes.backward_input_samples


def _share(passes: Passes, saved: Passes) -> float:
    return _total(passes) / max(1, _total(passes) + _total(saved))


def result_of(store: records.Store) -> SuiteResult:
    results = {}
    worst = np.ones(sum(store.sizes), dtype=bool)
    for name, cells in store.cells.items():
        arrays = {
            key: records.joined([cell.records[key] for cell in cells], kind) for key, kind in records.FIELDS.items()
        }
        worst &= arrays["correct"]
        passes = sum((cell.passes for cell in cells), Passes())
        asked = [sum(cell.asked[i] for cell in cells) for i in (0, 1)]
        saved = Passes(
            forward_samples=asked[0] - passes.forward_samples,
            backward_input_samples=asked[1] - passes.backward_input_samples,
        )
        accuracy = int(arrays["correct"].sum()) / max(1, len(worst))
        results[name] = AttackResult(name, accuracy, passes, saved, sum(cell.seconds for cell in cells), **arrays)
    label = records.joined(store.labels, np.int64)
    square = [
        name
        for name, attack in store.options["attacks"].items()
        if isinstance(attack, dict) and attack.get("type") == "Square"
    ]
    last = square_check({name: found.accuracy for name, found in results.items() if name != CLEAN}, square)
    checks = (*store.checks, *([] if last is None else [last]))
    return SuiteResult(label, results, int(worst.sum()) / max(1, len(worst)), store.options, checks)
