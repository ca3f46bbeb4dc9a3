"""The table of systems: every loss and attack with its paper, passes, oracle test, and a run on the demo data.

python -m benchmarks.systems writes docs/systems.md. Trainings found in the run folder are used, not repeated.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

from soatfast.attacks import catalogue
from soatfast.attacks.catalogue import AttackRow, Facts, Row
from soatfast.attacks.task import Task
from soatfast.commands.compare import CompareConfig
from soatfast.commands.compare import run as compare
from soatfast.evaluate.accuracies import accuracy
from soatfast.gradients.counting import count_passes
from soatfast.gradients.passes import Passes
from soatfast.losses import AdversarialTraining, Loss
from soatfast.losses.catalogue import LOSSES as METHODS
from soatfast.runs import files
from soatfast.runs.progress import Progress, make_progress
from soatfast.runs.table import Column, Table
from soatfast.train import TrainConfig, checkpoint, load_data
from soatfast.train.models import build_model

ROOT = Path(__file__).parents[1]
EPS, BATCH, SHAPE, CLASSES = 0.2, 16, (1, 28, 28), 10
TASK = Task(eps=EPS, samples=BATCH, shape=SHAPE, classes=CLASSES)
LOSSES: tuple[Row, ...] = tuple(row for row in METHODS if row.facts)
ATTACKS: tuple[AttackRow, ...] = tuple(row for row in catalogue.ATTACKS if row.facts)


@dataclass(frozen=True)
class Options:
    """Train by every loss, attack by every attack, write the table of systems."""

    run_dir: Path = Path("runs/systems")
    """Folder of the trainings; those found there are used."""
    epochs: int = 5
    """Of each loss."""
    attacked_epochs: int = 15
    """Of the PGD-10 model that the attacks are run on."""
    train_samples: int | None = None
    """Use only the first so many training digits."""
    test_samples: int | None = None
    """Use only the first so many held-out digits."""
    page: Path = ROOT / "docs" / "systems.md"
    """Where the table goes."""


class MismatchError(Exception):
    """A formula, a declared pass count and the counted one differ."""


def _facts(row: Row) -> Facts:
    assert row.facts is not None
    return row.facts


def made(row: Row) -> Any:
    """The attack, so that it makes every pass of the formula, or the loss."""
    return replace(row.make(TASK), **row.full) if isinstance(row, AttackRow) else row.make(TASK)


def declared_and_counted(row: Row) -> tuple[Passes, Passes]:
    """Of one call or training step on a batch of 16 on the small CNN, with its first weights."""
    torch.manual_seed(0)
    model = build_model("small-cnn", SHAPE[0], CLASSES)
    x, y = torch.rand(BATCH, *SHAPE), torch.arange(BATCH) % CLASSES
    one = made(row)
    with count_passes(model) as counted:
        if isinstance(one, Loss):
            _value(one, model, x, y).backward()
        else:
            one(model, x, y)
    return one.passes(BATCH), counted.total()


def _value(loss: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    known = (x, y) if getattr(loss, "memory", None) is None else (x, y, torch.arange(len(x)))
    value: Tensor = loss(model, *known)
    return value


def of_formula(row: Row) -> tuple[int, ...]:
    """The formula's numbers."""
    facts = _facts(row)
    return tuple(int(eval(text, {"__builtins__": {}}, dict(facts.at))) for text in facts.passes)


def shown_formula(row: Row) -> str:
    """For the page: `K + 1, K, 1 (K = 10)`."""
    facts = _facts(row)
    given = ", ".join(f"{letter} = {value}" for letter, value in facts.at.items())
    return ", ".join(text.replace(" * ", " ") for text in facts.passes) + (f" ({given})" if given else "")


def check(row: Row) -> tuple[str, str]:
    """The declared and the counted passes as text; MismatchError where they or the formula differ."""
    declared, counted = declared_and_counted(row)
    numbers = _three(declared)
    if declared != counted or of_formula(row) != numbers:
        raise MismatchError(f"{row.name}: formula {of_formula(row)}, declared {declared}, counted {counted}")
    if not (ROOT / "tests" / _facts(row).oracle).is_file():
        raise MismatchError(f"{row.name}: there is no tests/{_facts(row).oracle}")
    return _text(declared), _text(counted)


def _three(passes: Passes) -> tuple[int, int, int]:
    return passes.forward, passes.backward_input, passes.backward_parameters


def _text(passes: Passes) -> str:
    """`4, 4, 0`, and where a call is a stacked batch the samples' passes."""
    text = ", ".join(map(str, _three(passes)))
    extra = passes.forward_samples + passes.backward_input_samples > BATCH * (passes.forward + passes.backward_input)
    if not extra:
        return text
    return f"{text} (a sample: {passes.forward_samples // BATCH}, {passes.backward_input_samples // BATCH})"


def trained(options: Options, progress: Progress) -> dict[str, dict[str, float]]:
    """method -> clean and PGD-40 accuracy in percent, after a short training by each loss."""
    config = CompareConfig(
        run_dir=options.run_dir / "losses",
        methods=tuple(row.name for row in LOSSES),
        attacks=("clean", "pgd40"),
        eps=EPS,
        train_samples=options.train_samples,
        test_samples=options.test_samples,
        train=TrainConfig(epochs=options.epochs, eps_ramp_epochs=max(1, options.epochs // 2)),
    )
    compare(config, progress)
    found = files.read_json(config.run_dir / "results.json")["methods"]
    return {
        name: {key: 100 * value["accuracy"] for key, value in method["runs"][0]["evaluation"].items()}
        for name, method in found.items()
    }


def attacked(options: Options, progress: Progress) -> tuple[float, dict[str, float]]:
    """Clean accuracy of a model trained by PGD-10, and its accuracy under each attack, in percent."""
    config = CompareConfig(
        run_dir=options.run_dir / "attacked",
        methods=("pgd10",),
        attacks=("clean", "pgd40"),
        eps=EPS,
        train_samples=options.train_samples,
        test_samples=options.test_samples,
        train=TrainConfig(epochs=options.attacked_epochs),
    )
    compare(config, progress)
    model = build_model("small-cnn", SHAPE[0], CLASSES)
    checkpoint.load_weights(model, config.run_dir / "pgd10" / "seed-0" / checkpoint.WEIGHTS)
    held_out = load_data(config.data).test
    x, y = (t[: options.test_samples] for t in held_out.tensors)  # type: ignore[attr-defined]
    shares = {}
    for index, row in enumerate(ATTACKS):
        progress.stage(f"attack {row.name}", index, len(ATTACKS))
        shares[row.name] = 100 * accuracy(model, (x, y), made(row)).accuracy
        progress.note(f"{shares[row.name]:.1f} %")
    return 100 * accuracy(model, (x, y)).accuracy, shares


_ROW = (
    Column("name", "name"),
    Column("label", "in tables"),
    Column("class", "class"),
    Column("paper", "paper"),
    Column("formula", "passes F, B-in, B-par"),
    Column("declared", "declared"),
    Column("counted", "counted"),
    Column("oracle", "oracle test"),
)


def page(options: Options, losses: dict[str, dict[str, float]], clean: float, attacks: dict[str, float]) -> str:
    """The Markdown of docs/systems.md."""
    loss_rows = [{**_row(row), **losses[row.name]} for row in LOSSES]
    attack_rows = [{**_row(row), "accuracy": attacks[row.name]} for row in ATTACKS]
    loss_table = Table("Losses", [*_ROW, Column("clean", "clean %"), Column("pgd40", "PGD-40 %")], loss_rows)
    attack_table = Table("Attacks", [*_ROW, Column("accuracy", "accuracy %")], attack_rows)
    samples = "4 000" if options.train_samples is None else str(options.train_samples)
    held_out = "1 000" if options.test_samples is None else str(options.test_samples)
    count = f"{options.epochs} epoch{'s' if options.epochs != 1 else ''} on {samples} digits"
    return f"""# Every loss and attack

Written by `python -m benchmarks.systems`, which stops with an error where a formula, the declared passes
(`.passes()`) and the passes counted by hooks (`count_passes`) differ. F: forward passes; B-in, B-par: backward passes
to the input, to the parameters. Counted for one training step or one call, on the small CNN and a batch of {BATCH};
losses in the setting in which `soatfast compare` trains that network (`mode="keep"`, which shares the clean pass). A
stacked batch of 2B is one call; the passes a sample are then given as well. The oracle test compares with something
computed in another way: a closed form, a plain loop, another library. `tests/attacks/test_attacks.py` and
`tests/losses/test_losses.py` hold what all of them have to satisfy. `name` is the one of the command line: methods of
`soatfast compare` and `train`, attacks of `compare` and `attack`.

**The accuracies are a smoke run, not a ranking.** They show that each loss trains and that each attack attacks: one
seed, {count}, no tuning, and a rerun elsewhere moves them by points.
`soatfast compare --preset tables` compares, with seeds.

#{loss_table.to_markdown()}
Small CNN, {count} of mnist5k, Linf eps {EPS:g}; accuracy on {held_out} held-out
digits, seed 0. B-par of a regulariser on input gradients (SOAR, CURE, InputGradientPenalty, LLR) goes back through the
graph of its gradients and costs more than another one.

#{attack_table.to_markdown()}
Accuracy on {held_out} held-out digits of a small CNN trained by PGD-10 for {options.attacked_epochs} epochs, clean
{clean:.1f} %, Linf eps {EPS:g}. SOAE runs with `rtol=0` and SimBA without early stop, so that their passes are exactly
the formula's; by default they stop early and make fewer.
"""


def kind(row: Row) -> str:
    """The class: `AdversarialTraining(FrankWolfe, memory)`."""
    one = made(row)
    parts = [type(one.attack).__name__] if isinstance(one, AdversarialTraining) else []
    parts += ["memory"] if getattr(one, "memory", None) is not None else []
    return f"`{type(one).__name__}({', '.join(parts)})`" if parts else f"`{type(one).__name__}`"


def _row(row: Row) -> dict[str, str]:
    declared, counted = check(row)
    return {
        "name": f"`{row.name}`",
        "label": row.label,
        "class": kind(row),
        "paper": _facts(row).paper,
        "formula": shown_formula(row),
        "declared": declared,
        "counted": counted,
        "oracle": f"`tests/{_facts(row).oracle}`",
    }


def main(options: Options) -> int:
    try:
        for row in (*LOSSES, *ATTACKS):
            check(row)
    except MismatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with make_progress(Console()) as progress:
        losses = trained(options, progress)
        clean, attacks = attacked(options, progress)
    files.write_text(options.page, page(options, losses, clean, attacks))
    print(f"written: {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))
