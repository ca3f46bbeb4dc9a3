"""`soatfast attack`: one attack on one model; the examples, the predictions, and what they cost."""

from __future__ import annotations

import dataclasses
import math
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset, default_collate

from soatfast.attacks.task import Task
from soatfast.commands.methods import ATTACKS
from soatfast.commands.options import Choice, Chosen, attack_classes, check_torchattacks, subcommands
from soatfast.gradients.counting import count_passes
from soatfast.gradients.device import default_device
from soatfast.gradients.passes import Passes
from soatfast.ops.arguments import norm_name
from soatfast.runs import files, parts
from soatfast.runs.errors import RunFolderError, UserError
from soatfast.runs.files import fingerprint
from soatfast.runs.folder import OPTIONS, check_options, remove_command, write_options
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Start
from soatfast.runs.table import Column, Table
from soatfast.train.data.sets import Data
from soatfast.train.models import MODELS
from soatfast.train.subject import Subject

EXAMPLES, RESULTS, SHOWN = "adversarial.npz", "attack.json", "attack.md"
_DEFAULT = "pgd40"
CLASSES = attack_classes(ATTACKS.values())

if TYPE_CHECKING:
    AtEnd = Choice | None
else:
    AtEnd = subcommands(CLASSES, "the attack that --attack names")


@dataclass(frozen=True)
class AttackConfig(Start):
    """Attack one trained model. After an interruption the same command resumes at the next batch."""

    run_dir: Path = Path("runs/attack")
    """Output folder. A run found there is resumed."""
    attack: str = _DEFAULT
    """Name of an attack of soatfast compare, whose help lists them. An attack can be named instead at the end of the
    command, with options."""
    eps: float = 0.2
    """Radius of the ball, for pixels in [0, 1]."""
    p: float = math.inf
    """Norm of the ball: inf or 2. An attack named at the end may allow others."""
    subject: Subject = field(default_factory=Subject)
    split: Literal["test", "train"] = "test"
    """Part of the data to attack: test (held out) or train."""
    samples: int | None = 1000
    """Number of samples, from the first on. None: all."""
    batch_size: int = 250
    """Number of samples attacked at a time. A finished batch survives an interruption."""
    seed: int = 0
    """Seed of random starts, and of the weights of a model that is not given any."""
    at_end: AtEnd = None
    """Name of an attack, with options."""

    def __post_init__(self) -> None:
        self.chosen.check(self.eps, self.p)
        if self.split not in ("test", "train"):
            raise ValueError(f"split must be test or train, got {self.split!r}")
        if self.batch_size < 1 or (self.samples is not None and self.samples < 1):
            raise ValueError(f"batch_size and samples must be at least 1, got {self.batch_size} and {self.samples}")
        if self.subject.weights is None and self.subject.model in MODELS:
            raise ValueError(f"weights are needed: {self.subject.model} without them is not trained")

    @property
    def chosen(self) -> Chosen:
        return Chosen("attack", ATTACKS, self.attack, _DEFAULT, self.at_end)

    def make(self, data: Data) -> Any:
        """The attack itself."""
        if self.attack == "autoattack":
            check_torchattacks()
        return self.chosen.make(Task(self.eps, 0, data.shape, self.p, classes=data.classes))


def run(config: AttackConfig, progress: Progress | None = None) -> Table:
    """Attack every sample, also those that are wrong already; write the examples and the figures; return the table.

    The folder: adversarial.npz (x_adv (N, ...) float32, y, prediction_clean, prediction, classes; no pickles in it, and
    ``--data npz:...`` reads it), attack.json, attack.md, options.json (options, seed, versions, counted passes). Each
    finished batch is kept until all are done. The random numbers of a batch depend on the seed and its place only.
    """
    progress = progress or Progress()
    config.check_start(config.run_dir, OPTIONS)
    with locked(config.run_dir, progress.note):
        return _run(config, progress)


def _run(config: AttackConfig, progress: Progress) -> Table:
    folder = config.run_dir
    progress.wrote(folder, EXAMPLES, OPTIONS, RESULTS, SHOWN)
    data = config.subject.load_data()
    attacker = config.make(data)
    samples = _chosen(config, data)
    torch.manual_seed(config.seed)
    model = config.subject.make_model(data).to(default_device()).eval()
    options = _options(config, data, attacker, model, len(samples))  # type: ignore[arg-type]
    if config.fresh:
        remove_command(folder, "attack", "an attack", parts.FOLDER, EXAMPLES, RESULTS, SHOWN)
    if check_options(folder, options) and (folder / RESULTS).is_file() and (folder / EXAMPLES).is_file():
        progress.stage(config.chosen.label, 0, 1)
        progress.note("attacked already")
        return _known(config, folder / RESULTS)
    write_options(folder, options)
    whole = _whole(_attack_all(config, attacker, model, samples, progress))
    passes = dict(zip((f.name for f in dataclasses.fields(Passes)), whole["passes"].tolist(), strict=True))
    results = _results(config, whole, passes, options)
    arrays = {name: whole[name].numpy() for name in ("x_adv", "y", "prediction_clean", "prediction")}
    _save(folder / EXAMPLES, {**arrays, "classes": np.array(data.classes)})
    write_options(folder, options, passes)
    files.write_json(folder / RESULTS, results)
    table = _table(config, results)
    files.write_text(folder / SHOWN, table.to_markdown())
    shutil.rmtree(folder / parts.FOLDER, ignore_errors=True)
    return table


def _known(config: AttackConfig, path: Path) -> Table:
    """The table of a finished attack; RunFolderError where its file is something else."""
    found = files.read_json(path)
    try:
        return _table(config, found)
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise RunFolderError(f"{path} is not what an attack writes ({error!r}); use --fresh") from error


def _chosen(config: AttackConfig, data: Data) -> Dataset[Any]:
    some = data.first(config.samples, config.samples)
    samples = some.test if config.split == "test" else some.train
    if len(samples) == 0:  # type: ignore[arg-type]
        raise UserError(f"{config.subject.data} has no samples in the split {config.split}")
    return samples


def _options(config: AttackConfig, data: Data, attacker: Any, model: nn.Module, samples: int) -> dict[str, Any]:
    """What makes it the same attack; compared before it is resumed."""
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
) -> list[dict[str, Tensor]]:
    """A part for each batch: examples, predictions, and what the attack cost; finished ones are read again."""
    count = len(samples)  # type: ignore[arg-type]
    starts = range(0, count, config.batch_size)
    found = []
    for i, start in enumerate(starts):
        end = min(start + config.batch_size, count)
        progress.stage(f"{config.chosen.label}, samples {start + 1} to {end} of {count}", i, len(starts))

        def make(i: int = i, start: int = start, end: int = end) -> dict[str, Tensor]:
            with torch.random.fork_rng():
                torch.manual_seed(config.seed * 1_000_003 + i)
                return _attack_batch(attacker, model, *_batch(samples, start, end), config.p)

        found.append(parts.kept(config.run_dir / parts.FOLDER / f"{i:06d}.safetensors", {"start": start}, make))
    return found


def _batch(samples: Dataset[Any], start: int, end: int) -> tuple[Tensor, Tensor]:
    if isinstance(samples, TensorDataset):
        x, y = samples[start:end]
    else:
        x, y = default_collate([samples[i] for i in range(start, end)])
    return x, y


def _attack_batch(attacker: Any, model: nn.Module, x: Tensor, y: Tensor, p: float) -> dict[str, Tensor]:
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
    counted = torch.tensor(dataclasses.astuple(passes.total()))
    made = {"x_adv": x_adv, "y": y, "prediction_clean": before, "prediction": _predict(model, x_adv)}
    return {**made, "distance": distance, "passes": counted, "seconds": torch.tensor(seconds, dtype=torch.float64)}


def _predict(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)  # type: ignore[no-any-return]


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the whole NPZ or nothing."""
    with files.replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _whole(found: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    joined = {name: torch.cat([p[name] for p in found]) for name in ("x_adv", "y", "prediction_clean", "prediction")}
    distance = torch.stack([p["distance"] for p in found]).amax()
    passes, seconds = (torch.stack([p[name] for p in found]).sum(0) for name in ("passes", "seconds"))
    return {**joined, "distance": distance, "passes": passes, "seconds": seconds}


def _results(
    config: AttackConfig, whole: dict[str, Tensor], passes: dict[str, int], options: dict[str, Any]
) -> dict[str, Any]:
    y = whole["y"]
    right = whole["prediction_clean"] == y
    return {
        "config": files.describe(config),
        "attack": options["attack"],
        "samples": len(y),
        "clean": float(right.double().mean()),
        "attacked": float((right & (whole["prediction"] == y)).double().mean()),
        "largest_distance": float(whole["distance"]),
        "passes": passes,
        "seconds": float(whole["seconds"]),
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
        "attack": config.chosen.label,
        "clean": 100 * results["clean"],
        "attacked": 100 * results["attacked"],
        "distance": results["largest_distance"],
        "forward": passes["forward_samples"] / count,
        "backward": passes["backward_input_samples"] / count,
        "seconds": results["seconds"],
    }
    ball = f"{norm_name(config.p)} eps {config.eps:g}"
    note = (
        f"{ball}, {count} samples ({config.split}). attacked: right without the attack and with it. F, B-in: forward "
        f"passes and backward passes to the input, counted during the attack."
    )
    return Table(f"{config.subject.model} on {config.subject.data}", columns, [row], note)
