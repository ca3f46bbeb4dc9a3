"""`soatfast evaluate`: the whole suite of attacks on one model; where asked, curves and signs of masked gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from soatfast import evaluate as ev
from soatfast.attacks import PGD, SimBA
from soatfast.attacks.named import UL
from soatfast.attacks.task import check_ball
from soatfast.commands.options import check_torchattacks
from soatfast.evaluate.accuracies import batches, gather
from soatfast.evaluate.records import FILE
from soatfast.gradients.device import default_device
from soatfast.gradients.passes import Passes
from soatfast.ops.arguments import norm_name
from soatfast.runs import files
from soatfast.runs.files import fingerprint
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress, Report
from soatfast.runs.resume import Start
from soatfast.runs.table import Table
from soatfast.train.data.sets import Data
from soatfast.train.models import MODELS
from soatfast.train.subject import Subject

FIGURES = "evaluation.json"
_SHARES = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # of eps, where the curve is measured


@dataclass(frozen=True)
class EvaluateConfig(Start):
    """Attack one trained model by the whole suite, with a record of each sample.

    After an interruption the same command resumes at the next batch."""

    run_dir: Path = Path("runs/evaluate")
    """Output folder. A run found there is resumed."""
    eps: float = 0.2
    """Radius of the ball, for pixels in [0, 1]."""
    p: float = math.inf
    """Norm of the ball: inf or 2."""
    steps: int = 40
    """Steps of PGD."""
    autoattack: bool = False
    """Run AutoAttack as well, which needs torchattacks. It makes thousands of passes for each sample that withstands
    it; with worst_case it comes last, and sees only the survivors of all others."""
    analysis: bool = False
    """Also measure accuracy against eps and PGD's steps, PGD against SimBA, and the signs of masked gradients."""
    worst_case: bool = False
    """Run each attack only on the survivors of the cheaper ones: fewer passes, and one figure for all."""
    compact: bool = True
    """Leave samples that are fooled already out of the passes. No figure changes."""
    subject: Subject = field(default_factory=Subject)
    samples: int | None = 1000
    """Number of held-out samples, from the first on. None: all."""
    batch_size: int = 250
    """Number of samples attacked at a time. A finished batch survives an interruption."""
    seed: int = 0
    """Seed of random starts, and of the weights of a model that is not given any."""

    def __post_init__(self) -> None:
        check_ball(self.eps, self.p)
        if self.steps < 1 or self.batch_size < 1 or (self.samples is not None and self.samples < 1):
            raise ValueError(
                f"steps, batch_size and samples must be at least 1, got {self.steps}, {self.batch_size}, {self.samples}"
            )
        if self.analysis and self.eps == 0:
            raise ValueError("analysis needs eps > 0, got 0")
        if self.subject.weights is None and self.subject.model in MODELS:
            raise ValueError(f"weights are needed: {self.subject.model} without them is not trained")


def run(config: EvaluateConfig, progress: Progress | None = None) -> list[Table]:
    """Write the records evaluation.npz, evaluation.md and .json, with ``analysis`` curves.png, plateau.png and
    masking.png as well; return the tables.
    """
    progress = progress or Progress()
    config.check_start(config.run_dir, FILE)
    with locked(config.run_dir, progress.note):
        return _run(config, progress)


def _run(config: EvaluateConfig, progress: Progress) -> list[Table]:
    folder = config.run_dir
    if config.autoattack:
        check_torchattacks()
    data = config.subject.load_data()
    samples = data.first(config.samples, config.samples).test
    torch.manual_seed(config.seed)
    model = config.subject.make_model(data).to(default_device()).eval()
    x, y = gather(samples)
    found = ev.suite(
        model,
        list(batches(x, y, config.batch_size)),
        _attacks(config, data),
        folder=folder,
        seed=config.seed,
        progress=progress.report,
        compact=config.compact,
        worst_case=config.worst_case,
        resume=not config.fresh,
    )
    (folder / FIGURES).unlink(missing_ok=True)  # of an earlier evaluation
    tables = [found.table(f"{config.subject.model} on {config.subject.data}, {_ball(config)}")]
    if config.analysis:
        tables.append(_analysis(config, model, (x, y), progress.report))
    _write(config, model, found.passes, tables)
    pictures = ("curves.png", "plateau.png", "masking.png") if config.analysis else ()
    progress.wrote(folder, FILE, "evaluation.md", FIGURES, *pictures)
    return tables


def _ball(config: EvaluateConfig) -> str:
    return f"{norm_name(config.p)} eps {config.eps:g}"


def _attacks(config: EvaluateConfig, data: Data) -> dict[str, Any]:
    directions = min(200, math.prod(data.shape))  # a small image has fewer than SimBA's 200
    return ev.standard_attacks(
        config.eps, config.p, config.steps, data.classes, config.autoattack, directions, config.seed
    )


def _analysis(config: EvaluateConfig, model: nn.Module, data: Any, report: Report) -> Table:
    """The curves and the scatter as pictures; the checklist as a table."""
    options: dict[str, Any] = {"batch_size": config.batch_size, "seed": config.seed, "progress": report}
    attack = PGD(eps=config.eps, p=config.p, steps=20)
    largest = 1.0 if config.p == math.inf else math.inf
    radii = sorted({min(share * config.eps, largest) for share in _SHARES})
    title = f"{config.subject.model} on {config.subject.data}"
    curve = ev.accuracy_against_eps(model, data, attack, radii, label="PGD-20", **options)
    ev.curves_picture(config.run_dir / "curves.png", [curve], title)
    fixed = PGD(eps=config.eps, p=config.p, step_size=config.eps / 4)
    plateau = ev.steps_plateau(model, data, attack=fixed, label="PGD, steps of eps / 4", **options)
    ev.curves_picture(config.run_dir / "plateau.png", [plateau], f"{title}, {_ball(config)}", steps=True)
    simba = SimBA(
        eps=config.eps, p=config.p, step_size=config.eps, steps=min(200, data[0][0].numel()), early_stop=False
    )
    white = ev.final_margins(model, data, UL(eps=config.eps, p=config.p, steps=100), config.batch_size, config.seed)
    black = ev.final_margins(model, data, simba, config.batch_size, config.seed)
    scatter = ev.compare_margins(white.margin, black.margin)
    ev.scatter_picture(config.run_dir / "masking.png", [(_ball(config), scatter)], "PGD-100", "SimBA", title)
    signs = ev.masking_signs(model, data, attack, black_box=simba, batch_size=config.batch_size, seed=config.seed)
    return ev.signs_table(signs)


def _write(config: EvaluateConfig, model: nn.Module, passes: Passes, tables: list[Table]) -> None:
    from soatfast.ops.config import describe as installation

    written = {
        "config": files.describe(config),
        "weights": fingerprint(model),
        "passes": files.describe(passes),
        "installation": files.describe(installation()),
        "tables": [table.to_json() for table in tables],
    }
    files.write_json(config.run_dir / FIGURES, written)
