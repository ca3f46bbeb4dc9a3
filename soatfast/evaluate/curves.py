"""Accuracy against the radius, and against the number of PGD's steps."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from soatfast.attacks import PGD, Attack
from soatfast.attacks.autoattack import AutoAttack
from soatfast.evaluate.accuracies import Samples, batches, gather
from soatfast.evaluate.results import SuiteResult
from soatfast.evaluate.suites import CLEAN, Report, suite
from soatfast.evaluate.watch import can_watch
from soatfast.gradients.outputs import Forward, Output
from soatfast.gradients.passes import Passes
from soatfast.ops.arguments import check_steps

_ROUNDING = 1e-9  # of a difference of two shares


@dataclass(frozen=True)
class Curve:
    """accuracy[i] is the share that is right at at[i]; clean without an attack.

    passes: of the whole curve; saved: what the plain evaluation of each point on every sample would have cost on top.
    """

    label: str
    at: tuple[float, ...]
    accuracy: tuple[float, ...]
    clean: float
    passes: Passes = field(repr=False)
    saved: Passes = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """Every figure; the accuracies are shares."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> Curve:
        """The curve that :meth:`to_json` described; ValueError for anything else."""
        try:
            passes = {name: Passes(**value[name]) for name in ("passes", "saved")}
            return cls(value["label"], tuple(value["at"]), tuple(value["accuracy"]), value["clean"], **passes)
        except (TypeError, KeyError) as error:
            raise ValueError(f"no curve of this version of soatfast ({type(error).__name__}: {error})") from error

    def plateau(self, tolerance: float = 0.01) -> float | None:
        """The smallest `at` from which on the accuracy falls by no more than `tolerance` to the end; None if only the
        last one is that.

        >>> Curve("PGD", (10, 20, 40, 100), (0.80, 0.79, 0.785, 0.784), 0.97, Passes(), Passes()).plateau()
        20
        """
        last, found = self.accuracy[-1], None
        for place, value in reversed(list(zip(self.at, self.accuracy, strict=True))[:-1]):
            if value - last > tolerance + _ROUNDING:
                break
            found = place
        return found

    def rises(self, tolerance: float = 0.0) -> list[tuple[float, float]]:
        """Neighbours (from, to) between which the accuracy rises by more than `tolerance`: a sign of a weak attack."""
        points = list(zip(self.at, self.accuracy, strict=True))
        return [(a, b) for (a, low), (b, high) in itertools.pairwise(points) if high > low + tolerance + _ROUNDING]


def accuracy_against_eps(
    model: nn.Module,
    data: Samples,
    attack: Attack | AutoAttack,
    eps: Sequence[float],
    *,
    label: str | None = None,
    carry: bool = True,
    batch_size: int = 250,
    seed: int = 0,
    compact: bool = True,
    folder: str | Path | None = None,
    progress: Report | None = None,
    output: Output = None,
    forward: Forward | None = None,
) -> Curve:
    """The attack at each radius, ascending. A step size that the attack fixes stays as it is.

    carry: an example in a ball lies in every larger one, so a sample that is fooled counts as fooled at all larger
    radii and is not attacked there: the curve cannot rise, and each point is that of the attacks up to its radius.
    False measures each radius by itself.

    data, batch_size, seed: as of :func:`~soatfast.evaluate.accuracies`; the rest as of
    :func:`~soatfast.evaluate.suites.suite`.
    """
    if isinstance(attack.eps, Tensor) and attack.eps.dim():
        raise ValueError(
            "the radii are numbers, and the attack's eps is one a channel or sample, of shape "
            f"{tuple(attack.eps.shape)}: give an attack with one eps"
        )
    radii = _ascending(eps, "eps")
    attacks = {f"eps {value:g}": dataclasses.replace(attack, eps=value) for value in radii}
    if len(attacks) < len(radii):
        raise ValueError(f"eps must differ in their first six digits, got {tuple(eps)}")
    loader = list(batches(*gather(data), batch_size))
    result = suite(
        model,
        loader,
        attacks,
        folder=folder,
        seed=seed,
        progress=progress,
        compact=compact,
        worst_case=carry,  # sorted by passes, which are equal: the order stays
        quality=False,
        output=output,
        forward=forward,
    )
    return _curve(label or type(attack).__name__, tuple(radii), result, [result[name].accuracy for name in attacks])


def steps_plateau(
    model: nn.Module,
    data: Samples,
    steps: Sequence[int] = (1, 2, 5, 10, 20, 40, 100),
    attack: Attack | None = None,
    *,
    eps: float = 8 / 255,
    label: str | None = None,
    batch_size: int = 250,
    seed: int = 0,
    compact: bool = True,
    folder: str | Path | None = None,
    progress: Report | None = None,
    output: Output = None,
    forward: Forward | None = None,
) -> Curve:
    """An attack with each number of steps: the accuracy must not rise, and should level off.

    attack: any attack that has ``steps``; None: PGD(eps=eps). TypeError for others. With PGD's default step size
    2.5 eps / steps each number is a run of its own. With a ``step_size`` the shorter runs are the beginnings of the
    longest from the same random start, so one run gives all numbers (restarts=1, best=False; an attack that can be
    watched).
    """
    counts = _ascending(steps, "steps")
    for count in counts:
        check_steps(count)
    base = PGD(eps=eps) if attack is None else attack
    if not hasattr(base, "steps"):
        raise TypeError(f"steps_plateau needs an attack that has steps, got {type(base).__name__}")
    options: dict[str, Any] = {
        "folder": folder,
        "seed": seed,
        "progress": progress,
        "compact": compact,
        "quality": False,
        "output": output,
        "forward": forward,
    }
    x, y = gather(data)
    loader = list(batches(x, y, batch_size))
    plain = type(base) is PGD and base.restarts == 1 and not base.best  # a subclass may make other passes as well
    if plain and base.step_size is not None and can_watch(base, x):  # type: ignore[attr-defined]
        longest = dataclasses.replace(base, steps=int(counts[-1]))  # type: ignore[call-arg]  # which a PGD has
        result = suite(model, loader, {"pgd": longest}, **options)
        first = np.where(result["pgd"].first > 0, result["pgd"].first, np.iinfo(np.int32).max)
        right = result[CLEAN].correct
        accuracy = [float((right & (first > count + 1)).mean()) for count in counts]
        result = _with_plain_runs(result, counts, len(y))
    else:
        attacks = {f"steps {count:g}": dataclasses.replace(base, steps=int(count)) for count in counts}  # type: ignore[call-arg]
        result = suite(model, loader, attacks, **options)
        accuracy = [result[name].accuracy for name in attacks]
    return _curve(label or type(base).__name__, tuple(counts), result, accuracy)


def _with_plain_runs(result: SuiteResult, counts: Sequence[float], samples: int) -> SuiteResult:
    """`saved` grown by the shorter runs that were not made."""
    shorter = int(sum(counts[:-1]))
    more = Passes(
        forward_samples=samples * (shorter + len(counts) - 1),
        backward_input_samples=samples * shorter,
    )
    pgd = dataclasses.replace(result["pgd"], saved=result["pgd"].saved + more)
    return dataclasses.replace(result, results={**result.results, "pgd": pgd})


def _ascending(values: Sequence[float], name: str) -> list[float]:
    ordered = sorted(values)
    if not ordered or len(set(ordered)) < len(ordered):
        raise ValueError(f"{name} must be one or more different numbers, got {tuple(values)}")
    return ordered


def _curve(label: str, at: tuple[float, ...], result: SuiteResult, accuracy: list[float]) -> Curve:
    return Curve(label, at, tuple(accuracy), result[CLEAN].accuracy, result.passes, result.saved)
