"""What the models of a comparison look at: galleries of perturbations, saliency maps and contrastive explanations."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks import Attack
from soatfast.attacks.task import Task
from soatfast.commands.finished import Finished, open_comparison
from soatfast.commands.methods import ATTACKS, METHODS
from soatfast.commands.options import nearest
from soatfast.explain import ContrastivePair, Explanation, PertinentNegative, PertinentPositive, Saliency, gallery
from soatfast.explain.explanation import Role
from soatfast.gradients.passes import Passes
from soatfast.ops.arguments import norm_name
from soatfast.runs import files, parts
from soatfast.runs.files import digest, fingerprint
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Flag, Start
from soatfast.runs.table import Column, Table

_BATCH, _SEARCHED = 100, 1000


@dataclass(frozen=True)
class ExplainConfig(Start):
    """Show what the models of a comparison look at: attacked digits, saliency maps, contrastive explanations."""

    run_dir: Path = Path("runs/demo")
    """Folder that soatfast compare wrote. The results are added to it."""
    methods: tuple[str, ...] = ()
    """Methods of that comparison to show. None: all."""
    seed: int = 0
    """Seed of the trainings to show, and of the random starts of the attack."""
    samples: int = 8
    """Number of held-out samples to show, from each class in turn; those that all models get right come first."""
    wrong: int = 2
    """Number of samples to add that models get wrong, from those that most models miss."""
    attack: str = "pgd40"
    """Attack of the gallery, at the comparison's radius: a name of soatfast compare, except clean and autoattack."""
    radius: float = 4.0
    """L2 radius of the contrastive pair. The default is the SCORPIO paper's."""
    steps: int = 100
    """FISTA steps of each search for pertinent negatives and positives. CEM's code takes 1000."""
    kappa: float = 1.0
    """Margin of the logits that the explanations reach. With CEM's 0 two classes end up equally likely."""
    base: float = 0.0
    """Value of a pixel that says nothing. 0: a black background."""

    trust: Flag = False
    """Run the code of a model package.module:factory that the folder names."""

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("wrong", 0), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        known = [name for name in ATTACKS if name != "autoattack"]  # which gives back only what it could fool
        nearest("attack", [self.attack], known)
        self.negative, self.pair  # noqa: B018  # they check radius, kappa and base

    @property
    def pair(self) -> ContrastivePair:
        return ContrastivePair(eps=self.radius)

    @property
    def negative(self) -> PertinentNegative:
        return PertinentNegative(kappa=self.kappa, steps=self.steps, base=self.base)

    @property
    def positive(self) -> PertinentPositive:
        return PertinentPositive(kappa=self.kappa, steps=self.steps, base=self.base)


def run(config: ExplainConfig, progress: Progress | None = None) -> Table:
    """Write explain.json, explain.md and the pictures in explain/ into the run folder; return the table.

    Raises UserError where the folder is no finished comparison or lacks a method or seed.
    """
    progress = progress or Progress()
    config.check_start(config.run_dir, f"{parts.FOLDER}/explain-*", "explain.json")
    found = open_comparison(config.run_dir, config.trust)
    with locked(config.run_dir, progress.note):
        return _run(config, found, progress)


def _run(config: ExplainConfig, found: Finished, progress: Progress) -> Table:
    names = found.methods(config.methods)
    models = {name: found.model(name, config.seed) for name in names}  # what is missing is said before the work
    folder = config.run_dir / "explain"
    files.make_writable(folder)
    x, y, index = _choose(config, found, list(models.values()))
    attack: Attack = ATTACKS[config.attack].make(_task(found))
    title = f"{found.config['model']} on {found.config['data']}"
    shown, maps, results = [], [], {}
    for number, (name, model) in enumerate(models.items()):
        progress.stage(METHODS[name].label, number, len(models))
        one, saliency, results[name] = _kept(config, attack, model, name, x, y)
        shown.append(one)
        maps.append((METHODS[name].label, saliency))
        path = folder / f"contrastive-{name}.png"
        _contrastive(path, x, y, results[name], f"{title}, {METHODS[name].label}")
    attack_name = ATTACKS[config.attack].label
    ball = f"{norm_name(found.p)} eps {found.config['eps']:g}"
    scale = found.config["eps"] if found.p == math.inf else None
    gallery.perturbations(folder / "perturbations.png", x, y, shown, scale, f"{title}, {attack_name}, {ball}")
    styles = [list(METHODS).index(name) for name in names]
    gallery.saliencies(folder / "saliency.png", x, y, maps, f"{title}, gradient of the loss", styles)
    table = _table(names, shown, results, y, config, attack_name)
    written = {
        "config": config,
        "attack": attack,
        "samples": index,
        "labels": y,
        "methods": {name: _json(one, results[name], x) for name, one in zip(names, shown, strict=True)},
    }
    files.write_json(config.run_dir / "explain.json", files.describe(written))
    files.write_text(config.run_dir / "explain.md", table.to_markdown())
    progress.wrote(config.run_dir, "explain.md", "explain.json", "explain/*.png")
    return table


def _task(found: Finished) -> Task:
    samples = len(found.data.train)  # type: ignore[arg-type]
    return Task(found.config["eps"], samples, tuple(found.data.shape), found.p, classes=found.data.classes)


def _choose(config: ExplainConfig, found: Finished, models: list[nn.Module]) -> tuple[Tensor, Tensor, list[int]]:
    """(images, labels, numbers in the held-out set) of what is shown, out of the first thousand."""
    test = found.data.test
    count = min(_SEARCHED, len(test))  # type: ignore[arg-type]
    pairs = [test[i] for i in range(count)]
    x, y = torch.stack([pair[0] for pair in pairs]), torch.tensor([int(pair[1]) for pair in pairs])
    missed = torch.zeros(count, dtype=torch.long)
    for model in models:
        device = next(model.parameters()).device
        said = [gallery.predictions(model, some.to(device))[0].cpu() for some in x.split(_BATCH)]
        missed += torch.cat(said) != y
    classes = [
        sorted((y == label).nonzero().flatten().tolist(), key=lambda i: (int(missed[i]), i))
        for label in range(found.data.classes)
    ]
    longest = max(map(len, classes))
    turns = [group[turn] for turn in range(longest) for group in classes if turn < len(group)]
    right = turns[: config.samples]
    wrong = [i for i in sorted(range(count), key=lambda i: (-int(missed[i]), i)) if missed[i] and i not in right]
    index = right + wrong[: config.wrong]
    return x[index], y[index], index


@dataclass(frozen=True)
class _Explained:
    """What one model's explanations are; `said` is its classes and confidences before them."""

    said: tuple[Tensor, Tensor]
    correct: Tensor
    pair: dict[Role, Explanation]
    cem: dict[Role, Explanation]


def _kept(
    config: ExplainConfig, attack: Attack, model: nn.Module, name: str, x: Tensor, y: Tensor
) -> tuple[gallery.Attacked, Tensor, _Explained]:
    """Attacked images, saliency map and explanations, from where an interrupted run of the same options left them."""
    device = next(model.parameters()).device

    def make() -> dict[str, Tensor]:
        a, b = x.to(device), y.to(device)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            one = gallery.attacked(model, attack, a, b)
        made = {"image": one.image, "map": Saliency()(model, a, b)}
        made |= _numbered("before", one.before) | _numbered("after", one.after)
        return made | _flat(_explanations(config, model, a, b))

    asked = {"attack": attack, "seed": config.seed, "negative": config.negative, "positive": config.positive}
    asked |= {"pair": config.pair, "samples": digest(x, y), "weights": fingerprint(model)}
    path = config.run_dir / parts.FOLDER / f"explain-{name}.safetensors"
    found = parts.kept(path, asked, make, config.fresh)
    before, after = (found["before.0"], found["before.1"]), (found["after.0"], found["after.1"])
    style = list(METHODS).index(name)
    one = gallery.Attacked(METHODS[name].label, found["image"], before, after, style)
    return one, found["map"], _explained(found)


def _numbered(name: str, values: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{i}": value for i, value in enumerate(values)}


_FIELDS = [f.name for f in dataclasses.fields(Explanation) if f.name not in ("role", "passes")]
_ROLES: tuple[Role, ...] = ("negative", "positive")


def _flat(one: _Explained) -> dict[str, Tensor]:
    """As named tensors; :func:`_explained` is its inverse."""
    made = {**_numbered("said", one.said), "correct": one.correct}
    for kind in ("pair", "cem"):
        for role, found in getattr(one, kind).items():
            made |= {f"{kind}.{role}.{name}": getattr(found, name) for name in _FIELDS}
            made[f"{kind}.{role}.passes"] = torch.tensor(dataclasses.astuple(found.passes))
    return made


def _explained(found: dict[str, Tensor]) -> _Explained:
    def explanation(kind: str, role: Role) -> Explanation:
        values = {name: found[f"{kind}.{role}.{name}"] for name in _FIELDS}
        return Explanation(role, **values, passes=Passes(*found[f"{kind}.{role}.passes"].tolist()))

    pair, cem = ({role: explanation(kind, role) for role in _ROLES} for kind in ("pair", "cem"))
    return _Explained((found["said.0"], found["said.1"]), found["correct"], pair, cem)


def _explanations(config: ExplainConfig, model: nn.Module, x: Tensor, y: Tensor) -> _Explained:
    contrast = config.pair(model, x, y)
    cem: dict[Role, Explanation] = {"negative": config.negative(model, x), "positive": config.positive(model, x)}
    pair: dict[Role, Explanation] = {"negative": contrast.negative, "positive": contrast.positive}
    return _Explained((contrast.predictions, contrast.confidence), contrast.correct, pair, cem)


def _contrastive(path: Path, x: Tensor, y: Tensor, one: _Explained, title: str) -> None:
    rows = [
        ("pertinent negative\nin the L2 ball", one.pair["negative"]),
        ("pertinent positive\nin the L2 ball", one.pair["positive"]),
        ("pertinent negative\nof CEM", one.cem["negative"]),
        ("pertinent positive\nof CEM", one.cem["positive"]),
    ]
    gallery.explanations(path, x, y, one.said, rows, title)


def _json(one: gallery.Attacked, explained: _Explained, x: Tensor) -> dict[str, Any]:
    delta = (one.image - x).flatten(1)
    return {
        "correct": explained.correct,
        "predictions": one.before[0],
        "confidence": one.before[1],
        "attacked": {
            "predictions": one.after[0],
            "confidence": one.after[1],
            "linf": delta.abs().amax(1),
            "l2": delta.norm(dim=1),
        },
        "contrastive": {role: _explanation_json(found) for role, found in explained.pair.items()},
        "cem": {role: _explanation_json(found) for role, found in explained.cem.items()},
    }


def _explanation_json(found: Explanation) -> dict[str, Any]:
    names = ("labels", "predictions", "confidence", "success", "l1", "l2", "changed", "passes")
    return {name: getattr(found, name) for name in names}


def _table(
    names: list[str],
    shown: list[gallery.Attacked],
    results: dict[str, _Explained],
    y: Tensor,
    config: ExplainConfig,
    attack: str,
) -> Table:
    columns = [
        Column("method", "method"),
        Column("clean", "right", 0),
        Column("attacked", f"after {attack}", 0),
        Column("flipped", f"flipped in L2 {config.radius:g}", 0),
        Column("negative", "PN L1"),
        Column("negative_pixels", "PN pixels", 0),
        Column("positive", "PP L1"),
        Column("positive_pixels", "PP pixels", 0),
    ]
    rows: list[dict[str, Any]] = []
    for name, one in zip(names, shown, strict=True):
        row: dict[str, Any] = {
            "method": METHODS[name].label,
            "clean": int((one.before[0] == y).sum()),
            "attacked": int((one.after[0] == y).sum()),
            "flipped": int(results[name].pair["negative"].success.sum()),
        }
        for role, found in results[name].cem.items():
            row[role] = _median(found.l1, found.success)
            row[f"{role}_pixels"] = _median(found.changed, found.success)
        rows.append(row)
    note = (
        f"Of {len(y)} held-out samples. PN, PP: the pertinent negatives and positives of CEM with a margin of "
        f"{config.kappa:g}, medians of those found."
    )
    return Table("explanations", columns, rows, note)


def _median(values: Tensor, chosen: Tensor) -> float | None:
    found = values[chosen].tolist()
    return statistics.median(found) if found else None
