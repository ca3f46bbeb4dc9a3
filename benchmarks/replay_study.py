"""Frank-Wolfe with memory against PGD training: three seeds of every setting, one command (`make study`).

    python -m benchmarks.replay_study                      # everything, about two hours on two cores
    python -m benchmarks.replay_study --only eps-0.3       # some settings
    python -m benchmarks.replay_study --no-autoattack      # trainings, clean and PGD-40 accuracy only

Trainings come first and one after another, so that their seconds compare; then AutoAttack on the settings that have
it. Whatever is finished in the run folder is used. Writes study.md (the tables) and study.png (the curves).
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from soatfast.commands.compare import CompareConfig
from soatfast.commands.compare import run as compare
from soatfast.commands.methods import METHODS
from soatfast.runs.figures import clear_axes, figure
from soatfast.runs.progress import make_progress
from soatfast.train.config import TrainConfig

QUICK = ("clean", "pgd40")
FULL = ("clean", "pgd40", "autoattack")
MAIN = ("pgd10", "replay", "replay2", "fgsm", "pgd2")
KEPT = ("replay", "replay-float32", "atta")


@dataclass(frozen=True)
class Setting:
    """One table of the study."""

    title: str
    config: CompareConfig
    attacks: tuple[str, ...] = QUICK


def _setting(title: str, methods: Sequence[str], *, epochs: int = 15, full: bool = False, **options: Any) -> Setting:
    crop = options.pop("crop_padding", 0)
    ramp = min(5, epochs)
    train = TrainConfig(epochs=epochs, crop_padding=crop, eps_ramp_epochs=ramp)
    config = CompareConfig(methods=tuple(methods), seeds=3, train=train, **options)
    return Setting(title, config, FULL if full else QUICK)


SETTINGS: dict[str, Setting] = {
    "eps-0.3": _setting("Linf 0.3", MAIN, eps=0.3, full=True),
    "eps-0.2": _setting("Linf 0.2", MAIN, eps=0.2, full=True),
    "eps-0.3-kept": _setting("Linf 0.3, what is kept", KEPT, eps=0.3),
    "eps-0.2-kept": _setting("Linf 0.2, what is kept", KEPT, eps=0.2),
    "eps-0.3-60": _setting("Linf 0.3", ("replay",), epochs=60, eps=0.3, full=True),
    "eps-0.2-60": _setting("Linf 0.2", ("replay",), epochs=60, eps=0.2, full=True),
    "eps-0.3-5": _setting("Linf 0.3", ("pgd10", "replay", "replay2"), epochs=5, eps=0.3),
    "eps-0.3-40": _setting("Linf 0.3", ("pgd10", "replay", "replay2"), epochs=40, eps=0.3),
    "crops": _setting("Linf 0.3, random crops by 2 pixels", MAIN, eps=0.3, crop_padding=2),
    "few": _setting("Linf 0.3, 1 000 training digits", MAIN, eps=0.3, train_samples=1000),
    "digits8": _setting("scikit-learn's 8x8 digits, Linf 0.2", MAIN, eps=0.2, data="digits8"),
    "resnet18": _setting(
        "ResNet-18 of width 16 on the 8x8 digits, Linf 0.2", MAIN, eps=0.2, data="digits8", model="resnet18", width=16
    ),
    "l2": _setting("L2 1.5", MAIN, eps=1.5, p=2),
    "eps-0.2-5": _setting("Linf 0.2", ("pgd10", "replay", "replay2"), epochs=5, eps=0.2),
    "eps-0.2-40": _setting("Linf 0.2", ("pgd10", "replay", "replay2"), epochs=40, eps=0.2),
}
CURVES = {
    "Linf eps 0.3": ("eps-0.3-5", "eps-0.3", "eps-0.3-40", "eps-0.3-60"),
    "Linf eps 0.2": ("eps-0.2-5", "eps-0.2", "eps-0.2-40", "eps-0.2-60"),
    "random crops, eps 0.3": ("crops",),
    "1 000 digits, eps 0.3": ("few",),
    "8x8 digits, eps 0.2": ("digits8",),
    "ResNet-18, 8x8 digits, eps 0.2": ("resnet18",),
    "L2 eps 1.5": ("l2",),
}
SHOWN = {  # method: colour, marker
    "pgd10": ("#D55E00", "s"),
    "replay": ("#0072B2", "o"),
    "replay2": ("#56B4E9", "D"),
    "fgsm": ("#CC79A7", "v"),
    "pgd2": ("#E69F00", "^"),
    "atta": ("#009E73", "P"),
}


@dataclass(frozen=True)
class Study:
    """Options of the study."""

    run_dir: Path = Path("runs/study")
    """Folder of everything written."""
    only: tuple[str, ...] = field(default_factory=tuple)
    """Names of settings; none: all of them."""
    autoattack: bool = True
    """Run AutoAttack where the setting has it."""
    epochs: int | None = None
    """Train every setting for so many epochs only, to try the command."""
    seeds: int | None = None
    """So many seeds in place of three."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in SETTINGS]
        if unknown:
            raise SystemExit(f"error: settings are {', '.join(SETTINGS)}; got {', '.join(unknown)}")


def run(study: Study) -> None:
    names = [name for name in SETTINGS if name in study.only or not study.only]
    for attacks in ("quick", "full") if study.autoattack else ("quick",):
        for name in names:
            setting = SETTINGS[name]
            if attacks == "quick" or setting.attacks == FULL:
                print(f"== {name}: {setting.title} ({attacks})", flush=True)
                with make_progress(_console()) as progress:
                    compare(_config(study, name, setting.attacks if attacks == "full" else QUICK), progress)
    write(study)


def _config(study: Study, name: str, attacks: tuple[str, ...]) -> CompareConfig:
    config = SETTINGS[name].config
    train = config.train
    if study.epochs is not None:
        train = dataclasses.replace(train, epochs=study.epochs, eps_ramp_epochs=1)
    return dataclasses.replace(
        config, run_dir=study.run_dir / name, attacks=attacks, train=train, seeds=study.seeds or config.seeds
    )


def _console() -> Any:
    from rich.console import Console

    return Console()


# ------------------------------------------------------------------------------------------------ tables and curves


def results(study: Study) -> dict[str, dict[str, dict[str, list[float]]]]:
    """setting -> method -> {epochs, seconds, passes, clean, pgd40, autoattack}, a value per seed; accuracies in %.

    The epochs are those trained, whatever the settings say.
    """
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in SETTINGS:
        path = study.run_dir / name / "results.json"
        if path.is_file():
            found[name] = {}
            for method, value in json.loads(path.read_text(encoding="utf-8"))["methods"].items():
                rows: dict[str, list[float]] = {"epochs": [], "seconds": [], "passes": []}
                for one in value["runs"]:
                    rows["epochs"].append(len(one["training"]["history"]))
                    rows["seconds"].append(one["training"]["seconds"])
                    rows["passes"].append(one["training"]["passes"]["backward_input"])
                    for attack, figure in one["evaluation"].items():
                        rows.setdefault(attack, []).append(100 * figure["accuracy"])
                found[name][method] = rows
    return found


def _shown(values: Sequence[float] | None, digits: int = 1) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def _against(rows: dict[str, dict[str, list[float]]], method: str, base: dict[str, list[float]] | None) -> str:
    if base is None or len(base["seconds"]) != len(rows[method]["seconds"]):
        return "–"
    pairs = zip(rows[method]["seconds"], base["seconds"], strict=True)
    return f"{statistics.fmean(a / b for a, b in pairs):.2f}"


def tables(found: dict[str, dict[str, dict[str, list[float]]]]) -> str:
    lines = []
    for name, rows in found.items():
        base = rows.get("pgd10") or found.get(name.rpartition("-")[0], {}).get("pgd10")
        lines += [
            f"### {SETTINGS[name].title}, {next(iter(rows.values()))['epochs'][0]} epochs",
            "",
            "| training | attack passes | training s | of PGD-10's | clean % | PGD-40 % | AutoAttack % |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        for method, row in rows.items():
            cells = [METHODS[method].label, f"{row['passes'][0]:.0f}", _shown(row["seconds"])]
            cells += [_against(rows, method, base)]
            cells += [_shown(row.get(attack)) for attack in FULL]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def write(study: Study) -> None:
    found = results(study)
    study.run_dir.mkdir(parents=True, exist_ok=True)
    (study.run_dir / "study.md").write_text(tables(found), encoding="utf-8")
    curves(found, study.run_dir / "study.png")
    print(f"written to {study.run_dir}: study.md, study.png")


def curves(found: dict[str, dict[str, dict[str, list[float]]]], path: Path) -> None:
    """PGD-40 accuracy against training seconds: one panel a question, one colour a method, lines over epochs."""
    from matplotlib.ticker import LogLocator, NullLocator

    panels = {title: names for title, names in CURVES.items() if any(name in found for name in names)}
    if not panels:
        return
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    picture = figure((4.1 * columns, 3.5 * lines + 0.7))
    axes = picture.subplots(lines, columns, squeeze=False).flatten()
    seen: dict[str, Any] = {}
    for axis, (title, names) in zip(axes, panels.items(), strict=False):
        for method, (colour, marker) in SHOWN.items():
            points = []
            for name in names:
                row = found.get(name, {}).get(method)
                if row:
                    spread = statistics.stdev(row["pgd40"]) if len(row["pgd40"]) > 1 else 0.0
                    place = statistics.fmean(row["seconds"]), statistics.fmean(row["pgd40"])
                    points.append((*place, spread, row["epochs"][0]))
            if not points:
                continue
            x, y, spread, epochs = zip(*sorted(points), strict=True)
            seen[method] = axis.errorbar(
                x, y, yerr=spread, color=colour, marker=marker, markersize=7, capsize=3, linewidth=1.2
            )
            if len(points) > 1:
                for a, b, e in zip(x, y, epochs, strict=True):
                    axis.annotate(f"{e}", (a, b), xytext=(5, -11), textcoords="offset points", fontsize=8, color=colour)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(title, fontsize=10.5)
        axis.set_xlabel("training seconds", fontsize=9)
        axis.set_ylabel("PGD-40 accuracy (%)", fontsize=9)
        axis.set_ylim(-3, 100)
        clear_axes(axis)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    labels = [METHODS[method].label for method in seen]
    picture.legend(list(seen.values()), labels, loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    picture.savefig(path, format="png")


if __name__ == "__main__":
    run(tyro.cli(Study, description=__doc__))
