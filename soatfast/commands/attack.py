"""`soatfast attack`: one attack on one model; the examples, the predictions, and what they cost."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from soatfast.attacks.autoattack import require_torchattacks
from soatfast.attacks.catalogue import ATTACKS, Task, check_ball
from soatfast.commands.options import ATTACK_CLASSES, Choice, subcommands
from soatfast.gradients.passes import Passes, count_passes
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.files import fingerprint
from soatfast.runs.folder import OPTIONS, check_options, remove_command, write_options
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Start
from soatfast.runs.table import Column, Table
from soatfast.train.data.sets import Data
from soatfast.train.models import MODELS
from soatfast.train.subject import Subject

EXAMPLES, RESULTS, SHOWN = "adversarial.npz", "attack.json", "attack.md"
_PARTS = "parts"
_DEFAULT = "pgd40"
_NAMES = tuple(name for name in ATTACKS if name != "clean")

if TYPE_CHECKING:
    Own = Choice | None
else:
    Own = subcommands(ATTACK_CLASSES, "the attack that --attack names")


@dataclass(frozen=True)
class AttackConfig(Start):
    """Attack one trained model; the same command goes on after an interruption, batch by batch."""

    run_dir: Path = Path("runs/attack")
    """Folder of everything written."""
    attack: str = _DEFAULT
    """A column of soatfast compare, as fgsm, pgd40, quadratic, haat or autoattack (of torchattacks; another name lists
    them). An attack named at the end of the command is used in its place, with its own options."""
    eps: float = 0.2
    """Radius, in pixel units of [0, 1]."""
    p: float = math.inf
    """Norm of the ball: inf or 2 (an attack named at the end may know others)."""
    subject: Subject = field(default_factory=Subject)
    split: Literal["test", "train"] = "test"
    """Which samples: those held out, or those to train on."""
    samples: int | None = 1000
    """The first so many; None: all."""
    batch_size: int = 250
    """Samples attacked at a time, and kept through an interruption."""
    seed: int = 0
    """Of random starts; and of the weights of a model that sets its own."""
    own: Own = None
    """An attack by class name."""

    def __post_init__(self) -> None:
        if self.attack not in _NAMES:
            raise ValueError(f"attack must be one of {', '.join(_NAMES)}, got {self.attack!r}")
        if self.own is None:
            check_ball(self.eps, self.p)
        elif self.attack != _DEFAULT:
            raise ValueError(f"either --attack {self.attack} or {self.own.of.__name__} at the end, got both")
        else:
            self.own.make(self.eps, self.p)
        if self.split not in ("test", "train"):
            raise ValueError(f"split must be test or train, got {self.split!r}")
        if self.batch_size < 1 or (self.samples is not None and self.samples < 1):
            raise ValueError(f"batch_size and samples must be at least 1, got {self.batch_size} and {self.samples}")
        if self.subject.weights is None and self.subject.model in MODELS:
            raise ValueError(f"weights are needed: {self.subject.model} without them is not trained")

    @property
    def label(self) -> str:
        return ATTACKS[self.attack][0].removesuffix(" %") if self.own is None else self.own.of.__name__

    def make(self, data: Data) -> Any:
        """The attack itself."""
        if self.own is not None:
            return self.own.make(self.eps, self.p)
        if self.attack == "autoattack":  # asked now, and not where it is first used
            try:
                require_torchattacks()
            except ImportError as error:
                raise UserError(str(error)) from error
        return ATTACKS[self.attack][1](Task(self.eps, 0, data.shape, self.p, classes=data.classes))


@dataclass(frozen=True)
class _Part:
    """One batch: the examples, the predictions without and with the attack, and what the attack cost."""

    x_adv: np.ndarray
    y: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    distance: np.ndarray
    passes: np.ndarray
    seconds: np.ndarray


def attack(config: AttackConfig, progress: Progress | None = None) -> Table:
    """Attack every sample, also those that are wrong already; write the examples and the figures; return the table.

    The folder: adversarial.npz (x_adv (N, ...) float32, y, prediction_clean, prediction, classes; no pickles in it, and
    ``--data npz:...`` reads it), attack.json, attack.md, options.json (options, seed, versions, counted passes). Each
    finished batch is kept until all are done. The random numbers of a batch depend on the seed and its place only.
    """
    progress = progress or Progress()
    folder = config.run_dir
    config.check_start(folder, OPTIONS)
    files.make_writable(folder)
    data = config.subject.load_data()
    attacker = config.make(data)
    samples = _chosen(config, data)
    torch.manual_seed(config.seed)
    model = config.subject.make_model(data).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    options = _options(config, data, attacker, model, len(samples))  # type: ignore[arg-type]
    if config.fresh:
        remove_command(folder, "attack", "an attack", _PARTS, EXAMPLES, RESULTS, SHOWN)
    if check_options(folder, options) and (folder / RESULTS).is_file() and (folder / EXAMPLES).is_file():
        progress.stage(config.label, 0, 1)
        progress.note("attacked already")
        return _table(config, files.read_json(folder / RESULTS))
    write_options(folder, options)
    whole = _whole(_attack_all(config, attacker, model, samples, progress))
    passes = dict(zip((f.name for f in dataclasses.fields(Passes)), whole.passes.tolist(), strict=True))
    results = _results(config, whole, passes, options)
    arrays = {"x_adv": whole.x_adv, "y": whole.y, "prediction_clean": whole.clean, "prediction": whole.attacked}
    _save(folder / EXAMPLES, {**arrays, "classes": np.array(data.classes)})
    write_options(folder, options, passes)
    files.write_json(folder / RESULTS, results)
    table = _table(config, results)
    files.write_text(folder / SHOWN, table.to_markdown())
    shutil.rmtree(folder / _PARTS, ignore_errors=True)
    return table


def _chosen(config: AttackConfig, data: Data) -> Dataset[Any]:
    some = data.first(config.samples, config.samples)
    samples = some.test if config.split == "test" else some.train
    if len(samples) == 0:  # type: ignore[arg-type]
        raise UserError(f"{config.subject.data} has no samples in the split {config.split}")
    return samples


def _options(config: AttackConfig, data: Data, attacker: Any, model: nn.Module, samples: int) -> dict[str, Any]:
    """What makes it the same attack; compared before it is gone on with."""
    return {
        "command": "attack",
        "attack": files.describe(attacker),
        "seed": config.seed,
        "batch_size": config.batch_size,
        "data": {"name": data.name, "split": config.split, "samples": samples, "shape": list(data.shape)},
        "model": {"name": config.subject.model, "weights": fingerprint(model)},
    }


def _attack_all(
    config: AttackConfig, attacker: Any, model: nn.Module, samples: Dataset[Any], progress: Progress
) -> list[_Part]:
    parts = config.run_dir / _PARTS
    parts.mkdir(exist_ok=True)
    count = len(samples)  # type: ignore[arg-type]
    starts = range(0, count, config.batch_size)
    found = []
    for i, start in enumerate(starts):
        end = min(start + config.batch_size, count)
        progress.stage(f"{config.label}, samples {start + 1} to {end} of {count}", i, len(starts))
        path = parts / f"{i:06d}.npz"
        part = _kept(path)
        if part is None:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed * 1_000_003 + i)
                part = _attack_batch(attacker, model, *_batch(samples, start, end), config.p)
            _save(path, vars(part))
        found.append(part)
    return found


def _batch(samples: Dataset[Any], start: int, end: int) -> tuple[Tensor, Tensor]:
    if isinstance(samples, TensorDataset):
        x, y = samples[start:end]
    else:
        x, y = default_collate([samples[i] for i in range(start, end)])
    return x, y


def _attack_batch(attacker: Any, model: nn.Module, x: Tensor, y: Tensor, p: float) -> _Part:
    device = next(model.parameters()).device
    x, y = x.to(device), y.to(device)
    before = _predict(model, x)
    start = time.perf_counter()
    with count_passes(model) as passes:
        x_adv = attacker(model, x, y)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    distance = torch.linalg.vector_norm((x_adv - x).flatten(1).double(), ord=p, dim=1).amax()
    counted = np.array(dataclasses.astuple(passes.total()))
    tensors = (x_adv, y, before, _predict(model, x_adv), distance)
    return _Part(*[t.cpu().numpy() for t in tensors], *[counted, np.array(seconds)])


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)  # type: ignore[no-any-return]


def _kept(path: Path) -> _Part | None:
    """A finished batch of an earlier sitting, if it is whole."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return _Part(**{f.name: file[f.name] for f in dataclasses.fields(_Part)})
    except Exception:  # not there, or damaged in any of NumPy's ways: attacked again
        return None


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the whole NPZ or nothing."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)


def _whole(parts: list[_Part]) -> _Part:
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("x_adv", "y", "clean", "attacked")}
    distance = np.array(max(float(p.distance) for p in parts))
    passes, seconds = (np.sum([getattr(p, name) for p in parts], axis=0) for name in ("passes", "seconds"))
    return _Part(**joined, distance=distance, passes=passes, seconds=seconds)


def _results(config: AttackConfig, whole: _Part, passes: dict[str, int], options: dict[str, Any]) -> dict[str, Any]:
    right = whole.clean == whole.y
    return {
        "config": files.describe(config),
        "attack": options["attack"],
        "samples": len(whole.y),
        "clean": float(right.mean()),
        "attacked": float((right & (whole.attacked == whole.y)).mean()),
        "largest_distance": float(whole.distance),
        "passes": passes,
        "seconds": float(whole.seconds),
    }


def _table(config: AttackConfig, results: dict[str, Any]) -> Table:
    columns = [
        Column("attack", "attack"),
        Column("clean", "clean %"),
        Column("attacked", "attacked %"),
        Column("distance", "largest distance", 4),
        Column("forward", "F/sample"),
        Column("backward", "B-in/sample"),
        Column("seconds", "attack s"),
    ]
    count, passes = results["samples"], results["passes"]
    row = {
        "attack": config.label,
        "clean": 100 * results["clean"],
        "attacked": 100 * results["attacked"],
        "distance": results["largest_distance"],
        "forward": passes["forward_samples"] / count,
        "backward": passes["backward_input_samples"] / count,
        "seconds": results["seconds"],
    }
    ball = f"{'Linf' if config.p == math.inf else f'L{config.p:g}'} eps {config.eps:g}"
    note = (
        f"{ball}, {count} samples ({config.split}). attacked: right without the attack and with it. F, B-in: forward "
        f"passes and backward passes to the input, counted during the attack."
    )
    return Table(f"{config.subject.model} on {config.subject.data}", columns, [row], note)
