"""Milliseconds a sample of the curvature toolbox, and of curvlinops with the input as its only parameter.

    python -m benchmarks.curvature_tools [--rounds 5] [--samples 16]

Both make the same number of Hessian products for each sample of one batch: soatfast for the batch at once, curvlinops
sample by sample, as its operators are of one parameter vector. The two take turns in every round; medians, and the
median of the ratios of a round. Without curvlinops its columns are empty.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from soatfast.evaluate import local_linearity, quadratic_gap
from soatfast.gradients import InputGradient
from soatfast.runs.table import Column, Table
from soatfast.solvers import eigenvalue_profile, frobenius_norm, hessian_trace, spectral_density, top_eigenpairs
from soatfast.train.models import SmallCNN

PRODUCTS = 20


@dataclass(frozen=True)
class Options:
    """How much to measure."""

    rounds: int = 5
    """Turns of both; the medians count."""
    samples: int = 16
    """Size of the batch."""
    side: int = 8
    """Height and width of the images."""


class AtInput(nn.Module):
    """The model as a function of its one parameter, the input."""

    def __init__(self, model: nn.Module, x: Tensor):
        super().__init__()
        self.model, self.x = [model], nn.Parameter(x.clone())  # a list: the model's own weights are none

    def forward(self, ignored: Tensor) -> Tensor:
        return self.model[0](self.x)  # type: ignore[no-any-return]


def theirs(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Name -> the same tool of curvlinops over the samples; empty where it is not installed."""
    try:
        import curvlinops
    except ImportError:
        return {}
    operators = []
    for i in range(len(x)):
        at = AtInput(model, x[i : i + 1])
        data = [(x[i : i + 1], y[i : i + 1])]
        loss = nn.CrossEntropyLoss(reduction="sum")
        operators.append(
            curvlinops.HessianLinearOperator(at, loss, list(at.parameters()), data, check_deterministic=False)
        )

    def each(tool: Callable[[Any], object]) -> Callable[[], object]:
        return lambda: [tool(operator) for operator in operators]

    return {
        "Hutchinson trace": each(lambda a: curvlinops.hutchinson_trace(a, PRODUCTS)),
        "Hutch++ trace": each(lambda a: curvlinops.hutchpp_trace(a, 3 * (PRODUCTS // 3))),
        "Frobenius norm": each(lambda a: curvlinops.hutchinson_squared_fro(a, PRODUCTS)),
    }


def ours(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Callable[[], object]]:
    """Name -> the tool, on the batch."""

    def with_oracle(tool: Callable[..., object], **options: Any) -> Callable[[], object]:
        def run() -> object:
            with InputGradient(model) as oracle:
                return tool(oracle, x, y, **options)

        return run

    return {
        "three largest eigenpairs": with_oracle(top_eigenpairs, k=3, max_dim=PRODUCTS),
        "spectral density, 1 probe": with_oracle(spectral_density, max_dim=PRODUCTS, probes=1),
        "Hutchinson trace": with_oracle(hessian_trace, products=PRODUCTS),
        "Hutch++ trace": with_oracle(hessian_trace, products=PRODUCTS, method="hutch++"),
        "Frobenius norm": with_oracle(frobenius_norm, products=PRODUCTS),
        "profile, all eigenvalues": with_oracle(eigenvalue_profile),
        "gamma, 20 steps": lambda: local_linearity(model, x, y, 0.2),
        "quadratic gap, Linf": lambda: quadratic_gap(model, x, y, 0.2, restarts=1, max_dim=PRODUCTS),
    }


def measure(options: Options) -> Table:
    torch.manual_seed(0)
    model = SmallCNN(classes=10, in_channels=1, size=options.side).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    x, y = torch.rand(options.samples, 1, options.side, options.side), torch.randint(0, 10, (options.samples,))
    mine, others = ours(model, x, y), theirs(model, x, y)
    spent: dict[tuple[str, str], list[float]] = {}
    for turn in range(options.rounds + 1):  # the first warms up
        for name, tool in mine.items():
            for who, call in (("soatfast", tool), ("curvlinops", others.get(name))):
                if call is not None:
                    start = time.perf_counter()
                    call()
                    if turn:
                        spent.setdefault((name, who), []).append(1e3 * (time.perf_counter() - start) / len(x))
    rows: list[dict[str, Any]] = []
    for name in mine:
        own, foreign = spent[name, "soatfast"], spent.get((name, "curvlinops"))
        row: dict[str, Any] = {"tool": name, "own": statistics.median(own)}
        if foreign is not None:
            ratio = statistics.median(b / a for a, b in zip(own, foreign, strict=True))
            row |= {"foreign": statistics.median(foreign), "ratio": ratio}
        rows.append(row)
    columns = [
        Column("tool", "tool"),
        Column("own", "soatfast, ms a sample", 2),
        Column("foreign", "curvlinops, ms a sample", 2),
        Column("ratio", "ratio", 1),
    ]
    return Table("curvature toolbox", columns, rows, f"{options.samples} samples of {options.side}x{options.side}.")


if __name__ == "__main__":
    print(measure(tyro.cli(Options)).to_markdown())
