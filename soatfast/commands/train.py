"""`soatfast train`: one model by one method."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import PartialState

from soatfast.attacks.task import Task
from soatfast.commands.methods import ATTACKS, METHODS, suited, with_engine
from soatfast.commands.options import Choice, Chosen, as_loss, attack_classes, loss_classes, subcommands
from soatfast.evaluate.accuracies import accuracy
from soatfast.losses import Loss
from soatfast.runs import files
from soatfast.runs.files import fingerprint
from soatfast.runs.folder import OPTIONS
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Start
from soatfast.runs.table import Column, Table
from soatfast.train import checkpoint
from soatfast.train.config import TrainConfig, TrainResult
from soatfast.train.processes import on_cpu
from soatfast.train.subject import Subject
from soatfast.train.trainer import train

ACCURACY = "accuracy.json"
CLASSES = {**loss_classes(METHODS.values()), **attack_classes(ATTACKS.values())}
_DEFAULT = "pgd10"

if TYPE_CHECKING:
    AtEnd = Choice | None
else:
    AtEnd = subcommands(CLASSES, "the method that --method names")


@dataclass(frozen=True)
class TrainingConfig(Start):
    """Train one model by one method. After an interruption the same command resumes."""

    preset: Literal["none", "fast"] = "none"
    """fast: a robust CIFAR-10 model at Linf 8/255 in a few minutes of one core; for other data name --data. It changes
    the defaults of the other options; those given still count."""
    run_dir: Path = Path("runs/train")
    """Output folder. A training found there is resumed."""
    method: str = _DEFAULT
    """Name of a method of soatfast compare, whose help lists them. A loss or an attack can be named instead at the end
    of the command, with options. An attack gives the examples to train on."""
    eps: float = 0.2
    """Radius of the ball, for pixels in [0, 1]."""
    p: float = math.inf
    """Norm of the ball: inf or 2. An attack named at the end may allow others."""
    subject: Subject = field(default_factory=Subject)
    engine: str = "eager"
    """How the passes of the training attack run: eager, or some of bf16, fp16, channels_last and compile joined by "+".
    soatfast tune finds the fastest. An attack or loss named at the end has its --engine behind it."""
    train_samples: int | None = None
    """Number of training samples to use, from the first on. None: all."""
    test_samples: int | None = None
    """Number of held-out samples to use, from the first on. None: all."""
    train: TrainConfig = field(default_factory=TrainConfig)
    at_end: AtEnd = None
    """Name of a loss, or of an attack to train on, with options."""

    def __post_init__(self) -> None:
        self.chosen.check(self.eps, self.p)
        if self.engine != "eager":
            with_engine(self.loss(Task(self.eps, 1, (1, 1, 1), self.p)), self.engine)
        weights = self.subject.weights
        if weights is not None and weights.resolve().parent == self.run_dir.resolve():
            raise ValueError(f"the weights to start from lie in run_dir itself, got {weights}; use another run_dir")
        for name in ("train_samples", "test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def chosen(self) -> Chosen:
        return Chosen("method", METHODS, self.method, _DEFAULT, self.at_end)

    def loss(self, task: Task) -> Loss:
        return as_loss(self.chosen.make(task))


def run(config: TrainingConfig, progress: Progress | None = None) -> Table:
    """Train, or resume what run_dir holds; write the weights, options and accuracy; return the table.

    The folder: options.json (options, seed, versions, counted passes), model.safetensors, averaged.safetensors where
    weights are averaged, result.json (seconds and the epochs), accuracy.json (of both on clean held-out samples).
    """
    progress = progress or Progress()
    config.check_start(config.run_dir, OPTIONS)
    files.make_writable(config.run_dir)
    data = config.subject.load_data().first(config.train_samples, config.test_samples)
    torch.manual_seed(config.train.seed)
    model = config.subject.make_model(data)
    weights = None if config.subject.weights is None else fingerprint(model)
    samples = len(data.train)  # type: ignore[arg-type]
    device = PartialState(cpu=on_cpu()).device
    task = Task(config.eps, samples, tuple(data.shape), config.p, config.train.augment, data.classes, device)
    loss = suited(with_engine(config.loss(task), config.engine), model)
    about = {
        "command": "train",
        "method": config.method if config.at_end is None else config.chosen.label,
        "model": config.subject.model,
        "width": config.subject.width,
        "weights": weights,
    }
    progress.stage(config.chosen.label, 0, 1)
    result = train(model, loss, data, config.train, config.run_dir, not config.fresh, progress, about=about)
    found = accuracy(model, data.test)
    shown = {"clean": found.accuracy, "samples": len(found.correct)}
    if config.train.average:
        average = copy.deepcopy(model)
        checkpoint.load_weights(average, config.run_dir / checkpoint.AVERAGED)
        shown["averaged"] = accuracy(average, data.test).accuracy
    if PartialState().is_main_process:
        files.write_json(config.run_dir / ACCURACY, shown)
    names = [checkpoint.WEIGHTS, *([checkpoint.AVERAGED] if config.train.average else [])]
    progress.wrote(config.run_dir, *names, OPTIONS, "result.json", ACCURACY)
    return _table(config, result, shown)


def _table(config: TrainingConfig, result: TrainResult, shown: dict[str, Any]) -> Table:
    columns = [
        Column("method", "method"),
        Column("clean", "clean %"),
        *([Column("averaged", "averaged weights: clean %")] if "averaged" in shown else []),
        Column("forward", "F/step", 0),
        Column("backward_input", "B-in/step", 0),
        Column("backward_parameters", "B-par/step", 0),
        Column("seconds", "training s"),
    ]
    percent = {name: 100 * share for name, share in shown.items() if name != "samples"}
    row: dict[str, Any] = {"method": config.chosen.label, **percent, "seconds": result.seconds, **result.passes}
    note = (
        f"Accuracy on {shown['samples']} held-out samples. F, B-in, B-par: forward passes, backward passes to the "
        f"input and to the parameters, counted on one training step."
    )
    return Table(f"{config.subject.model} on {config.subject.data}, {config.train.epochs} epochs", columns, [row], note)
