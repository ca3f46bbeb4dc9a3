"""How curved the loss of trained models is: the largest eigenvalue of the input Hessian over held-out samples."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from soatfast.curvature import top_eigenpair
from soatfast.evaluate.pictures import PALETTE
from soatfast.evaluate.table import Column, Table
from soatfast.gradients import InputGradient
from soatfast.train import checkpoint
from soatfast.train.data import load_data
from soatfast.train.errors import UserError
from soatfast.train.methods import METHODS
from soatfast.train.progress import Progress
from soatfast.train.specs import make_model

_BATCH = 100


@dataclass(frozen=True)
class CurvatureConfig:
    """Show how curved the loss of a comparison's models is, by the largest eigenvalue of the input Hessian."""

    run_dir: Path = Path("runs/demo")
    """Folder that soatfast compare wrote."""
    methods: tuple[str, ...] = ()
    """Which of its methods; none: all."""
    samples: int = 200
    """The first so many held-out samples."""
    max_dim: int = 20
    """Lanczos steps: Hessian-vector products for each sample."""
    scheme: Literal["exact", "fe", "cd"] = "exact"
    """How they are made. Differences in float32 take half the time, and on the demo's standard model a median of 0.039
    in place of 0.024: their steps cross kinks of the ReLUs."""
    seed: int = 0
    """Which of a method's trainings, and the random start vectors."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def curvature(config: CurvatureConfig, progress: Progress | None = None) -> Table:
    """Write curvature.md, curvature.json and curvature.png into the run folder; return the table.

    Raises UserError where the folder is no finished comparison or lacks a method or seed.
    """
    progress = progress or Progress()
    path = config.run_dir / "results.json"
    if not path.is_file():
        raise UserError(f"{path} is not there: run soatfast compare --run-dir {config.run_dir} first")
    made = checkpoint.read_json(path)["config"]
    names = list(config.methods or made["methods"])
    unknown = [name for name in names if name not in made["methods"]]
    if unknown:
        raise UserError(f"{config.run_dir} has {', '.join(made['methods'])}, not {', '.join(unknown)}")
    data = load_data(made["data"], made["data_root"], False)
    count = min(config.samples, len(data.test))  # type: ignore[arg-type]
    x, y = (torch.stack(column) for column in zip(*(data.test[i] for i in range(count)), strict=True))
    values: dict[str, Tensor] = {}
    for index, name in enumerate(names):
        progress.stage(METHODS[name].label, index, len(names))
        values[name] = _values(config, made, name, x, y, data.classes)
    table = _table(values, config, count)
    found = {name: value.tolist() for name, value in values.items()}
    checkpoint.write_json(config.run_dir / "curvature.json", {"config": checkpoint.describe(config), "values": found})
    checkpoint.write_text(config.run_dir / "curvature.md", table.to_markdown())
    _picture(config.run_dir / "curvature.png", values)
    return table


def _values(config: CurvatureConfig, made: dict[str, Any], name: str, x: Tensor, y: Tensor, classes: int) -> Tensor:
    weights = config.run_dir / name / f"seed-{config.seed}" / checkpoint.WEIGHTS
    if not weights.is_file():
        raise UserError(f"{weights} is not there: {name} was not trained with seed {config.seed}")
    width = made.get("width")  # a folder of an older version has none
    model = make_model(made["model"], x.shape[1:], classes, width)
    checkpoint.load_weights(model, weights)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(config.seed)
    parts = []
    with InputGradient(model.to(device)) as oracle:
        for some, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
            some, labels = some.to(device), labels.to(device)
            pair = top_eigenpair(
                oracle, some, labels, max_dim=config.max_dim, scheme=config.scheme, generator=generator
            )
            parts.append(pair.value.cpu())
    return torch.cat(parts)


def _table(values: dict[str, Tensor], config: CurvatureConfig, count: int) -> Table:
    columns = [
        Column("method", "method"),
        Column("median", "median", 3),
        Column("mean", "mean", 3),
        Column("high", "95 %", 3),
        Column("largest", "largest", 3),
    ]
    rows = []
    for name, value in values.items():
        row = {
            "method": METHODS[name].label,
            "median": statistics.median(value.tolist()),
            "mean": float(value.mean()),
            "high": float(value.quantile(0.95)),
            "largest": float(value.max()),
        }
        rows.append(row)
    note = (
        f"Largest eigenvalue of the Hessian of the cross-entropy by the input, {count} held-out samples; Lanczos with "
        f"{config.max_dim} products ({config.scheme})."
    )
    return Table("curvature", columns, rows, note)


def _picture(path: Path, values: dict[str, Tensor]) -> None:
    """The share of samples with a larger eigenvalue, a line for each method, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    floor = 1e-6 * max(float(value.max()) for value in values.values())
    for name, value in values.items():
        ordered = value.clamp_min(floor).sort().values
        share = 100 * (1 - torch.arange(len(ordered)) / len(ordered))
        colour = PALETTE[list(METHODS).index(name) % len(PALETTE)]
        axis.step(ordered.numpy(), share.numpy(), where="post", label=METHODS[name].label, color=colour, linewidth=1.8)
    axis.set_xscale("log")
    axis.set_xlabel(f"largest eigenvalue of the input Hessian (smaller than {floor:.1g}: drawn there)")
    axis.set_ylabel("samples at least as curved (%)")
    axis.set_ylim(0, 101)
    axis.grid(color="#DDDDDD", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, format="png")
