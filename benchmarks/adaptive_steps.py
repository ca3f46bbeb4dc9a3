r"""Does a number of Frank-Wolfe steps that follows the Frank-Wolfe gap buy accuracy per pass? For docs/fewer-passes.md.

    python -m benchmarks.adaptive_steps                  # 42 trainings, about half an hour on one idle core
    python -m benchmarks.adaptive_steps --epochs 1       # to try the command
    python -m benchmarks.adaptive_steps --run-dir runs/adaptive-steps-fresh --first-seed 3 \
      --only fixed-2 fixed-3 mix-12 each-1.5 each-0.2 chance-1.5

The rule: the step k of FrankWolfe has the gap <G_k, s_k - v_k> >= 0 at hand, a bound on what the linearised loss can
still gain. Once its mean over the batch is below tau (or below a share of the first gap), that step was the last.
`each` asks every sample on its own, and those that are done leave the passes; `fooled`: those misclassified leave, too.
Reading the gap is one host read a step, which on a GPU waits for it. Under a budget tau is steered so that the mean
number of steps is the budget.

Everything is set against fixed numbers of steps at equal passes, counted: between two whole numbers the straight line,
which is what a mix of batches with the one and with the other would reach.

Predicted after one look at the gaps of a PGD-10 model, which fall alike on two batches of 100 (0.2, 0.14, 0.05, 0.04):
(a) Evaluation. The rule per batch lies on the curve of the fixed N to within 0.1 points, because the mean gap of 100
    digits says little but k. Per sample it gains up to 0.2 points: confident samples have tiny gradients, leave early,
    and would not have been fooled. Shares of the first gap are worse than absolute gaps: they keep those samples.
(b) Training. The rule per batch ties with the fixed N of equal passes. Per sample it ties as well or gains a point,
    within the spread. N that grows over the epochs gains up to a point over the same mean N, the falling one loses as
    much; with three seeds and a spread of 2 points none of this can be told from nothing.
Added after seed 0, where N = 1 trained to 55 %, N = 2, 3, 5 to 79 or 80 %, and `each` gained half a point in (a): the
rows with 1.5 steps on average, against epochs of N = 1 and 2 in turn (predicted: all near 75 %, N rising best), and
leaving once fooled (predicted: it saves a fifth, and `each` saves as much on top).
Added after seeds 0 to 2, where each-1.5 was 1.3 points above the epochs in turn: chance-1.5, in which a random number
stands for the gap, and both on fresh seeds 3 to 5 (predicted: half of the gain remains, and chance has half of that).
Last each-0.2, a tau that nothing steers (predicted: 3.4 to 3.9 passes, within a point of each-1.5).
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from soatfast import ops
from soatfast.attacks import PGD, FrankWolfe
from soatfast.attacks.task import Task
from soatfast.commands.methods import METHODS
from soatfast.evaluate import Column, Table, accuracy
from soatfast.evaluate.accuracies import batches, gather
from soatfast.gradients import InputGradient, count_passes
from soatfast.gradients.objectives import cross_entropy
from soatfast.losses import SCORPIO, Loss
from soatfast.runs.figures import clear_axes, figure
from soatfast.runs.progress import Progress
from soatfast.train import TrainConfig, load_data, train
from soatfast.train.checkpoint import WEIGHTS, load_weights
from soatfast.train.subject import make_model

EPS = 0.2
MOST = 10  # steps of the rule
FIXED = range(1, 11)
BATCH = 100
SOLVER: dict[str, Any] = {"h": 1.0, "init": "lmo", "in_box": True}  # of METHODS["scorpio"]: Frank-Wolfe on the loss


@dataclass
class Rule:
    """Steps go on while the gap is at least tau, or tau times the first gap."""

    tau: float
    share: bool = False
    each: bool = False
    fooled: bool = False
    chance: bool = False
    budget: float | None = None
    taken: list[float] = field(default_factory=list)  # mean steps of each batch

    def spent(self, steps: float) -> None:
        self.taken.append(steps)
        if self.budget is not None:
            self.tau *= math.exp(0.1 * (steps - self.budget))


@dataclass(frozen=True, kw_only=True)
class GapFrankWolfe(FrankWolfe):
    """FrankWolfe(scheme="fe", h=1) of at most `steps` steps, fewer where the rule says so."""

    rule: Rule

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if g0 is None:
            g0 = oracle.gradient(x, y)
        ball = {"bounds": self.bounds, "in_box": self.in_box}
        v, probe = ops.frank_wolfe_init(g0, x, self.p, self.eps, init=self.init, h=1.0, **ball)
        active, limit, passed = torch.arange(len(y), device=y.device), g0.new_full((len(y),), self.rule.tau), 0
        if self.rule.fooled:
            active = active[~oracle.fooled(y)]
        for k in range(self.steps):
            if len(active) == 0:  # the host read
                break
            g1 = oracle.gradient(probe[active], y[active])
            passed += len(active)
            if self.rule.fooled:
                missed = ~oracle.fooled(y[active])
                active, g1 = active[missed], g1[missed]
            v[active], probe[active], gap = ops.frank_wolfe_step(
                g0[active], g1, v[active], x[active], self.p, self.eps, gamma=2 / (k + 2), **ball
            )
            if self.rule.chance:
                gap = torch.rand_like(gap)
            gap = gap if self.rule.each else gap.mean().expand(len(gap))
            if k == 0 and self.rule.share:
                limit[active] *= gap
            active = active[gap >= limit[active]]
        self.rule.spent(passed / len(y))
        return probe.clamp(*self.bounds)


@dataclass(frozen=True, kw_only=True)
class GapSCORPIO(SCORPIO):
    """SCORPIO whose number of steps follows the rule."""

    rule: Rule

    @property
    def attack(self) -> FrankWolfe:
        return GapFrankWolfe(**vars(super().attack), rule=self.rule)


class Clock(Progress):
    """The epochs that the trainer has done."""

    done = 0

    def epoch(self, row: dict[str, Any]) -> None:
        self.done = row["epoch"]


@dataclass(frozen=True, kw_only=True)
class PlannedSCORPIO(SCORPIO):
    """SCORPIO with plan[0] steps in the first epochs, plan[-1] in the last."""

    plan: tuple[int, ...]
    epochs: int
    clock: Clock

    @property
    def attack(self) -> FrankWolfe:
        return super().attack.with_steps(self.plan[len(self.plan) * self.clock.done // self.epochs])


# ------------------------------------------------------------------------------------------------ what is compared

TRAININGS: dict[str, tuple[str, Any]] = {  # label; steps, a plan or a rule
    **{f"fixed-{n}": (f"N = {n}", n) for n in (1, 2, 3, 5)},
    "mix-12": ("N = 1 and 2 in turn by epochs", (1, 2) * 7),
    "gap-2": ("gap of the batch, 2 on average", Rule(0.1, budget=2)),
    "each-2": ("gap of each sample, 2 on average", Rule(0.05, each=True, budget=2)),
    "gap-1.5": ("gap of the batch, 1.5 on average", Rule(0.1, budget=1.5)),
    "each-1.5": ("gap of each sample, 1.5 on average", Rule(0.05, each=True, budget=1.5)),
    "each-0.2": ("gap of each sample, below 0.2", Rule(0.2, each=True)),
    "chance-1.5": ("chance for each sample, 1.5 on average", Rule(0.5, each=True, chance=True, budget=1.5)),
    "grow-123": ("N = 1, 2, 3 by thirds of the epochs", (1, 2, 3)),
    "grow-12": ("N = 1, 2 by halves of the epochs", (1, 2)),
    "pgd10": ("PGD-10", None),
}
MODELS = {"pgd10": "PGD-10 training", "fixed-3": "SCORPIO FE(3)"}  # those that are attacked in part (a)
RULES: dict[str, tuple[tuple[str, int, Rule], ...]] = {  # the row's name, the most steps, the rule
    "gap of the batch": tuple((f"{t:g}", MOST, Rule(t)) for t in (0.1, 0.045, 0.035, 0.03)),
    "share of its first gap": tuple((f"{t:g}", MOST, Rule(t, share=True)) for t in (0.3, 0.2, 0.15)),
    "gap of each sample": tuple((f"{t:g}", MOST, Rule(t, each=True)) for t in (0.2, 0.1, 0.05, 0.02)),
    "share of each first gap": tuple((f"{t:g}", MOST, Rule(t, share=True, each=True)) for t in (0.7, 0.4, 0.2)),
    "fooled": tuple((f"N = {n}", n, Rule(-math.inf, each=True, fooled=True)) for n in (2, 3, 5, 10)),
    "gap of each sample, or fooled": tuple(
        (f"{t:g}", MOST, Rule(t, each=True, fooled=True)) for t in (0.2, 0.1, 0.05, 0.02)
    ),
}


@dataclass(frozen=True)
class Study:
    """Options of the study."""

    run_dir: Path = Path("runs/adaptive-steps")
    """Folder of everything written; trainings finished there are used."""
    epochs: int = 15
    """Of each training; eps rises over the first five."""
    seeds: int = 3
    """Trainings of each row."""
    first_seed: int = 0
    """Their seeds begin here."""
    train_samples: int | None = None
    """Only the first so many training samples."""
    test_samples: int | None = None
    """Only the first so many held-out samples."""
    only: tuple[str, ...] = ()
    """Names of trainings; none: all of them. Part (a) is done where its models are among them."""

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in TRAININGS]
        if unknown:
            raise SystemExit(f"error: trainings are {', '.join(TRAININGS)}; got {', '.join(unknown)}")


def loss_of(choice: Any, task: Task, epochs: int, clock: Clock) -> Loss:
    """The loss of a row of TRAININGS; all but PGD-10's are `soatfast compare`'s SCORPIO."""
    if choice is None:
        return METHODS["pgd10"].make(task)
    base = METHODS["scorpio"].make(task)
    if isinstance(choice, int):
        return base.with_steps(choice)
    if isinstance(choice, tuple):
        return PlannedSCORPIO(**vars(base), plan=choice, epochs=epochs, clock=clock)
    return GapSCORPIO(**{**vars(base), "steps": MOST}, rule=choice)


def trained(study: Study, name: str, seed: int) -> dict[str, Any]:
    """Figures of one training: passes per step counted over all of it, accuracies in %; kept in the run folder."""
    folder = study.run_dir / name / f"seed-{seed}"
    kept = folder / "figures.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    data = load_data("mnist5k").first(study.train_samples, study.test_samples)
    torch.manual_seed(seed)
    model = make_model("small-cnn", data.shape, data.classes, None)
    choice, clock = TRAININGS[name][1], Clock()
    rule = dataclasses.replace(choice, taken=[]) if isinstance(choice, Rule) else choice
    loss = loss_of(rule, Task(EPS, len(data.train), tuple(data.shape)), study.epochs, clock)
    config = TrainConfig(epochs=study.epochs, batch_size=BATCH, seed=seed)
    with count_passes(model) as passes:
        result = train(model, loss, data, config, folder, resume=False, progress=clock)
    figures = {
        "passes": (passes.backward_input_samples + passes.backward_parameters_samples) / (BATCH * result.steps),
        "forwards": passes.forward_samples / (BATCH * result.steps),
        "spread": statistics.pstdev(rule.taken) if isinstance(rule, Rule) else 0.0,
        "clean": 100 * accuracy(model, data.test).accuracy,
        "pgd40": 100 * accuracy(model, data.test, PGD(eps=EPS, steps=40)).accuracy,
    }
    kept.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def attacked(study: Study, name: str, seed: int) -> dict[str, list[dict[str, float]]]:
    """Part (a) on one model: a row for each fixed N and each rule, {passes, accuracy %, loss}; kept as well."""
    folder = study.run_dir / name / f"seed-{seed}"
    kept = folder / "attacked.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    data = load_data("mnist5k").first(None, study.test_samples)
    model = make_model("small-cnn", data.shape, data.classes, None)
    load_weights(model, folder / WEIGHTS)
    x, y = gather(data.test)
    common: dict[str, Any] = {"eps": EPS, **SOLVER}
    found = {"fixed": [strength(model, x, y, FrankWolfe(steps=n, **common)) for n in FIXED]}
    for row, rules in RULES.items():
        found[row] = [strength(model, x, y, GapFrankWolfe(steps=n, rule=rule, **common)) for _, n, rule in rules]
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def strength(model: nn.Module, x: Tensor, y: Tensor, attack: FrankWolfe) -> dict[str, float]:
    """Passes a sample, accuracy on clean and attacked input, mean loss, over batches as in training."""
    with count_passes(model) as passes:
        x_adv = torch.cat([attack(model, *batch) for batch in batches(x, y, BATCH)])
    with torch.no_grad():
        clean, logits = model(x), model(x_adv)
    right = (clean.argmax(1) == y) & (logits.argmax(1) == y)
    return {
        "passes": passes.backward_input_samples / len(y),
        "accuracy": 100 * right.float().mean().item(),
        "loss": cross_entropy(logits, y).mean().item(),
    }


# ------------------------------------------------------------------------------------------------ tables and curves


def gains(rows: Sequence[dict], fixed: Sequence[Sequence[dict]], figure: str) -> list[float]:
    """Of each seed, `figure` minus that of the fixed numbers of steps at the same passes."""
    found = []
    for row, curve in zip(rows, fixed, strict=True):
        line = np.interp(row["passes"], [one["passes"] for one in curve], [one[figure] for one in curve])
        found.append(row[figure] - float(line))
    return found


def evaluation_table(label: str, runs: Sequence[dict[str, list[dict]]]) -> Table:
    fixed = [run["fixed"] for run in runs]
    rows = []
    for name in runs[0]:
        for i in range(len(runs[0][name])):
            ours = [run[name][i] for run in runs]
            row: dict[str, Any] = {key: [one[key] for one in ours] for key in ("passes", "accuracy", "loss")}
            row["name"] = f"N = {FIXED[i]}" if name == "fixed" else f"{name}, {RULES[name][i][0]}"
            if name != "fixed":
                row["taken"] = [-gain for gain in gains(ours, fixed, "accuracy")]
                row["raised"] = [1000 * gain for gain in gains(ours, fixed, "loss")]
            rows.append(row)
    columns = [
        Column("name", "stops at"),
        Column("passes", "passes a sample", 2),
        Column("accuracy", "accuracy %", 2),
        Column("loss", "mean loss", 4),
        Column("taken", "points taken beyond fixed N", 2),
        Column("raised", "loss beyond, 1/1000", 1),
    ]
    return Table(f"Evaluation of {label} models", columns, rows)


def training_table(found: dict[str, list[dict]]) -> Table:
    names = [name for name in found if name.startswith(("fixed", "mix"))]
    fixed = [sorted(curve, key=lambda one: one["passes"]) for curve in zip(*(found[n] for n in names), strict=True)]
    rows = []
    for name, runs in found.items():
        row: dict[str, Any] = {key: [run[key] for run in runs] for key in runs[0]}
        row["name"] = TRAININGS[name][0]
        if name not in (*names, "pgd10"):
            row["gain"] = gains(runs, fixed, "pgd40")
            row["gain_clean"] = gains(runs, fixed, "clean")
        rows.append(row)
    columns = [
        Column("name", "SCORPIO with"),
        Column("passes", "backwards a step", 2),
        Column("forwards", "forwards a step", 2),
        Column("spread", "spread of N", 2),
        Column("clean", "clean %"),
        Column("pgd40", "PGD-40 %"),
        Column("gain", "PGD-40, gain at equal passes", 1),
        Column("gain_clean", "clean, gain", 1),
    ]
    return Table("Training", columns, rows)


def curves(evaluation: dict[str, list[dict]], found: dict[str, list[dict]], path: Path) -> None:
    """Accuracy against passes: one panel for each model of part (a), and the trainings."""
    picture = figure((15, 4.8))
    axes = picture.subplots(1, len(evaluation) + 1, squeeze=False)[0]
    colours = dict(zip(RULES, COLOURS, strict=False))
    for axis, (name, seeds) in zip(axes, evaluation.items(), strict=False):
        for rule in seeds[0]:
            runs = [run[rule] for run in seeds]
            x, y = ([statistics.fmean(one[key] for one in at) for at in zip(*runs, strict=True)] for key in AXES)
            style = {"color": colours[rule], "linestyle": ""} if rule in colours else {"color": "#555555"}
            axis.plot(x, y, marker="o" if rule in colours else ".", markersize=6, label=rule, **style)
        axis.set_title(f"attacked: {MODELS[name]}", fontsize=11)
        axis.set_xlabel("passes a sample")
        axis.set_ylabel("accuracy under FrankWolfe (%), lower is stronger")
        axis.legend(fontsize=8.5, frameon=False)
    axis = axes[-1]
    order = sorted(found, key=lambda name: -found[name][0]["passes"])
    for place, name in enumerate(order):
        values = [run["pgd40"] for run in found[name]]
        colour = {"each": "#D55E00", "gap": "#0072B2"}.get(name.split("-")[0], "#555555")
        axis.plot(values, [place] * len(values), ".", color=colour, alpha=0.6)
        axis.plot(statistics.fmean(values), place, "o", color=colour, markersize=8)
    names = [f"{TRAININGS[name][0]}: {statistics.fmean(run['passes'] for run in found[name]):.2f}" for name in order]
    axis.set_yticks(range(len(order)), names, fontsize=8.5)
    axis.set_title("SCORPIO trained: backwards a step", fontsize=11)
    axis.set_xlabel("PGD-40 accuracy (%), seeds and mean")
    for axis in axes:
        clear_axes(axis)
    picture.savefig(path, format="png")


COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7")
AXES = ("passes", "accuracy")


def run(study: Study) -> None:
    seeds = range(study.first_seed, study.first_seed + study.seeds)
    found: dict[str, list[dict]] = {name: [] for name in study.only or TRAININGS}
    for seed in seeds:
        for name in found:
            found[name].append(trained(study, name, seed))
            print(f"seed {seed}, {name}: {found[name][-1]['pgd40']:.1f} % under PGD-40", flush=True)
    evaluation = {name: [attacked(study, name, seed) for seed in seeds] for name in MODELS if name in found}
    tables = [evaluation_table(MODELS[name], runs) for name, runs in evaluation.items()]
    page = "\n".join(table.to_markdown() for table in (*tables, training_table(found)))
    (study.run_dir / "adaptive-steps.md").write_text(page, encoding="utf-8")
    curves(evaluation, found, study.run_dir / "adaptive-steps.png")
    print(f"written to {study.run_dir}: adaptive-steps.md, adaptive-steps.png")


if __name__ == "__main__":
    run(tyro.cli(Study, description=__doc__))
