"""Gradient masking: does an attack without gradients find what PGD does not, and do other signs point that way?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soatfast.attacks import FGSM, PGD
from soatfast.evaluate.accuracies import Samples, batches, gather
from soatfast.evaluate.batch import Runnable, seeded
from soatfast.evaluate.reading import as_read, check_attack, network, prepared
from soatfast.evaluate.suites import cell_seed, evaluating, suite
from soatfast.evaluate.watch import norm_of
from soatfast.gradients import objectives
from soatfast.gradients.counting import count_passes
from soatfast.gradients.device import device_of
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.outputs import Forward, Output, logits_of
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops import lp_norm
from soatfast.ops.arguments import as_column
from soatfast.runs.table import Column, Table

TOLERANCES = (0.0, 0.1)
"""Margins by which black box must fall below white box to count; the paper's figure does not state one."""


@dataclass(frozen=True)
class Margins:
    """Of each sample's final example: margin z_y - max_{j != y} z_j (right where positive) and norm of x_adv - x."""

    margin: np.ndarray = field(repr=False)
    norm: np.ndarray = field(repr=False)
    passes: Passes = field(default_factory=Passes, repr=False)
    """Of the attack, and one forward a sample for the margins."""


def final_margins(
    model: nn.Module,
    data: Samples,
    attack: Runnable | None,
    batch_size: int = 250,
    seed: int = 0,
    output: Output = None,
    forward: Forward | None = None,
) -> Margins:
    """Run the attack on every sample, the wrong ones too, to its end; None: the clean margins.

    For the scatter of white box against black box, where a margin is compared and not whether the sample is fooled:
    an attack that stops at the first success has no place in it. The norm is the attack's. output, forward: as of
    :func:`~soatfast.evaluate.suites.suite`.
    """
    device, read = device_of(model), as_read(model, output, forward)
    check_attack("final_margins", attack, forward)
    margins, norms = [], []
    with evaluating(model), count_passes(network(read)) as passes:
        for index, (x, y) in enumerate(batches(*gather(data), batch_size)):
            x, y = x.to(device), y.to(device)
            x_adv = x
            if attack is not None:
                with seeded(attack, cell_seed(seed, "margins", index)):
                    called, with_model = prepared(attack, read)
                    x_adv = called(with_model, x, y).detach()
            with torch.no_grad():
                logits = logits_of(read(x_adv), len(x))
            margins.append(-objectives.margin(logits, y).cpu().double())
            norms.append(lp_norm(x_adv - x, norm_of(attack)).cpu().double())
    return Margins(torch.cat(margins).numpy(), torch.cat(norms).numpy(), passes.total())


@dataclass(frozen=True)
class Scatter:
    """White-box margins against black-box margins of the same samples, and what they say.

    below: tolerance -> number of samples whose black-box margin is lower by more than it (the paper's red points: 0).
    flips: samples that only the black box fools. quadrants: "both", "white only", "black only", "neither" fools.
    pearson, spearman: correlation of the two margins; nan where one of them is constant.
    """

    white: np.ndarray = field(repr=False)
    black: np.ndarray = field(repr=False)
    below: dict[float, int]
    flips: int
    quadrants: dict[str, int]
    pearson: float
    spearman: float


def scatter_json(found: Scatter, white: Passes, black: Passes) -> dict[str, Any]:
    """Every figure of a scatter, with the margins of the samples and the passes of both attacks."""
    said = {f.name: getattr(found, f.name) for f in dataclasses.fields(found)}
    said |= {"white": found.white.tolist(), "black": found.black.tolist()}
    said["below"] = {f"{tolerance:g}": count for tolerance, count in found.below.items()}
    return {**said, "passes": {"white": dataclasses.asdict(white), "black": dataclasses.asdict(black)}}


def compare_margins(
    white: np.ndarray | Tensor, black: np.ndarray | Tensor, tolerances: Sequence[float] = TOLERANCES
) -> Scatter:
    """The two attacks' margins (N,) of the same samples in the same order; see :func:`final_margins`.

    The figures are about masking only if both attacks stay in the same ball. The SCORPIO paper's do not: SimBA with
    200 steps of 0.2 against PGD in a ball of 8/255. Compare both, its own and a SimBA kept in PGD's ball.

    >>> found = compare_margins(np.array([2.0, 1.0, -1.0, -2.0]), np.array([2.5, -0.5, -0.5, -2.05]))
    >>> found.below, found.flips, found.quadrants
    ({0.0: 2, 0.1: 1}, 1, {'both': 2, 'white only': 0, 'black only': 1, 'neither': 1})
    """
    a, b = (np.asarray(t.cpu() if isinstance(t, Tensor) else t, dtype=np.float64) for t in (white, black))
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"margins must be two arrays (N,) of the same samples, got shapes {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("margins must not be NaN")
    if any(not 0 <= t < math.inf for t in tolerances):
        raise ValueError(f"tolerances must be finite and at least 0, got {tuple(tolerances)}")
    white_fools, black_fools = a <= 0, b <= 0
    quadrants = {
        "both": white_fools & black_fools,
        "white only": white_fools & ~black_fools,
        "black only": ~white_fools & black_fools,
        "neither": ~white_fools & ~black_fools,
    }
    counts = {name: int(chosen.sum()) for name, chosen in quadrants.items()}
    below = {float(t): int((b < a - t).sum()) for t in tolerances}
    return Scatter(a, b, below, counts["black only"], counts, _correlation(a, b), _correlation(_ranks(a), _ranks(b)))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else math.nan


def _ranks(a: np.ndarray) -> np.ndarray:
    """From 0; equal values share their mean rank."""
    _, place, count = np.unique(a, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count + 1) / 2)[place]


@dataclass(frozen=True, kw_only=True)
class Noise(PGD):
    """The best of `steps` points drawn uniformly from ball and box: an attack that asks for no gradient.

    Passes: `steps` forwards.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(3, 1, 2, 2)
    >>> bool(((Noise(eps=0.1, steps=5)(model, x, torch.tensor([0, 1, 0])) - x).abs() <= 0.1 + 1e-6).all())
    True
    """

    steps: int = 100

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        best, highest = x, torch.full((len(x),), -math.inf, device=x.device)
        for _ in range(self.steps):
            point = self._start(x)
            loss = oracle.loss(point, y)
            better = loss > highest
            best = torch.where(as_column(better, x), point, best)
            highest = torch.where(better, loss, highest)
        return best

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=self.steps)


@dataclass(frozen=True)
class Sign:
    """One sign of masked gradients: whether it is there, and the figures that say so (shares, not percent)."""

    name: str
    present: bool
    figures: dict[str, float]
    meaning: str


def masking_signs(
    model: nn.Module,
    data: Samples,
    attack: PGD,
    *,
    black_box: Runnable | None = None,
    draws: int = 100,
    tolerance: float = 0.01,
    batch_size: int = 250,
    seed: int = 0,
    output: Output = None,
    forward: Forward | None = None,
) -> list[Sign]:
    """The checklist of Athalye, Carlini and Wagner (2018) and Carlini et al. (2019), measured in the attack's ball.

    No sign proves masking and none of them rules it out. `tolerance` is the difference of two accuracies, as a share,
    that is not taken for chance; one sample that only noise or the black box fools is a sign beyond it too.

    attack: PGD, whose steps are also run fourfold, and in twice its ball and one that holds all images. black_box: an
    attack without gradients in the same ball; without it its sign is left out. draws: random points a sample. output,
    forward: as of :func:`~soatfast.evaluate.suites.suite`.
    """
    if attack.p not in (1, 2, math.inf) or isinstance(attack.eps, Tensor) or not attack.eps > 0:
        raise ValueError(f"masking_signs needs PGD with one eps > 0, got {attack.eps}")
    x, y = gather(data)
    low, high = attack.bounds
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        raise ValueError("masking_signs needs bounds that are numbers, got bounds a channel")
    whole = (high - low) * (1.0 if attack.p == math.inf else x[0].numel() ** (1 / attack.p))
    same: dict[str, Any] = {"eps": attack.eps, "p": attack.p, "bounds": attack.bounds, "objective": attack.objective}
    same |= {"mask": attack.mask, "output": attack.output, "forward": attack.forward}
    attacks: dict[str, Runnable] = {
        "single": FGSM(**same),
        "pgd": attack,
        "longer": attack.with_steps(4 * attack.steps),
        "twice": dataclasses.replace(attack, eps=min(2 * attack.eps, whole), step_size=None),
        "unbounded": dataclasses.replace(attack, eps=whole, step_size=None),
        "noise": Noise(**same, steps=draws),
    }
    if black_box is not None:
        attacks["black box"] = black_box
    result = suite(
        model, list(batches(x, y, batch_size)), attacks, seed=seed, quality=False, output=output, forward=forward
    )
    share = {name: result[name].accuracy for name in attacks}
    alone = {name: _beyond(result[name].correct, result["pgd"].correct) for name in attacks}
    still = _still(as_read(model, output, forward), x, y, attack, batch_size)
    signs = [
        Sign(
            "single step beats many",
            share["single"] < share["pgd"] - tolerance,
            {"FGSM accuracy": share["single"], f"PGD-{attack.steps} accuracy": share["pgd"]},
            "the gradient at x points better than those along the way: the loss is rough around x",
        ),
        Sign(
            "random noise finds what PGD misses",
            alone["noise"] > tolerance * len(y),
            {"noise accuracy": share["noise"], "samples that only noise fools": alone["noise"]},
            "there are examples to which the gradients do not lead",
        ),
        Sign(
            "unbounded attack does not reach 0",
            share["unbounded"] > tolerance,
            {"eps": float(whole), "accuracy": share["unbounded"]},
            "with every image in reach each sample can be fooled, so the attack is stuck",
        ),
        Sign(
            "larger ball does not help",
            share["pgd"] > tolerance and share["twice"] >= share["pgd"],
            {"accuracy": share["pgd"], "accuracy at twice eps": share["twice"]},
            "the attack does not use the room it has",
        ),
        Sign(
            "more steps still help",
            share["longer"] < share["pgd"] - tolerance,
            {f"PGD-{attack.steps} accuracy": share["pgd"], f"PGD-{4 * attack.steps} accuracy": share["longer"]},
            "the attack has not converged: its figure is not the model's",
        ),
        Sign(
            "gradients vanish",
            still > tolerance,
            {"share of samples with a zero gradient": still},
            "PGD stands still there: saturated or quantised outputs",
        ),
    ]
    if black_box is not None:
        signs.insert(
            1,
            Sign(
                "black box beats white box",
                alone["black box"] > tolerance * len(y) or share["black box"] < share["pgd"] - tolerance,
                {
                    "black-box accuracy": share["black box"],
                    f"PGD-{attack.steps} accuracy": share["pgd"],
                    "samples that only the black box fools": alone["black box"],
                },
                "queries find what gradients do not",
            ),
        )
    return signs


def _beyond(right: np.ndarray, reference: np.ndarray) -> int:
    """Samples that are fooled here and not in the reference."""
    return int((~right & reference).sum())


def _still(model: nn.Module, x: Tensor, y: Tensor, attack: PGD, batch_size: int) -> float:
    """Share of samples whose gradient at x is zero in every entry."""
    device = device_of(model)
    zero = 0
    called, with_model = prepared(attack, model)
    with called.oracle(with_model) as oracle:
        for a, b in batches(x, y, batch_size):
            g = oracle.gradient(a.to(device), b.to(device))
            zero += int((g.flatten(1).abs().amax(1) == 0).sum())
    return zero / len(x)


def signs_table(signs: Sequence[Sign]) -> Table:
    """The checklist as a table."""
    columns = [Column("name", "sign"), Column("present", "present"), Column("figures", "measured")]
    rows = [
        {
            "name": sign.name,
            "present": "yes" if sign.present else "no",
            "figures": ", ".join(f"{name} {value:.4g}" for name, value in sign.figures.items()),
        }
        for sign in signs
    ]
    return Table("Signs of masked gradients", columns, rows, "No sign proves masking, and none of them rules it out.")
