"""`soatfast evaluate`: the whole suite of attacks on one model; where asked, curves and signs of masked gradients."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soatfast import evaluate as ev
from soatfast.attacks.task import check_ball
from soatfast.commands import evaluate_analysis
from soatfast.commands.options import check_torchattacks
from soatfast.evaluate.accuracies import batches, gather
from soatfast.evaluate.records import FILE
from soatfast.evaluate.results import WORST
from soatfast.gradients.device import default_device
from soatfast.gradients.engine import Name, parse
from soatfast.ops.arguments import norm_name
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.files import fingerprint
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Start
from soatfast.runs.table import Column, Table
from soatfast.train.data.sets import Data
from soatfast.train.models import MODELS
from soatfast.train.subject import Subject

FIGURES = "evaluation.json"


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
    engine: Name = "eager"
    """How the attacks' passes are run, such as channels_last or compile; soatfast tune measures which is fastest.
    SOAE and HAAT need float32, so bf16 and fp16 are refused."""
    beside: tuple[Path, ...] = ()
    """Folders of finished evaluations on the same samples. Both are compared in pairs; with analysis their curves are
    drawn on the same pictures."""
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
        if parse(self.engine).precision is not None:
            raise ValueError(f"engine must be an exact one, as SOAE and HAAT need float32, got {self.engine!r}")
        if self.run_dir in self.beside or len(set(self.beside)) < len(self.beside):
            raise ValueError(f"beside must be other folders, each once, got {', '.join(map(str, self.beside))}")
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
    others = [_Other.of(path, config) for path in config.beside]  # what is missing is said before the work
    data = config.subject.load_data()
    samples = data.first(config.samples, config.samples).test
    torch.manual_seed(config.seed)
    model = config.subject.make_model(data).to(default_device()).eval()
    x, y = gather(samples)
    for other in others:
        other.check_samples(y)
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
    compared = {str(other.path): found.paired(other.suite) for other in others}
    if others:
        tables.append(_paired_table(found, others, compared))
    analysis: dict[str, Any] | None = None
    if config.analysis:
        analysis, signs = evaluate_analysis.analyse(
            config.run_dir,
            model,
            (x, y),
            _ball(config),
            f"{config.subject.model} on {config.subject.data}",
            {"eps": config.eps, "p": config.p, "engine": config.engine},
            {"batch_size": config.batch_size, "seed": config.seed, "progress": progress.report},
            [(other.path.name, other.analysis) for other in others],
        )
        tables.append(signs)
    _write(config, model, found, tables, compared, analysis)
    pictures = ("curves.png", "plateau.png", "masking.png") if config.analysis else ()
    progress.wrote(folder, FILE, "evaluation.md", FIGURES, *pictures)
    return tables


@dataclass(frozen=True)
class _Other:
    """Another evaluation: its folder, its records, and its analysis, {} where it has none."""

    path: Path
    suite: ev.SuiteResult
    analysis: dict[str, Any]

    @classmethod
    def of(cls, path: Path, config: EvaluateConfig) -> _Other:
        suite = ev.load_suite(path)
        written = files.read_json(path / FIGURES) if (path / FIGURES).is_file() else {}
        analysis = written.get("analysis") if isinstance(written, dict) else None
        if config.analysis and not isinstance(analysis, dict):
            raise UserError(f"{path / FIGURES} has no analysis; soatfast evaluate --analysis writes it")
        return cls(path, suite, analysis or {})

    def check_samples(self, y: Tensor) -> None:
        if self.suite.label.tolist() != y.tolist():
            raise UserError(f"{self.path} is of other samples than this evaluation: pairs need the same")


def _paired_table(found: ev.SuiteResult, others: list[_Other], compared: dict[str, dict[str, ev.Paired]]) -> Table:
    columns = [
        Column("other", "beside"),
        Column("name", "attack"),
        Column("accuracy", "accuracy %"),
        Column("theirs", "its accuracy %"),
        Column("first_only", "only here right", 0),
        Column("second_only", "only there right", 0),
        Column("p_value", "p", 4),
    ]
    rows: list[dict[str, Any]] = [
        {
            "other": str(other.path),
            "name": name,
            "accuracy": 100 * (found.worst_case if name == WORST else found[name].accuracy),
            "theirs": 100 * (other.suite.worst_case if name == WORST else other.suite[name].accuracy),
            "first_only": pair.first_only,
            "second_only": pair.second_only,
            "p_value": pair.p_value,
        }
        for other in others
        for name, pair in compared[str(other.path)].items()
    ]
    note = "p: McNemar's exact test, that both models are as often right on these samples."
    return Table("In pairs with other evaluations", columns, rows, note)


def _ball(config: EvaluateConfig) -> str:
    return f"{norm_name(config.p)} eps {config.eps:g}"


def _attacks(config: EvaluateConfig, data: Data) -> dict[str, Any]:
    return ev.standard_attacks(
        config.eps, config.p, config.steps, data.classes, config.autoattack, seed=config.seed, engine=config.engine
    )


def _write(
    config: EvaluateConfig,
    model: nn.Module,
    found: ev.SuiteResult,
    tables: list[Table],
    compared: dict[str, dict[str, ev.Paired]],
    analysis: dict[str, Any] | None,
) -> None:
    from soatfast.ops.config import describe as installation

    written = {
        "config": files.describe(config),
        "weights": fingerprint(model),
        "passes": files.describe(found.passes),
        "installation": files.describe(installation()),
        "results": found.to_json(),
        "paired": {path: {name: asdict(pair) for name, pair in pairs.items()} for path, pairs in compared.items()},
        "analysis": analysis,
        "tables": [table.to_json() for table in tables],
    }
    files.write_json(config.run_dir / FIGURES, written)
