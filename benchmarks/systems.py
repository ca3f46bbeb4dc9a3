"""The table of systems: every loss and attack with its paper, passes, oracle test, and a run on the demo data.

python -m benchmarks.systems writes docs/systems.md. Trainings found in the run folder are used, not repeated.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from rich.console import Console
from torch import Tensor, nn

from benchmarks.system_rows import ATTACKS, BATCH, CLASSES, EPS, LOSSES, SHAPE, AttackSystem, LossSystem
from soatfast.commands.compare import CompareConfig, compare
from soatfast.evaluate.accuracies import accuracy
from soatfast.gradients.passes import Passes, count_passes
from soatfast.runs import files
from soatfast.runs.progress import Progress, make_progress
from soatfast.runs.table import Column, Table
from soatfast.train import TrainConfig, checkpoint, load_data
from soatfast.train.models import build_model

ROOT = Path(__file__).parents[1]


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


def declared_and_counted(system: LossSystem | AttackSystem) -> tuple[Passes, Passes]:
    """Of one call or training step on a batch of 16 on the small CNN, with its first weights."""
    torch.manual_seed(0)
    model = build_model("small-cnn", SHAPE[0], CLASSES)
    x, y = torch.rand(BATCH, *SHAPE), torch.arange(BATCH) % CLASSES
    if isinstance(system, AttackSystem):
        with count_passes(model) as counted:
            system.attack(model, x, y)
        return system.attack.passes(BATCH), counted.total()
    loss = system.make()
    with count_passes(model) as counted:
        _value(loss, model, x, y).backward()
    return loss.passes(BATCH), counted.total()


def _value(loss: Any, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    known = (x, y) if getattr(loss, "memory", None) is None else (x, y, torch.arange(len(x)))
    return loss(model, *known)


def check(system: LossSystem | AttackSystem) -> tuple[str, str]:
    """The declared and the counted passes as text; MismatchError where they or the formula differ."""
    declared, counted = declared_and_counted(system)
    numbers = _three(declared)
    if declared != counted or system.of_formula() != numbers:
        raise MismatchError(f"{system.name}: formula {system.of_formula()}, declared {declared}, counted {counted}")
    if not (ROOT / "tests" / system.oracle).is_file():
        raise MismatchError(f"{system.name}: there is no tests/{system.oracle}")
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
        methods=tuple(system.method for system in LOSSES),
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
    for index, system in enumerate(ATTACKS):
        progress.stage(f"attack {system.name}", index, len(ATTACKS))
        shares[system.name] = 100 * accuracy(model, (x, y), system.attack).accuracy
        progress.note(f"{shares[system.name]:.1f} %")
    return 100 * accuracy(model, (x, y)).accuracy, shares


_PASSES = (
    Column("paper", "paper"),
    Column("formula", "passes F, B-in, B-par"),
    Column("declared", "declared"),
    Column("counted", "counted"),
    Column("oracle", "oracle test"),
)


def page(options: Options, losses: dict[str, dict[str, float]], clean: float, attacks: dict[str, float]) -> str:
    """The Markdown of docs/systems.md."""
    loss_rows = [
        {**_row(system), "system": code(system.name), **losses[system.method], "method": f"`{system.method}`"}
        for system in LOSSES
    ]
    attack_rows = [{**_row(s), "system": code(s.name), "accuracy": attacks[s.name]} for s in ATTACKS]
    loss_columns = [Column("system", "loss"), *_PASSES, Column("method", "method"), Column("clean", "clean %")]
    loss_table = Table("Losses", [*loss_columns, Column("pgd40", "PGD-40 %")], loss_rows)
    attack_columns = [Column("system", "attack"), *_PASSES, Column("accuracy", "accuracy %")]
    attack_table = Table("Attacks", attack_columns, attack_rows)
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
`tests/losses/test_losses.py` hold what all of them have to satisfy.

**The accuracies are a smoke run, not a ranking.** They show that each loss trains and that each attack attacks: one
seed, {count}, no tuning, and a rerun elsewhere moves them by points.
`soatfast compare --preset tables` compares, with seeds.

#{loss_table.to_markdown()}
Small CNN, {count} of mnist5k, Linf eps {EPS:g}; accuracy on {held_out} held-out
digits, seed 0. `method` is the name in `soatfast compare --methods`. B-par of a regulariser on input gradients (SOAR,
CURE, InputGradientPenalty, LLR) goes back through the graph of its gradients and costs more than another one.

#{attack_table.to_markdown()}
Accuracy on {held_out} held-out digits of a small CNN trained by PGD-10 for {options.attacked_epochs} epochs, clean
{clean:.1f} %, Linf eps {EPS:g}. SOAE runs with `rtol=0` and SimBA without early stop, so that their passes are exactly
the formula's; by default they stop early and make fewer.
"""


def code(name: str) -> str:
    """The name as it is written in the page."""
    head, comma, rest = name.partition(",")
    return f"`{name}`" if "(" in name else f"`{head}`{comma}{rest}"


def _row(system: LossSystem | AttackSystem) -> dict[str, str]:
    declared, counted = check(system)
    return {
        "paper": system.paper,
        "formula": system.shown_formula(),
        "declared": declared,
        "counted": counted,
        "oracle": f"`tests/{system.oracle}`",
    }


def main(options: Options) -> int:
    try:
        for system in (*LOSSES, *ATTACKS):
            check(system)
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
