"""Cheap adversarial training on natural images at equal core-seconds: one command (`make study-cifar`).

    python -m benchmarks.study_cifar --data npz:build/cifar10.npz              # everything: about nine hours on a core
    python -m benchmarks.study_cifar --only full --autoattack 1000             # some settings
    python -m benchmarks.study_cifar --epochs 1 --train-samples 512            # try the command

Epochs are chosen so that the methods of a setting take about the same seconds. Writes study.md, with paired differences
and their standard errors, and study.png. docs/natural-images.md says what came of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks import natural
from benchmarks.natural import Found, Part
from soatfast.commands.methods import METHODS
from soatfast.runs.errors import UserError

_SEEDS = range(3)


@dataclass(frozen=True)
class Setting:
    """One table: its parts, and the method that the others are compared with."""

    title: str
    parts: tuple[Part, ...]
    base: str = "replay-wide"


def _parts(epochs: dict[str, int], seeds: Sequence[int], **fields: object) -> tuple[Part, ...]:
    return tuple(Part(name, count, seed, **fields) for name, count in epochs.items() for seed in seeds)  # type: ignore[arg-type]


SETTINGS: dict[str, Setting] = {
    "few": Setting(
        "8 000 images, Linf 8/255",
        _parts(
            {"replay-wide": 12, "n-fgsm": 12, "fgsm": 12, "fgsm-pgi": 8, "pgd2": 8, "pgd10": 3}, _SEEDS, samples=8000
        ),
    ),
    "full": Setting(
        "50 000 images, Linf 8/255",
        _parts({"replay-wide": 6, "n-fgsm": 6}, _SEEDS) + _parts({"fgsm": 6, "fgsm-pgi": 4, "pgd10": 6}, (0,)),
    ),
    "radius": Setting(
        "50 000 images, Linf 8/255, the radius of the training",
        tuple(Part("replay", 6, radius=radius) for radius in (1.0, 1.25, 1.5))
        + tuple(Part("n-fgsm", 6, radius=radius) for radius in (0.75, 1.0, 1.25)),
        "replay",
    ),
    "scorpio": Setting(
        "8 000 images, SCORPIO at equal passes and seconds",
        _parts({"scorpio": 6, "pgd4": 6, "pgd10": 3}, _SEEDS, samples=8000),
        "scorpio",
    ),
    "l2": Setting(
        "8 000 images, L2 0.5", _parts({"replay-wide": 12, "fgsm": 12, "pgd10": 3}, _SEEDS, samples=8000, p=2.0)
    ),
}


@dataclass(frozen=True)
class Study(natural.Options):
    """Options of the study."""

    run_dir: Path = Path("runs/study-cifar")
    """Folder of everything written."""
    only: tuple[str, ...] = ()
    """Names of settings; none: all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.only if name not in SETTINGS]
        if unknown:
            raise UserError(f"settings are {', '.join(SETTINGS)}; got {', '.join(unknown)}")


def study(options: Study) -> dict[str, list[Found]]:
    found = {}
    for name, setting in SETTINGS.items():
        if name in options.only or not options.only:
            print(f"== {name}: {setting.title}", flush=True)
            found[name] = natural.run(options, setting.parts)
            natural.write(options, f"{name}.md", section(name, found[name]))
    natural.curves(options.run_dir / "study.png", {SETTINGS[name].title: rows for name, rows in found.items()})
    return found


def section(name: str, found: Sequence[Found]) -> str:
    """The table of a setting, and what each method differs by from its base on the same images."""
    setting = SETTINGS[name]
    labels = [f"{METHODS[one.part.method].label}, {one.part.radius:g} eps, seed {one.part.seed}" for one in found]
    lines = [f"### {setting.title}", "", natural.table(found, labels)]
    groups: dict[tuple[str, float], list[Found]] = {}
    for one in found:
        groups.setdefault((one.part.method, one.part.radius), []).append(one)
    base = next(group for (method, _), group in groups.items() if method == setting.base)
    for group in groups.values():
        if group is not base:
            part = group[0].part
            for attack in ("pgd50", "apgd", "autoattack"):
                if attack in group[0].correct:
                    mean, error = natural.paired(*([one.correct[attack] for one in side] for side in (base, group)))
                    lines.append(
                        f"- {attack}: {METHODS[setting.base].label} against {METHODS[part.method].label} at "
                        f"{part.radius:g} eps: {mean:+.1f} ± {error:.1f} points (standard error over the images)"
                    )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        study(tyro.cli(Study, description=__doc__))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
