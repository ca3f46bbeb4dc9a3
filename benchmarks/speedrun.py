"""Core-seconds to a robust accuracy on natural images, and what each ingredient of the fast recipe is worth.

    python -m benchmarks.speedrun --data npz:build/cifar10.npz                 # everything: about five hours on a core
    python -m benchmarks.speedrun --only replay-wide n-fgsm --autoattack 500   # some methods
    python -m benchmarks.speedrun --epochs 1 --train-samples 512               # try the command

A training of a length has its own schedule, so every length is a training of its own. Writes speedrun.md: for each
method the accuracy against the seconds, and the first seconds that reach 30, 35 and 40 % under PGD-50; then the recipe
with one ingredient changed at a time.
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

LENGTHS = {  # epochs of the trainings of each method
    "replay-wide": (2, 4, 6, 9),
    "n-fgsm": (2, 4, 6, 9),
    "fgsm": (2, 4, 6),
    "fgsm-pgi": (2, 4, 6),
    "pgd2": (2, 4, 6),
    "pgd10": (1, 2),
}
GOALS = (30, 35, 40)
_EPOCHS = 4
INGREDIENTS: dict[str, Part] = {
    "the recipe": Part("replay-wide", _EPOCHS),
    "last weights, no average": Part("replay-wide", _EPOCHS, change=(("average", 0.0),)),
    "float32": Part("replay-wide", _EPOCHS, change=(("precision", "no"),)),
    "NCHW": Part("replay-wide", _EPOCHS, change=(("channels_last", False),)),
    "constant rate 0.05": Part("replay-wide", _EPOCHS, change=(("schedule", "constant"), ("lr", 0.05))),
    "no Nesterov": Part("replay-wide", _EPOCHS, change=(("nesterov", False),)),
    "no crops": Part("replay-wide", _EPOCHS, change=(("crop_padding", 0),)),
    "radius 1": Part("replay", _EPOCHS),
    "twice the width": Part("replay-wide", _EPOCHS // 2, width=64),
    "ResNet-18 of width 16": Part("replay-wide", _EPOCHS // 2, model="resnet18", width=16),
    "ResNet-18 of width 16, N-FGSM": Part("n-fgsm", _EPOCHS // 2, model="resnet18", width=16),
}


@dataclass(frozen=True)
class Speedrun(natural.Options):
    """Options of the speed record."""

    run_dir: Path = Path("runs/speedrun")
    """Folder of everything written."""
    only: tuple[str, ...] = ()
    """Methods, or the word ingredients; none: all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = [name for name in self.only if name not in (*LENGTHS, "ingredients")]
        if unknown:
            raise UserError(f"methods are {', '.join(LENGTHS)} and ingredients; got {', '.join(unknown)}")


def speedrun(options: Speedrun) -> str:
    text = ""
    methods = [name for name in LENGTHS if name in options.only or not options.only]
    if methods:
        found = natural.run(options, [Part(name, epochs) for name in methods for epochs in LENGTHS[name]])
        text += natural.table(found, [METHODS[one.part.method].label for one in found]) + "\n" + goals(found)
        natural.curves(options.run_dir / "speedrun.png", {"50 000 images, Linf 8/255": found})
    if "ingredients" in options.only or not options.only:
        found = natural.run(options, list(INGREDIENTS.values()))
        text += "\n" + natural.table(found, list(INGREDIENTS), "ingredient")
    natural.write(options, "speedrun.md", text)
    return text


def goals(found: Sequence[Found]) -> str:
    """The fewest core-seconds of each method that reach a PGD-50 accuracy."""
    head = " | ".join(f"{goal} %" for goal in GOALS)
    lines = [f"| core-seconds to PGD-50 of | {head} |", f"|---|{'---:|' * len(GOALS)}"]
    for name in dict.fromkeys(one.part.method for one in found):
        rows = [one for one in found if one.part.method == name]
        cells = []
        for goal in GOALS:
            reached = [one.seconds for one in rows if (one.percent("pgd50") or 0) >= goal]
            cells.append(f"{min(reached):.0f}" if reached else "not reached")
        lines.append(f"| {METHODS[name].label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        speedrun(tyro.cli(Speedrun, description=__doc__))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
