"""The comparison of defences: train each, attack each, one table, one picture."""

from __future__ import annotations

import dataclasses
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from accelerate import PartialState
from torch import Tensor, nn

from soatfast.attacks.task import Task, check_ball
from soatfast.commands import papers
from soatfast.commands.methods import BASELINE, COLUMNS, DEMO, METHODS, QUICK, suited, with_engine
from soatfast.commands.options import check_norm, check_torchattacks, listed, nearest
from soatfast.evaluate.accuracies import AccuracyResult, accuracy, gather
from soatfast.gradients.passes import Passes
from soatfast.ops.arguments import norm_name
from soatfast.runs import figures as pictures
from soatfast.runs import files, parts
from soatfast.runs.errors import DiskError, OtherRunError, UserError
from soatfast.runs.files import digest, fingerprint
from soatfast.runs.folder import OPTIONS
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Start
from soatfast.runs.table import Column, Table
from soatfast.train.config import TrainConfig, TrainResult
from soatfast.train.data.sets import Data, load_data
from soatfast.train.subject import check_width, make_model
from soatfast.train.trainer import train


@dataclass(frozen=True)
class CompareConfig(Start):
    """Train one model by several methods and attack each."""

    preset: Literal["demo", "quick", "tables"] = "demo"
    """Defaults of the other options. quick: a result in seconds, on 8x8 digits. tables: the papers' grid on small data
    with three seeds, about an hour; it also writes papers.md, which says which of the papers' claims hold up."""
    run_dir: Path = Path("runs/demo")
    """Output folder. Finished trainings found there are used, interrupted ones are resumed."""
    methods: Annotated[tuple[str, ...], tyro.conf.arg(help=listed("Methods to train by", METHODS))] = DEMO
    attacks: Annotated[tuple[str, ...], tyro.conf.arg(help=listed("Attacks to run", COLUMNS))] = QUICK
    eps: float = 0.2
    """Radius of the ball in training and evaluation, for pixels in [0, 1]."""
    p: float = math.inf
    """Norm of the ball: inf or 2."""
    seeds: int = 1
    """Number of trainings per method, with seeds from seed on. The table shows mean ± sample standard deviation."""
    data: str = "mnist5k"
    """mnist5k (4 000 digits to train on, 1 000 held out), digits8 (8x8 digits), mnist, cifar10, svhn, npz:PATH or
    imagefolder:PATH (see soatfast train)."""
    data_root: Path | None = None
    """Folder of the published files of mnist, cifar10 and svhn."""
    download: bool = False
    """Fetch missing files of mnist or svhn first (needs torchvision)."""
    model: str = "small-cnn"
    """small-cnn (small images), fast (a small VGG), resnet18, wrn-34-10 or package.module:factory (see soatfast
    train)."""
    width: int | None = None
    """Channels of small-cnn (16), fast (32) or resnet18 (64), of the first layer or block."""
    train_samples: int | None = None
    """Number of training samples to use, from the first on. None: all."""
    test_samples: int | None = None
    """Number of held-out samples to use, from the first on. None: all."""
    engine: str = "eager"
    """How the passes of the training attacks run: eager, or some of bf16, fp16, channels_last and compile with "+"
    between. soatfast tune finds the fastest. Methods without such an attack (standard, cure, soat, ...) need eager."""
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        nearest("method", self.methods, METHODS)
        nearest("attack", self.attacks, COLUMNS)
        for what, names in (("methods", self.methods), ("attacks", self.attacks)):
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{what} must be some names, each once, got {', '.join(names) or 'none'}")
        missing = [name for name in ("clean", "pgd40") if name not in self.attacks]
        if missing:
            raise ValueError(f"the table and picture need the attacks clean and pgd40, got {', '.join(self.attacks)}")
        check_ball(self.eps, self.p)
        for name in self.methods if self.engine != "eager" else ():
            with_engine(METHODS[name].make(Task(self.eps, 1, (1, 1, 1), self.p)), self.engine)
        check_width(self.model, self.width)
        for row in (*(METHODS[name] for name in self.methods), *(COLUMNS[name] for name in self.attacks)):
            check_norm(row, self.p)
        for name in ("seeds", "train_samples", "test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass(frozen=True)
class Trained:
    """One trained model with its figures; `loss` is described in JSON's terms, `accuracies` has one entry an attack."""

    seed: int
    model: nn.Module = field(repr=False)
    loss: dict[str, Any] = field(repr=False)
    training: TrainResult
    accuracies: dict[str, AccuracyResult]


def run(config: CompareConfig, progress: Progress | None = None) -> Table:
    """Run the comparison; write results.json, results.md and comparison.png; return the table.

    Training seconds: see TrainResult. Every run begins with the weights that its seed gives. A method whose folder is
    damaged, or whose loss became infinite, costs no other: UserError names it when the others are written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("compare runs in one process; for several, call soatfast.train.train under accelerate launch")
    progress = progress or Progress()
    config.check_start(config.run_dir, f"*/seed-*/{OPTIONS}")
    with locked(config.run_dir, progress.note):
        return _run(config, progress)


def _run(config: CompareConfig, progress: Progress) -> Table:
    if "autoattack" in config.attacks:  # asked now, and not after hours of training
        check_torchattacks()
    data = load_data(config.data, config.data_root, config.download).first(config.train_samples, config.test_samples)
    runs: dict[str, list[Trained]] = {name: [] for name in config.methods}
    failed: dict[str, str] = {}
    todo = [(name, config.train.seed + i) for i in range(config.seeds) for name in config.methods]
    for index, (name, seed) in enumerate(todo):
        label = METHODS[name].label + (f", seed {seed}" if config.seeds > 1 else "")
        if name in failed:
            continue
        try:
            runs[name].append(_trained(config, data, name, seed, (label, index, len(todo)), progress))
        except (DiskError, OtherRunError):  # everybody's
            raise
        except UserError as error:  # of one method's folder or loss
            del runs[name]
            if not runs:
                raise
            failed[name] = f"{label}: {error}"
            progress.note(f"left out: {error}")
    config = dataclasses.replace(config, methods=tuple(runs))
    table = _table(config, runs)
    _write(config, data, runs, table)
    if config.preset == "tables" and not failed:
        papers.write(config.run_dir)
    try:
        _picture(config, data, runs)
    except ImportError as error:
        progress.note(f"no picture, matplotlib is missing ({error})")
    names = ["results.md", "results.json", "comparison.png"]
    names += ["papers.md", "papers.json"] if config.preset == "tables" else []
    if failed:
        raise UserError(f"{'; '.join(failed.values())}; {config.run_dir / 'results.md'} has the other methods")
    there = [name for name in names if (config.run_dir / name).is_file()]
    progress.wrote(config.run_dir, *there, "and a folder per method")
    return table


def _trained(
    config: CompareConfig, data: Data, name: str, seed: int, place: tuple[str, int, int], progress: Progress
) -> Trained:
    label, index, total = place
    progress.stage(f"{label}, training", 2 * index, 2 * total)
    task = _task(config, data)
    torch.manual_seed(seed)
    model = make_model(config.model, data.shape, data.classes, config.width)
    training = dataclasses.replace(config.train, seed=seed)
    folder = config.run_dir / name / f"seed-{seed}"
    loss = suited(with_engine(METHODS[name].make(task), config.engine), model)
    result = train(model, loss, data, training, folder, not config.fresh, progress)
    progress.stage(f"{label}, attacks", 2 * index + 1, 2 * total)
    samples = data.test
    found = {key: _evaluate(config, model, samples, key, task, folder) for key in config.attacks}
    progress.note(", ".join(f"{COLUMNS[key].label} {100 * value.accuracy:.1f} %" for key, value in found.items()))
    return Trained(seed, model, files.describe(loss), result, found)


def _task(config: CompareConfig, data: Data) -> Task:
    samples = len(data.train)  # type: ignore[arg-type]
    device = PartialState().device
    return Task(config.eps, samples, tuple(data.shape), config.p, config.train.augment, data.classes, device)


def _evaluate(
    config: CompareConfig, model: nn.Module, samples: Any, key: str, task: Task, folder: Path
) -> AccuracyResult:
    """The accuracy under one attack, kept in the run's folder: the attacks of the tables outlast their trainings."""
    attack = COLUMNS[key].make(task)
    x, y = gather(samples)

    def make() -> dict[str, Tensor]:
        batch_size = 1000 if key == "autoattack" else 250  # AutoAttack's attacks shrink the batch to the survivors
        result = accuracy(model, (x, y), attack, batch_size)
        costs = torch.tensor([result.attacked, *result.passes.values()])
        return {"correct": result.correct, "costs": costs, "seconds": torch.tensor(result.seconds, dtype=torch.float64)}

    asked = {"attack": attack, "samples": digest(x, y), "weights": fingerprint(model)}
    path = folder / parts.FOLDER / f"{key}.safetensors"
    found = parts.kept(path, asked, make, config.fresh)
    attacked, *passes = found["costs"].tolist()
    names = (f.name for f in dataclasses.fields(Passes))
    correct = found["correct"]
    share = int(correct.sum()) / len(correct)
    return AccuracyResult(share, correct, attacked, dict(zip(names, passes, strict=True)), float(found["seconds"]))


def _table(config: CompareConfig, runs: dict[str, list[Trained]]) -> Table:
    columns = [Column("method", "method"), *(Column(key, f"{COLUMNS[key].label} %") for key in config.attacks)]
    columns += [
        Column("forward", "F/step", 0),
        Column("backward_input", "B-in/step", 0),
        Column("backward_parameters", "B-par/step", 0),
        Column("seconds", "training s"),
        Column("speedup", "speed-up", 2, "×"),
    ]
    rows: list[dict[str, Any]] = []
    for name, found in runs.items():
        row: dict[str, Any] = {"method": METHODS[name].label}
        for key in config.attacks:
            row[key] = [100 * run.accuracies[key].accuracy for run in found]
        for key in ("forward", "backward_input", "backward_parameters"):
            row[key] = found[0].training.passes[key]
        row["seconds"] = [run.training.seconds for run in found]
        if BASELINE in runs:
            pairs = zip(runs[BASELINE], found, strict=True)
            row["speedup"] = [base.training.seconds / run.training.seconds for base, run in pairs]
        rows.append(row)
    seeds = f", {config.seeds} seeds (mean ± sample standard deviation)" if config.seeds > 1 else ""
    note = (
        f"{_ball(config)}, {config.train.epochs} epochs{seeds}. F, B-in, B-par: forward passes, "
        "backward passes to the input and to the parameters, counted on one training step. "
        f"Speed-up: over {METHODS[BASELINE].label}."
    )
    return Table(f"{config.model} on {config.data}", columns, rows, note)


def _ball(config: CompareConfig) -> str:
    return f"{norm_name(config.p)} eps {config.eps:g}"


def _write(config: CompareConfig, data: Data, runs: dict[str, list[Trained]], table: Table) -> None:
    from soatfast.ops.config import describe as installation

    device = next(next(iter(runs.values()))[0].model.parameters()).device
    task = _task(config, data)
    methods = {
        name: {
            "label": METHODS[name].label,
            "loss": found[0].loss,
            "runs": [_run_json(run) for run in found],
        }
        for name, found in runs.items()
    }
    results = {
        "config": files.describe(config),
        "attacks": {key: files.describe(COLUMNS[key].make(task)) for key in config.attacks},
        "device": {"type": str(device), "name": _device_name(device), "threads": torch.get_num_threads()},
        "installation": files.describe(installation()),
        "methods": methods,
        "table": table.to_json(),
    }
    files.write_json(config.run_dir / "results.json", results)
    files.write_text(config.run_dir / "results.md", table.to_markdown())


def _run_json(run: Trained) -> dict[str, Any]:
    """One trained model's figures. Accuracies are shares, not percent."""
    attacks = {
        key: {
            "accuracy": found.accuracy,
            "attacked": found.attacked,
            "seconds": found.seconds,
            "passes": found.passes,
        }
        for key, found in run.accuracies.items()
    }
    return {"seed": run.seed, "training": dataclasses.asdict(run.training), "evaluation": attacks}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _picture(config: CompareConfig, data: Data, runs: dict[str, list[Trained]]) -> None:
    attack = COLUMNS["pgd40"].make(_task(config, data))
    chosen = _one_of_each(data.test, [run for found in runs.values() for run in found[:1]], data.classes)
    x, y = (torch.stack(column) for column in zip(*(data.test[i] for i in chosen), strict=True))
    series = []
    for name, found in runs.items():
        model = found[0].model.eval()
        device = next(model.parameters()).device
        with torch.random.fork_rng():
            torch.manual_seed(config.train.seed)
            attacked = attack(model, x.to(device), y.to(device)) if attack is not None else x.to(device)
        with torch.no_grad():
            predictions = model(attacked).argmax(1).cpu()
        seconds = [run.training.seconds for run in found]
        percent = [100 * run.accuracies["pgd40"].accuracy for run in found]
        style = list(METHODS).index(name)
        series.append(pictures.Series(METHODS[name].label, seconds, percent, attacked.cpu(), predictions, style))
    title = f"{config.model} on {config.data}, {_ball(config)}"
    pictures.comparison(config.run_dir / "comparison.png", series, x, y, COLUMNS["pgd40"].label, title)


def _one_of_each(samples: Any, runs: Sequence[Trained], classes: int) -> list[int]:
    """Of up to ten classes, one held-out sample each: the first that all models get right, else the first."""
    everyone: Tensor = torch.stack([run.accuracies["clean"].correct for run in runs]).all(0)
    labels = torch.tensor([int(samples[i][1]) for i in range(len(samples))])
    chosen = []
    for label in range(min(classes, 10)):
        candidates = (labels == label).nonzero().flatten()
        best = candidates[everyone[candidates]]
        if len(candidates):
            chosen.append(int((best if len(best) else candidates)[0]))
    return chosen
