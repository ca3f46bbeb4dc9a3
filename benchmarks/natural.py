"""One training on natural images, evaluated and kept: what `speedrun` and `study_cifar` share.

Every part has its own folder under the run folder: the training (resumable by itself), and one file for each attack.
Whatever is finished there is used; another option in the same folder is refused, as `soatfast train` refuses it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks import APGD, PGD, TargetedAPGD
from soatfast.attacks.autoattack import AutoAttack
from soatfast.attacks.task import Task
from soatfast.commands.methods import METHODS, suited
from soatfast.commands.presets import fast_recipe
from soatfast.evaluate.accuracies import accuracy
from soatfast.gradients.passes import Passes
from soatfast.runs import parts
from soatfast.runs.errors import UserError
from soatfast.runs.figures import clear_axes, figure
from soatfast.runs.files import digest, fingerprint, make_writable, write_text
from soatfast.train import Data, TrainConfig, load_data, load_weights, make_model, train
from soatfast.train.checkpoint import AVERAGED

EPS = {math.inf: 8 / 255, 2.0: 0.5}
ATTACKS = ("clean", "pgd50", "apgd", "autoattack")
_PASSES = tuple(f.name for f in dataclasses.fields(Passes))[:3]


@dataclass(frozen=True)
class Part:
    """One training.

    radius: of the training over that of the evaluation, the dial between clean and robust accuracy.
    change: fields of the recipe that this part sets otherwise, as (name, value).
    """

    method: str
    epochs: int
    seed: int = 0
    radius: float = 1.0
    samples: int = 50_000
    p: float = math.inf
    model: str = "fast"
    width: int | None = None
    change: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """Its folder."""
        shown = [self.method, f"{self.radius:g}eps", f"{self.epochs}epochs", f"{self.samples}", f"seed{self.seed}"]
        shown += [] if self.p == math.inf else [f"L{self.p:g}"]
        shown += [] if self.model == "fast" else [self.model]
        shown += [] if self.width is None else [f"width{self.width}"]
        return "-".join([*shown, *(f"{name}={value}" for name, value in self.change)])

    @property
    def config(self) -> TrainConfig:
        return dataclasses.replace(fast_recipe(), epochs=self.epochs, seed=self.seed, **dict(self.change))


@dataclass(frozen=True)
class TwoAPGD:
    """APGD-CE, then targeted APGD on those that it left: the first two attacks of AutoAttack, 100 steps each."""

    eps: float
    p: float
    targets: int
    targeted = False

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """x (B, C, H, W), y (B,) -> adversarial examples."""
        x_adv = APGD(eps=self.eps, p=self.p)(model, x, y)
        with torch.no_grad():
            left = (model(x_adv).argmax(1) == y).nonzero().squeeze(1)
        if len(left):
            x_adv[left] = TargetedAPGD(eps=self.eps, p=self.p, targets=self.targets)(model, x[left], y[left])
        return x_adv


@dataclass(frozen=True)
class Found:
    """What came of a part: core-seconds of the training, passes of one step, steps, and who stayed right (N,) bool."""

    part: Part
    seconds: float
    passes: dict[str, int]
    steps: int
    correct: dict[str, Tensor]

    @property
    def total_passes(self) -> int:
        """Forward and backward passes of the whole training."""
        return self.steps * sum(self.passes[name] for name in _PASSES)

    def percent(self, attack: str) -> float | None:
        mask = self.correct.get(attack)
        return None if mask is None else 100 * mask.float().mean().item()


@dataclass(frozen=True)
class Options:
    """What all parts have in common."""

    data: str = "npz:build/cifar10.npz"
    """cifar10, or npz:PATH of 50 000 images to train on and 10 000 held out."""
    run_dir: Path = Path("runs/natural")
    """Folder of everything written."""
    held_out: int = 1000
    """Held-out images for the clean and the PGD-50 accuracy."""
    apgd: int = 0
    """The first of these for APGD-CE and then targeted APGD; 0: without."""
    autoattack: int = 0
    """The first of these for AutoAttack; 0: without."""
    epochs: int | None = None
    """Epochs of every part, to try the command."""
    train_samples: int | None = None
    """Training images of every part, to try the command."""

    def __post_init__(self) -> None:
        for name, low in (("held_out", 1), ("apgd", 0), ("autoattack", 0), ("epochs", 1), ("train_samples", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"{name} must be at least {low}, got {value}")

    def changed(self, part: Part) -> Part:
        """The part as these options want it."""
        new = {name: value for name, value in (("epochs", self.epochs), ("samples", self.train_samples)) if value}
        return dataclasses.replace(part, **new)


def run(options: Options, wanted: Sequence[Part]) -> list[Found]:
    """Train and evaluate the parts, one after another: trainings first, so that their seconds compare.

    Raises:
        UserError: the data has fewer images than a part wants; RunFolderError: a folder has a run of other options.
    """
    make_writable(options.run_dir)
    data = load_data(options.data)
    wanted = [options.changed(part) for part in wanted]
    _check(data, wanted, options)
    made = [_train(options, part, data) for part in wanted]
    return [dataclasses.replace(one, correct=_evaluate(options, one.part, data, model)) for one, model in made]


def _check(data: Data, wanted: Sequence[Part], options: Options) -> None:
    samples, held_out = len(data.train), len(data.test)  # type: ignore[arg-type]
    judged = max(options.held_out, options.apgd, options.autoattack)
    largest = max(part.samples for part in wanted)
    if samples < largest or held_out < judged:
        raise UserError(
            f"{options.data}: expected {largest} training and {judged} held-out "
            f"images, got {samples} and {held_out}; --train-samples and --held-out ask for fewer"
        )


def _train(options: Options, part: Part, data: Data) -> tuple[Found, nn.Module]:
    data, folder = data.first(part.samples), options.run_dir / part.name
    torch.manual_seed(part.seed)
    model = make_model(part.model, data.shape, data.classes, part.width)
    config = part.config
    task = Task(EPS[part.p] * part.radius, part.samples, tuple(data.shape), part.p, config.augment, data.classes)
    print(f"{part.name}", flush=True)
    result = train(model, suited(METHODS[part.method].make(task), model), data, config, folder)
    if config.average:
        load_weights(model, folder / AVERAGED)
    seconds = sum(row["cpu_seconds"] for row in result.history)
    return Found(part, seconds, result.passes, result.steps, {}), model


def _evaluate(options: Options, part: Part, data: Data, model: nn.Module) -> dict[str, Tensor]:
    """attack -> (N,) bool, each kept in a file of the part's folder."""
    found, eps = {}, EPS[part.p]
    makers: dict[str, tuple[int, Callable[[], Any]]] = {
        "clean": (options.held_out, lambda: None),
        "pgd50": (options.held_out, lambda: PGD(eps=eps, p=part.p, steps=50, step_size=eps / 4, best=True)),
        "apgd": (options.apgd, lambda: TwoAPGD(eps, part.p, min(9, data.classes - 1))),
        "autoattack": (options.autoattack, lambda: AutoAttack(eps=eps, p=part.p, classes=data.classes)),
    }
    for name, (count, make) in makers.items():
        if count:
            x, y = data.first(test=count).test.tensors  # type: ignore[attr-defined]
            attack = make()
            found[name] = parts.kept(
                options.run_dir / part.name / parts.FOLDER / f"{name}.safetensors",
                {"attack": attack, "samples": digest(x, y), "weights": fingerprint(model)},
                lambda attack=attack, x=x, y=y: {"correct": accuracy(model, (x, y), attack).correct},  # type: ignore[misc]
            )["correct"]
    return found


# ------------------------------------------------------------------------------------------------ tables


def paired(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[float, float]:
    """Mean of a - b in percentage points over the same images, and its standard error.

    a, b: (N,) bool masks, one a seed: each image's share of seeds that stay right is compared. The standard error is
    over the images, so it says nothing about other seeds.

    >>> import torch
    >>> a, b = torch.tensor([True, True, False, True]), torch.tensor([True, False, False, False])
    >>> [round(value, 1) for value in paired([a], [b])]
    [50.0, 28.9]
    """
    difference = torch.stack([t.double() for t in a]).mean(0) - torch.stack([t.double() for t in b]).mean(0)
    return 100 * difference.mean().item(), 100 * (difference.std() / math.sqrt(len(difference))).item()


def table(found: Sequence[Found], labels: Sequence[str], head: str = "training") -> str:
    """Markdown, a row a part."""
    lines = [
        f"| {head} | epochs | passes a step | core-seconds "
        "| clean % | PGD-50 % | with targeted APGD % | AutoAttack % |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one, label in zip(found, labels, strict=True):
        shown = ["–" if (v := one.percent(name)) is None else f"{v:.1f}" for name in ATTACKS]
        passes = sum(one.passes[name] for name in _PASSES)
        lines.append(f"| {label} | {one.part.epochs} | {passes} | {one.seconds:.0f} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def write(options: Options, name: str, text: str) -> None:
    write_text(options.run_dir / name, text)
    print(text)
    print(f"written to {options.run_dir / name}")


def curves(path: Path, panels: dict[str, Sequence[Found]]) -> None:
    """PGD-50 accuracy against core-seconds (above) and against passes (below): a column a panel, a colour a method."""
    made = figure((4.5 * len(panels), 7))
    axes = made.subplots(2, len(panels), squeeze=False)
    measures: list[tuple[str, Callable[[Found], float]]] = [
        ("core-seconds", lambda one: one.seconds),
        ("passes", lambda one: one.total_passes),
    ]
    for row, (name, of) in zip(axes, measures, strict=True):
        for axis, (title, found) in zip(row, panels.items(), strict=True):
            for method in dict.fromkeys(one.part.method for one in found):
                points = sorted((of(one), one.percent("pgd50")) for one in found if one.part.method == method)
                axis.plot(*zip(*points, strict=True), marker="o", linestyle="none", label=METHODS[method].label)
            axis.set_xscale("log")
            axis.set_xlabel(name)
            axis.set_ylabel("PGD-50 accuracy (%)")
            axis.set_title(title, fontsize=10)
            clear_axes(axis)
            axis.legend(fontsize=7)
    made.savefig(path, format="png")
