"""How curved the loss of trained models is: the largest eigenvalue of the input Hessian over held-out samples."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from soatfast.commands.finished import Finished, open_comparison
from soatfast.commands.methods import METHODS
from soatfast.gradients.oracle import InputGradient
from soatfast.runs import files, parts
from soatfast.runs.figures import PALETTE, clear_axes, figure
from soatfast.runs.files import digest, fingerprint
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Start
from soatfast.runs.table import Column, Table
from soatfast.solvers.curvature import top_eigenpair

_BATCH = 100


@dataclass(frozen=True)
class CurvatureConfig(Start):
    """Show how curved the loss of a comparison's models is, by the largest eigenvalue of the input Hessian."""

    run_dir: Path = Path("runs/demo")
    """Folder that soatfast compare wrote. The results are added to it."""
    methods: tuple[str, ...] = ()
    """Methods of that comparison to show. None: all."""
    samples: int = 200
    """Number of held-out samples, from the first on."""
    max_dim: int = 20
    """Number of Lanczos steps: Hessian-vector products for each sample."""
    scheme: Literal["exact", "fe", "cd"] = "exact"
    """How the products are made: exactly, by a forward difference (fe) or a central one (cd). Differences take half the
    time, but cross kinks of ReLUs and can be far off (docs/second-order.md)."""
    seed: int = 0
    """Seed of the trainings to show, and of the random start vectors."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def run(config: CurvatureConfig, progress: Progress | None = None) -> Table:
    """Write curvature.md, curvature.json and curvature.png into the run folder; return the table.

    Raises UserError where the folder is no finished comparison or lacks a method or seed.
    """
    progress = progress or Progress()
    config.check_start(config.run_dir, f"{parts.FOLDER}/curvature-*", "curvature.json")
    found = open_comparison(config.run_dir)
    names, data = found.methods(config.methods), found.data
    files.make_writable(config.run_dir)
    count = min(config.samples, len(data.test))  # type: ignore[arg-type]
    x, y = (torch.stack(column) for column in zip(*(data.test[i] for i in range(count)), strict=True))
    values: dict[str, Tensor] = {}
    for index, name in enumerate(names):
        progress.stage(METHODS[name].label, index, len(names))
        values[name] = _kept(config, found, name, x, y)
    table = _table(values, config, count)
    listed = {name: value.tolist() for name, value in values.items()}
    written = {"config": files.describe(config), "table": table.to_json(), "values": listed}
    files.write_json(config.run_dir / "curvature.json", written)
    files.write_text(config.run_dir / "curvature.md", table.to_markdown())
    _picture(config.run_dir / "curvature.png", values)
    progress.wrote(config.run_dir, "curvature.md", "curvature.json", "curvature.png")
    return table


def _kept(config: CurvatureConfig, found: Finished, name: str, x: Tensor, y: Tensor) -> Tensor:
    """The values, from where an interrupted run of the same options left them."""
    model = found.model(name, config.seed)
    asked = {
        "max_dim": config.max_dim,
        "scheme": config.scheme,
        "seed": config.seed,
        "samples": digest(x, y),
        "weights": fingerprint(model),
    }
    path = config.run_dir / parts.FOLDER / f"curvature-{name}.safetensors"
    return parts.kept(path, asked, lambda: {"values": _values(config, model, x, y)}, config.fresh)["values"]


def _values(config: CurvatureConfig, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed)
    found = []
    with InputGradient(model) as oracle:
        for some, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
            some, labels = some.to(device), labels.to(device)
            pair = top_eigenpair(
                oracle, some, labels, max_dim=config.max_dim, scheme=config.scheme, generator=generator
            )
            found.append(pair.value.cpu())
    return torch.cat(found)


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
    made = figure((7.2, 4.4))
    axis = made.subplots()
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
    clear_axes(axis)
    axis.legend(frameon=False, fontsize=9)
    made.savefig(path, format="png")
