"""`soatfast tune`: which engine runs a model's attack passes fastest here."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from soatfast.gradients.device import default_device
from soatfast.gradients.engine import parse
from soatfast.gradients.folded import Folding, foldable
from soatfast.gradients.timing import Timing, best_for, candidates, tune
from soatfast.runs import files
from soatfast.runs.folder import OPTIONS, write_options
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress
from soatfast.runs.table import Column, Table
from soatfast.train.subject import Subject


@dataclass(frozen=True)
class TuneConfig:
    """Time the engines (eager, compile, bf16, channels_last, ...) on a model's attack passes, and name the fastest.

    Run it on the machine, with the model and the batch size of the training that it is for, while nothing else runs.
    """

    run_dir: Path = Path("runs/tune")
    """Output folder."""
    subject: Subject = field(default_factory=Subject)
    batch_size: int = 128
    """Batch size of the attack. The first held-out samples are used, repeated where there are fewer."""
    engines: tuple[str, ...] = ()
    """Engines to time. None: all that this device can run."""
    mode: Literal["eval", "train", "keep"] = "eval"
    """Mode of the model during the attack: eval, train or keep (as it is)."""
    steps: int = 10
    """Number of gradients of an attack."""
    gradients: int = 10_000
    """Number of gradients of the whole job: a compiled engine is taken where the job earns its compiling back."""
    rounds: int = 7
    """Number of timed turns of each engine."""
    seed: int = 0
    """Seed of untrained weights."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "rounds", "gradients"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for engine in self.engines:
            parse(engine)


def run(config: TuneConfig, progress: Progress | None = None) -> Table:
    """Write tune.md, tune.json and options.json into the run folder; return the table."""
    progress = progress or Progress()
    with locked(config.run_dir, progress.note):
        return _run(config, progress)


def _run(config: TuneConfig, progress: Progress) -> Table:
    write_options(config.run_dir, {"command": "tune", "config": files.describe(config)})
    data = config.subject.load_data()
    torch.manual_seed(config.seed)
    device = default_device()
    model = config.subject.make_model(data).to(device)
    count = len(data.test)  # type: ignore[arg-type]
    picked = [data.test[i % count] for i in range(config.batch_size)]
    x, y = (torch.stack(column).to(device) for column in zip(*picked, strict=True))
    found = tune(
        model,
        x,
        y,
        config.engines or candidates(device),
        mode=config.mode,
        steps=config.steps,
        rounds=config.rounds,
        report=progress.stage,
    )
    table = _table(config, found, device, foldable(model, config.mode))
    listed = {"config": files.describe(config), "device": str(device), "table": table.to_json()}
    files.write_json(config.run_dir / "tune.json", listed)
    files.write_text(config.run_dir / "tune.md", table.to_markdown())
    progress.wrote(config.run_dir, "tune.md", "tune.json", OPTIONS)
    return table


def _table(config: TuneConfig, found: list[Timing], device: torch.device, folding: Folding) -> Table:
    columns = [
        Column("engine", "engine"),
        Column("milliseconds", "ms a gradient", 2),
        Column("speed", "eager's time over it", 2),
        Column("signs", "signs as eager's %", 2),
        Column("cosine", "smallest cosine", 4),
        Column("start", "start, s", 2),
    ]
    rows: list[dict[str, Any]] = []
    for t in found:
        if t.error:
            rows.append({"engine": f"{t.engine} did not run ({t.error})"})
        else:
            rows.append({**vars(t), "signs": 100 * t.signs})
    best, taken = found[0], best_for(found, config.gradients)
    note = f'The fastest is "{best.engine}", {best.speed:.2f} times as fast as eager. '
    if best is not taken:
        note += (
            f"Its start of {best.start:.1f} s is earned back after {best.earned_back(taken):.0f} gradients, beside "
            f'"{taken.engine}", and the job has {config.gradients}. '
        )
    note += (
        f'Take attack or loss with engine="{taken.engine}". Medians of {config.rounds} turns of {config.steps} '
        f"gradients, batch {config.batch_size}, on {_name(device)}, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}."
    )
    if folding.total:
        note += f' By the engines with "folded", {folding}.'
    return Table(f"engines for {config.subject.model} on {config.subject.data}", columns, rows, note)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
