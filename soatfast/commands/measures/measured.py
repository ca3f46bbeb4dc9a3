"""The measures by name: tensors of one row a sample, and the columns of the table that come from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks import PGD, FrankWolfe
from soatfast.evaluate import local_linearity, loss_along, quadratic_gap
from soatfast.gradients.device import device_of
from soatfast.gradients.oracle import InputGradient
from soatfast.runs.table import Column
from soatfast.solvers import eigenvalue_profile, frobenius_norm, hessian_trace, spectral_density, top_eigenpairs
from soatfast.solvers.hessian import Scheme

SHARES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
"""Of eps, where curves over the radius are measured."""
STEPS = tuple(round(-1 + 0.25 * i, 2) for i in range(13))
"""Of eps, where the loss along a line is measured: -1 to 2."""
_ENDS, _PROBES, _PRODUCTS = 3, 4, 30
_PAPERS_RATIO = 0.5 / (
    8 / 255 * math.sqrt(3072)
)  # the papers' L2 ball on CIFAR-10 against eps sqrt(D) of their Linf one


@dataclass(frozen=True)
class Ball:
    """eps, p: of the ball. max_dim, scheme: of the eigenvalues."""

    eps: float
    p: float
    max_dim: int
    scheme: Scheme

    def radius(self, p: float, size: int) -> float:
        """eps, or the radius of the other norm in the papers' proportion: L2 0.5 to Linf 8/255 on CIFAR-10."""
        scale = _PAPERS_RATIO * math.sqrt(size)
        return self.eps if p == self.p else self.eps * scale if p == 2 else self.eps / scale


Rows = dict[str, Tensor]


@dataclass(frozen=True)
class Measure:
    """make: (model, x, y, ball, generator) -> tensors (B, ...). cells: of all samples' tensors, by column."""

    make: Callable[[nn.Module, Tensor, Tensor, Ball, torch.Generator], Rows]
    columns: tuple[Column, ...]
    cells: Callable[[Mapping[str, Tensor]], dict[str, float]]


def measured(measure: Measure, model: nn.Module, x: Tensor, y: Tensor, ball: Ball, seed: int, batch: int) -> Rows:
    """A measure of all samples, a batch in memory at a time."""
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    parts: list[Rows] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for some, labels in zip(x.split(batch), y.split(batch), strict=True):
            rows = measure.make(model, some.to(device), labels.to(device), ball, generator)
            parts.append({name: t.cpu() for name, t in rows.items()})
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _median(t: Tensor) -> float:
    return float(t.double().median())


def _ends(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator) -> Rows:
    k = min(_ENDS, ball.max_dim)
    with InputGradient(model) as oracle:
        found = {
            which: top_eigenpairs(
                oracle, x, y, k, which=which, max_dim=ball.max_dim, scheme=ball.scheme, generator=generator
            )
            for which in ("largest", "smallest")
        }
    residual = torch.maximum(*(pairs.residuals.amax(1) for pairs in found.values()))
    return {**{which: pairs.values for which, pairs in found.items()}, "residual": residual}


def _density(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator) -> Rows:
    with InputGradient(model) as oracle:
        found = spectral_density(
            oracle, x, y, max_dim=ball.max_dim, probes=_PROBES, scheme=ball.scheme, generator=generator
        )
    return {"nodes": found.nodes, "weights": found.weights}


def _profile(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator) -> Rows:
    with InputGradient(model) as oracle:
        return {"eigenvalues": eigenvalue_profile(oracle, x, y, scheme=ball.scheme)}


def _trace(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator) -> Rows:
    with InputGradient(model) as oracle:
        trace = hessian_trace(
            oracle, x, y, method="hutch++", products=_PRODUCTS, scheme=ball.scheme, generator=generator
        )
        norm = frobenius_norm(oracle, x, y, products=_PRODUCTS, scheme=ball.scheme, generator=generator)
    return {"trace": trace.value, "trace_error": trace.error, "frobenius": norm.value, "frobenius_error": norm.error}


def _linearity(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator) -> Rows:
    rows = [local_linearity(model, x, y, share * ball.eps, ball.p, generator=generator) for share in SHARES]
    return {"gamma": torch.stack(rows, 1)}


def _lines(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator) -> Rows:
    noise = torch.empty_like(x).normal_(generator=generator)
    if ball.p == math.inf:
        random = ball.eps * noise.sign()
    else:
        random = ball.eps * noise / noise.flatten(1).norm(dim=1).view(-1, *(1,) * (x.dim() - 1))
    attacked = PGD(eps=ball.eps, p=ball.p, steps=20, generator=generator)(model, x, y) - x
    at = torch.tensor(STEPS)
    return {"adversarial": loss_along(model, x, y, attacked, at), "random": loss_along(model, x, y, random, at)}


def _gap(model: nn.Module, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator) -> Rows:
    """SCORPIO's figure 3, accuracies over eps, and the gap of the losses over eps; the other ball's gap at eps."""
    rows: dict[str, list[Tensor]] = {"pgd": [], "frank_wolfe": [], "gap": []}
    options: Any = {"restarts": 1, "max_dim": ball.max_dim, "generator": generator}
    for share in SHARES:
        eps = share * ball.eps
        rows["pgd"].append(_right(model, PGD(eps=eps, p=ball.p, steps=10, generator=generator)(model, x, y), y))
        rows["frank_wolfe"].append(_right(model, FrankWolfe(eps=eps, p=ball.p, steps=3)(model, x, y), y))
        rows["gap"].append(quadratic_gap(model, x, y, eps, ball.p, **options).gap)
    balls = {p: quadratic_gap(model, x, y, ball.radius(p, x[0].numel()), p, **options) for p in (2, math.inf)}
    here = balls[ball.p]
    return {
        **{name: torch.stack(values, 1) for name, values in rows.items()},
        "gap_linf": balls[math.inf].gap,
        "gap_l2": balls[2].gap,
        "alignment": here.alignment,
        "theorem1": here.theorem1,
        "gradient_norm": here.gradient_norm,
        "hessian_norm": here.hessian_norm,
        "third": here.third,
    }


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with InputGradient(model) as oracle:
        oracle.loss(x, y)
        return ~oracle.fooled(y)


MEASURES: dict[str, Measure] = {
    "ends": Measure(
        _ends,
        (Column("third", "third", 3), Column("smallest", "smallest", 3), Column("residual", "residual", 5)),
        lambda t: {
            "third": _median(t["largest"][:, -1]),
            "smallest": _median(t["smallest"][:, 0]),
            "residual": float(t["residual"].max()),
        },
    ),
    "density": Measure(_density, (), lambda t: {}),
    "profile": Measure(
        _profile,
        (Column("negative", "below 0", 1, " %"),),
        lambda t: {"negative": 100 * float((t["eigenvalues"] < -1e-6 * t["eigenvalues"].abs().amax()).double().mean())},
    ),
    "trace": Measure(
        _trace,
        (Column("trace", "trace", 3), Column("frobenius", "Frobenius", 3)),
        lambda t: {"trace": _median(t["trace"]), "frobenius": _median(t["frobenius"])},
    ),
    "linearity": Measure(
        _linearity, (Column("gamma", "gamma(eps)", 3),), lambda t: {"gamma": _median(t["gamma"][:, SHARES.index(1.0)])}
    ),
    "lines": Measure(_lines, (), lambda t: {}),
    "gap": Measure(
        _gap,
        (
            Column("gap_linf", "gap Linf", 4),
            Column("gap_l2", "gap L2", 4),
            Column("theorem1", "Theorem 1, M estimated", 1),
            Column("alignment", "cos(g, u1)", 2),
        ),
        lambda t: {
            "gap_linf": float(t["gap_linf"].mean()),
            "gap_l2": float(t["gap_l2"].mean()),
            "theorem1": float(t["theorem1"].mean()),
            "alignment": float(t["alignment"].mean()),
        },
    ),
}
