"""Pictures of benchmarks: ratios against the batch size, and costs against what they grow with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soatfast.runs.figures import MARKERS, PALETTE, clear_axes, figure

Points = Sequence[tuple[float, float]]


def _panels(count: int, across: int) -> tuple[Any, list[Any]]:
    down = math.ceil(count / across)
    picture = figure((5.2 * min(count, across), 3.9 * down))
    axes = list(np.ravel(picture.subplots(down, min(count, across), squeeze=False)))
    for one in axes:
        one.set_visible(False)
    for one in axes[:count]:
        one.set_visible(True)
        clear_axes(one)
    return picture, axes[:count]


def _line(axes: Any, index: int, points: Points, label: str | None, **style: Any) -> None:
    at, values = zip(*sorted(points), strict=True)
    axes.plot(at, values, color=PALETTE[index % len(PALETTE)], label=label, **{"linewidth": 1.6, **style})


def ratios_picture(path: Path, plots: Mapping[str, Mapping[str, Points]]) -> None:
    """Write a PNG: a panel for each plot, in it a line of (batch size, time over ours) for each rival."""
    picture, panels = _panels(len(plots), 2)
    for axes, (title, rivals) in zip(panels, plots.items(), strict=True):
        axes.axhline(1, color="#333333", linewidth=1.0, label="soatfast")
        for index, (name, points) in enumerate(rivals.items()):
            _line(axes, index, points, name, marker=MARKERS[index % len(MARKERS)], markersize=6)
        axes.set_xscale("log", base=2)
        ticks = sorted({place for points in rivals.values() for place, _ in points})
        axes.set_xticks(ticks, [f"{place:g}" for place in ticks])
        axes.set_title(title)
        axes.set_xlabel("batch size")
        axes.set_ylabel("time over soatfast's")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8, frameon=False)
    picture.savefig(path, format="png")


def scaling_picture(path: Path, plots: Mapping[str, Mapping[str, Points]], fits: Mapping[str, Points]) -> None:
    """Write a PNG: a panel for each variable, in it a line of (its value, milliseconds) for each call.

    fits: label -> the two ends of the fitted line, dashed in the colour of the label's own line.
    """
    picture, panels = _panels(len(plots), 3)
    for axes, (variable, calls) in zip(panels, plots.items(), strict=True):
        for index, (name, points) in enumerate(calls.items()):
            _line(axes, index, points, name, marker=MARKERS[index % len(MARKERS)], markersize=5, linewidth=0.8)
            if name in fits:
                _line(axes, index, fits[name], None, linestyle="--", linewidth=2.2)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(variable)
        axes.set_ylabel("milliseconds")
        axes.legend(fontsize=7, frameon=False)
    picture.savefig(path, format="png")
