"""How curved the loss of trained models is: the input Hessian over held-out samples, and what else the flags ask."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from soatfast.attacks.task import check_ball
from soatfast.commands.finished import open_comparison
from soatfast.commands.measures import MEASURES, PICTURES, Ball, measured
from soatfast.commands.methods import METHODS
from soatfast.gradients.device import default_device
from soatfast.gradients.oracle import InputGradient
from soatfast.ops.arguments import norm_name
from soatfast.runs import files, parts
from soatfast.runs.errors import UserError
from soatfast.runs.figures import PALETTE, clear_axes, figure, save
from soatfast.runs.files import digest, fingerprint
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Flag, Start
from soatfast.runs.table import Column, Table
from soatfast.solvers.curvature import top_eigenpair
from soatfast.train.data.sets import Data
from soatfast.train.models import MODELS
from soatfast.train.subject import Subject


@dataclass(frozen=True)
class CurvatureConfig(Start):
    """Show how curved the loss of models is, by the largest eigenvalue of the input Hessian; flags draw more.

    The models are those of a comparison, or of --weights."""

    run_dir: Path = Path("runs/demo")
    """Folder that soatfast compare wrote; with --weights any folder. The results are added to it."""
    methods: tuple[str, ...] = ()
    """Methods of that comparison to show. None: all."""
    weights: tuple[Path, ...] = ()
    """Weights files of models to show in place of a comparison's, such as the checkpoints of one training."""
    model: str = "small-cnn"
    """Model of the weights: small-cnn, fast, resnet18, wrn-34-10 or package.module:factory."""
    width: int | None = None
    """Channels of that model's first layer or block."""
    data: str = "mnist5k"
    """Data beside the weights: mnist5k, digits8, mnist, cifar10, svhn, npz:PATH or imagefolder:PATH."""
    data_root: Path | None = None
    """Folder of the published files of mnist, cifar10 and svhn."""
    eps: float | None = None
    """Radius of linearity, lines and gap. None: the comparison's; with --weights 0.2."""
    p: float | None = None
    """Norm of that ball, inf or 2. None: the comparison's; with --weights inf."""
    ends: Flag = False
    """Also the three largest and three smallest eigenvalues (median of the third and of the smallest)."""
    density: Flag = False
    """Also the spectral density, by stochastic Lanczos quadrature: density.png."""
    profile: Flag = False
    """Also all eigenvalues, sorted, as in CURE's figures: profile.png. As many products as an image has entries."""
    trace: Flag = False
    """Also trace (Hutch++) and Frobenius norm."""
    linearity: Flag = False
    """Also gamma, the distance of the loss from its tangent, against the radius: linearity.png."""
    lines: Flag = False
    """Also the loss along an adversarial and a random direction: lines.png."""
    gap: Flag = False
    """Also PGD and the quadratic attack against the radius, and what the quadratic model misses: gap.png."""
    samples: int = 200
    """Number of held-out samples, from the first on."""
    batch_size: int = 100
    """Number of samples measured at a time, which is what memory goes with."""
    max_dim: int = 20
    """Number of Lanczos steps: Hessian-vector products for each sample."""
    scheme: Literal["exact", "fe", "cd"] = "exact"
    """How the products are made: exactly, by a forward difference (fe) or a central one (cd). Differences take half the
    time, but cross kinks of ReLUs and can be far off (docs/second-order.md)."""
    seed: int = 0
    """Seed of the trainings to show, and of the random vectors."""
    trust: Flag = False
    """Run the code of a model package.module:factory that the folder names."""

    def __post_init__(self) -> None:
        for name in ("samples", "batch_size", "max_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.weights and self.methods:
            raise ValueError("either methods of a comparison or --weights, got both")
        if self.eps is not None or self.p is not None:
            check_ball(0.2 if self.eps is None else self.eps, math.inf if self.p is None else self.p)
        if self.eps == 0:
            raise ValueError("eps must be > 0, got 0")

    @property
    def asked(self) -> list[str]:
        """The measures whose flags are set."""
        return [name for name in MEASURES if getattr(self, name)]


@dataclass(frozen=True)
class Shown:
    """names: of the models; labels: what they are called; load: name -> model, in eval mode; colours by name."""

    names: list[str]
    labels: dict[str, str]
    colours: dict[str, str]
    load: Callable[[str], nn.Module]
    data: Data
    ball: Ball


def run(config: CurvatureConfig, progress: Progress | None = None) -> Table:
    """Write curvature.md, curvature.json, curvature.png and a picture of each measure; return the table.

    The rows of every measure lie in parts/curvature-MEASURE-MODEL.safetensors.

    Raises UserError where the folder is no finished comparison or lacks a method or seed.
    """
    progress = progress or Progress()
    config.check_start(config.run_dir, f"{parts.FOLDER}/curvature-*", "curvature.json")
    shown = _of_weights(config) if config.weights else _of_comparison(config)
    files.make_writable(config.run_dir)
    with locked(config.run_dir, progress.note):
        return _run(config, shown, progress)


def _run(config: CurvatureConfig, shown: Shown, progress: Progress) -> Table:
    count = min(config.samples, len(shown.data.test))  # type: ignore[arg-type]
    x, y = (torch.stack(column) for column in zip(*(shown.data.test[i] for i in range(count)), strict=True))
    y = torch.as_tensor(y)
    found: dict[str, dict[str, dict[str, Tensor]]] = {"largest": {}, **{name: {} for name in config.asked}}
    for index, name in enumerate(shown.names):
        progress.stage(shown.labels[name], index, len(shown.names))
        model = shown.load(name)
        for measure in found:
            found[measure][name] = _kept(config, shown, measure, name, model, x, y)
    values = {name: rows["values"] for name, rows in found.pop("largest").items()}
    table = _table(values, found, shown, config, count)
    listed = {name: value.tolist() for name, value in values.items()}
    written = {"config": files.describe(config), "table": table.to_json(), "values": listed}
    files.write_json(config.run_dir / "curvature.json", written)
    files.write_text(config.run_dir / "curvature.md", table.to_markdown())
    _picture(config.run_dir / "curvature.png", values, shown)
    pictures = [measure for measure in found if measure in PICTURES]
    for measure in pictures:
        labelled = {shown.labels[name]: rows for name, rows in found[measure].items()}
        PICTURES[measure](config.run_dir / f"{measure}.png", labelled, shown.ball)
    progress.wrote(
        config.run_dir, "curvature.md", "curvature.json", "curvature.png", *(f"{name}.png" for name in pictures)
    )
    return table


def _of_comparison(config: CurvatureConfig) -> Shown:
    found = open_comparison(config.run_dir, config.trust)
    names = found.methods(config.methods)
    ball = _ball(config, float(found.config["eps"]), found.p)
    labels = {name: METHODS[name].label for name in names}
    colours = {name: PALETTE[list(METHODS).index(name) % len(PALETTE)] for name in names}
    return Shown(names, labels, colours, lambda name: found.model(name, config.seed), found.data, ball)


def _of_weights(config: CurvatureConfig) -> Shown:
    subject = Subject(config.data, config.data_root, False, config.model, config.width)
    data = subject.load_data()
    if config.model in MODELS and len(set(config.weights)) < len(config.weights):
        raise UserError("each weights file is shown once, got one twice")
    names = [_name(path, config.weights) for path in config.weights]
    paths = dict(zip(names, config.weights, strict=True))

    def load(name: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            made = Subject(config.data, config.data_root, False, config.model, config.width, paths[name])
            return made.make_model(data).to(default_device()).eval()

    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    return Shown(names, {name: name for name in names}, colours, load, data, _ball(config, 0.2, math.inf))


def _name(path: Path, others: tuple[Path, ...]) -> str:
    """As much of the path's end as tells it from the others, joined by dashes."""
    tails = [other.with_suffix("").parts for other in others if other != path]
    own = path.with_suffix("").parts
    for length in range(1, len(own) + 1):
        if all(tail[-length:] != own[-length:] for tail in tails):
            break
    return "-".join(part.strip("/") for part in own[-length:] if part.strip("/"))


def _ball(config: CurvatureConfig, eps: float, p: float) -> Ball:
    given = eps if config.eps is None else config.eps, p if config.p is None else config.p
    return Ball(*given, config.max_dim, config.scheme)


def _kept(
    config: CurvatureConfig, shown: Shown, measure: str, name: str, model: nn.Module, x: Tensor, y: Tensor
) -> dict[str, Tensor]:
    """The rows of one measure, from where an interrupted run of the same options left them."""
    asked: dict[str, Any] = {
        "max_dim": config.max_dim,
        "scheme": config.scheme,
        "seed": config.seed,
        "batch_size": config.batch_size,
        "samples": digest(x, y),
        "weights": fingerprint(model),
    }
    if measure == "largest":
        path = config.run_dir / parts.FOLDER / f"curvature-{name}.safetensors"
        return parts.kept(path, asked, lambda: {"values": _values(config, model, x, y)}, config.fresh)
    asked |= {"eps": shown.ball.eps, "p": shown.ball.p}
    path = config.run_dir / parts.FOLDER / f"curvature-{measure}-{name}.safetensors"
    make = lambda: measured(MEASURES[measure], model, x, y, shown.ball, config.seed, config.batch_size)  # noqa: E731
    return parts.kept(path, asked, make, config.fresh)


def _values(config: CurvatureConfig, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(config.seed)
    found = []
    with InputGradient(model) as oracle:
        for some, labels in zip(x.split(config.batch_size), y.split(config.batch_size), strict=True):
            some, labels = some.to(device), labels.to(device)
            pair = top_eigenpair(
                oracle, some, labels, max_dim=config.max_dim, scheme=config.scheme, generator=generator
            )
            found.append(pair.value.cpu())
    return torch.cat(found)


def _table(
    values: dict[str, Tensor],
    found: dict[str, dict[str, dict[str, Tensor]]],
    shown: Shown,
    config: CurvatureConfig,
    count: int,
) -> Table:
    columns = [
        Column("method", "method"),
        Column("median", "median", 3),
        Column("mean", "mean", 3),
        Column("high", "95 %", 3),
        Column("largest", "largest", 3),
        *(column for measure in found for column in MEASURES[measure].columns),
    ]
    rows = []
    for name, value in values.items():
        row: dict[str, Any] = {
            "method": shown.labels[name],
            "median": statistics.median(value.tolist()),
            "mean": float(value.mean()),
            "high": float(value.quantile(0.95)),
            "largest": float(value.max()),
        }
        for measure, of in found.items():
            row |= MEASURES[measure].cells(of[name])
        rows.append(row)
    note = (
        f"Largest eigenvalue of the Hessian of the cross-entropy by the input, {count} held-out samples; Lanczos with "
        f"{config.max_dim} products ({config.scheme})."
    )
    if found:
        note += (
            f" eps {shown.ball.eps:g}, {norm_name(shown.ball.p)}. Beside the first columns: medians over the samples, "
            "means for the gaps and the cosine."
        )
    return Table("curvature", columns, rows, note)


def _picture(path: Path, values: dict[str, Tensor], shown: Shown) -> None:
    """The share of samples with a larger eigenvalue, a line for each method, on a logarithmic axis."""
    made = figure((7.2, 4.4))
    axis = made.subplots()
    floor = 1e-6 * max(float(value.max()) for value in values.values())
    for name, value in values.items():
        ordered = value.clamp_min(floor).sort().values
        share = 100 * (1 - torch.arange(len(ordered)) / len(ordered))
        axis.step(
            ordered.numpy(),
            share.numpy(),
            where="post",
            label=shown.labels[name],
            color=shown.colours[name],
            linewidth=1.8,
        )
    axis.set_xscale("log")
    axis.set_xlabel(f"largest eigenvalue of the input Hessian (smaller than {floor:.1g}: drawn there)")
    axis.set_ylabel("samples at least as curved (%)")
    axis.set_ylim(0, 101)
    clear_axes(axis)
    axis.legend(frameon=False, fontsize=9)
    save(made, path)
