"""Pictures of a report that no other command writes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from soatfast.commands.methods import METHODS
from soatfast.runs.figures import PALETTE, figure
from soatfast.runs.table import mean_and_spread


def colour(method: str) -> str:
    """A method keeps its colour in every picture."""
    return PALETTE[list(METHODS).index(method) % len(PALETTE)] if method in METHODS else "#333333"


def accuracies(labels: Sequence[str], series: Sequence[tuple[str, str, Sequence[Sequence[float]]]]) -> bytes:
    """Dots of accuracy in percent: rows are attacks, colours methods; with several seeds a bar of one deviation.

    series: (label, colour, values of each attack).
    """
    figure, axis = _axis(7.2, 1.2 + 0.5 * len(labels))
    for index, (label, shade, values) in enumerate(series):
        offset = 0.5 * ((index + 0.5) / len(series) - 0.5)
        means, spreads = zip(*(mean_and_spread(v) for v in values), strict=True)
        rows = [row + offset for row in range(len(labels))]
        errors = None if spreads[0] is None else spreads
        axis.errorbar(means, rows, xerr=errors, fmt="o", color=shade, label=label, markersize=5, capsize=2)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    axis.set_xlim(-2, 102)
    axis.set_xlabel("accuracy (%)")
    axis.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return _png(figure)


def losses(series: Sequence[tuple[str, str, list[dict[str, Any]]]]) -> bytes:
    """The loss of each epoch, on a logarithmic axis where it stays above 0; series: (label, colour, history)."""
    figure, axis = _axis(7.2, 3.8 + 0.12 * len(series))
    drawn: list[str] = []
    for label, shade, history in series:
        style = ("-", "--", ":", "-.")[drawn.count(shade) % 4]  # a method's seeds share its colour
        drawn.append(shade)
        epochs, values = [row["epoch"] for row in history], [row["loss"] for row in history]
        axis.plot(epochs, values, style, color=shade, label=label, lw=1.6)
    if all(row["loss"] > 0 for _, _, history in series for row in history):
        axis.set_yscale("log")
    axis.set_xlabel("epoch")
    axis.set_ylabel("training loss")
    axis.grid(color="#DDDDDD", linewidth=0.7)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return _png(figure)


def _axis(width: float, height: float) -> tuple[Any, Any]:
    made = figure((width, height))
    axis = made.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    return made, axis


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
