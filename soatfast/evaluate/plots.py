"""Pictures of curves and of the masking scatter, in the colours of the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soatfast.evaluate.curves import Curve
from soatfast.evaluate.masking import Scatter
from soatfast.runs.figures import MARKERS, PALETTE, clear_axes, figure, save

_RED, _BLUE = PALETTE[1], PALETTE[0]


def curves_picture(path: Path, curves: Sequence[Curve], title: str, steps: bool = False) -> None:
    """Write a PNG: accuracy in percent against eps, or with steps=True against PGD's steps on a logarithmic axis.

    Against eps a curve begins with the clean accuracy at 0; against steps a dashed line shows it.
    """
    if not curves:
        raise ValueError("there are no curves to draw")
    picture, axes = _figure(title, (7.4, 4.6))
    for index, curve in enumerate(curves):
        colour = PALETTE[index % len(PALETTE)]
        at, accuracy = list(curve.at), [100 * value for value in curve.accuracy]
        if steps:
            axes.axhline(100 * curve.clean, color=colour, linewidth=0.9, linestyle=(0, (4, 4)), alpha=0.7)
        elif at[0] > 0:
            at, accuracy = [0.0, *at], [100 * curve.clean, *accuracy]
        axes.plot(
            at,
            accuracy,
            marker=MARKERS[index % len(MARKERS)],
            color=colour,
            linewidth=1.8,
            markersize=7,
            markeredgecolor="white",
            label=f"{curve.label}  ({accuracy[-1]:.1f} % at {curve.at[-1]:g})",
        )
    if steps:
        ticks = sorted({place for curve in curves for place in curve.at})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{place:g}" for place in ticks])
        axes.minorticks_off()
        axes.set_xlabel("steps of PGD (dashed: clean accuracy)")
        low = min(100 * value for curve in curves for value in curve.accuracy)
        axes.set_ylim(max(-3.0, low - 8), 103)
    else:
        axes.set_xlabel("eps, in units of the pixels (0 to 1)")
        axes.set_xlim(left=0)
        axes.set_ylim(-3, 103)
    axes.set_ylabel("accuracy (%)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9, frameon=False, ncols=2)
    save(picture, path)


def scatter_picture(path: Path, scatters: Sequence[tuple[str, Scatter]], white: str, black: str, title: str) -> None:
    """Write a PNG: a panel for each (heading, scatter), margins after `white` across and after `black` up.

    Orange and crossed: the black box is stronger, below the line; black and filled: it alone fools the sample.
    """
    if not scatters:
        raise ValueError("there are no scatters to draw")
    picture, panels = _figure(title, (4.6 * len(scatters) + 0.3, 6.2), len(scatters))
    for axes, (heading, found) in zip(np.atleast_1d(panels), scatters, strict=True):
        everything = np.concatenate([found.white, found.black])
        low, high = float(everything.min()), float(everything.max())
        room = 0.04 * max(high - low, 1e-6)
        span = (low - room, high + room)
        flip = (found.white > 0) & (found.black <= 0)
        below = (found.black < found.white) & ~flip
        rest = ~flip & ~below
        axes.plot(span, span, color="#333333", linewidth=1.0, zorder=1)
        axes.axhline(0, color="#8A8A8A", linewidth=1.0, zorder=0)
        axes.axvline(0, color="#8A8A8A", linewidth=1.0, zorder=0)
        groups: list[tuple[np.ndarray, str, str, str]] = [
            (rest, "o", _BLUE, f"{white} at least as strong: {int(rest.sum())}"),
            (below, "X", _RED, f"{black} stronger: {int(below.sum())}"),
            (flip, "D", "#000000", f"only {black} fools: {int(flip.sum())}"),
        ]
        for chosen, marker, colour, label in groups:
            axes.scatter(
                found.white[chosen],
                found.black[chosen],
                marker=marker,
                s=22 if marker == "o" else 34,
                color=colour,
                alpha=0.45 if marker == "o" else 0.95,
                edgecolor="white",
                linewidth=0.4,
                label=label,
                zorder=2 if marker == "o" else 3,
            )
        axes.set_xlim(*span)
        axes.set_ylim(*span)
        axes.set_aspect("equal")
        axes.set_title(f"{heading}\ncorrelation {found.pearson:.2f}, of ranks {found.spearman:.2f}", fontsize=10)
        axes.set_xlabel(f"margin after {white}")
        axes.set_ylabel(f"margin after {black}")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), fontsize=9, frameon=False)
    save(picture, path)


def _figure(title: str, size: tuple[float, float], panels: int = 1) -> tuple[Any, Any]:
    made = figure(size, title)
    axes: Any = made.subplots(1, panels)
    for one in np.atleast_1d(axes):
        clear_axes(one)
    return made, axes
