"""Figures and their colours; the picture of a comparison: accuracy against training time, and attacked digits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from soatfast.runs.files import replacing
from soatfast.runs.table import mean_and_spread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#6F4E37", "#000000")
"""Mostly Okabe and Ito's colours, told apart by every kind of colour vision; markers differ as well."""
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_WRONG = "#B00020"


def figure(size: tuple[float, float], title: str = "") -> Figure:
    """A white figure of this size in inches, drawn without a screen; :func:`save` writes it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=size, dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(made)
    if title:
        made.suptitle(title, fontsize=12, fontweight="bold")
    return made


def save(picture: Figure, path: Path) -> None:
    """Write a PNG, the whole file or nothing."""
    with replacing(path) as partial:
        picture.savefig(partial, format="png")


def clear_axes(axes: Any) -> None:
    """A light grid behind what is drawn, and no frame above and on the right."""
    axes.grid(color="#DDDDDD", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


@dataclass(frozen=True)
class Series:
    """One method: training seconds and accuracies in percent (one entry a seed), and its attacked digits.

    attacked: (K, C, H, W) in [0, 1]; predictions: (K,) labels that the model gives them. style: which colour
    and marker; a method keeps its own in every picture.
    """

    label: str
    seconds: Sequence[float]
    accuracy: Sequence[float]
    attacked: Tensor
    predictions: Tensor
    style: int


def comparison(path: Path, series: Sequence[Series], clean: Tensor, labels: Tensor, attack: str, title: str) -> None:
    """Write a PNG: left, accuracy under `attack` against training seconds; right, the digits.

    Several seeds show as mean and sample standard deviation.
    """
    columns, rows = len(clean), len(series) + 1
    picture = figure((13.5, max(4.6, 1.0 + 0.82 * rows)), title)
    parts: Any = picture.subfigures(1, 2, width_ratios=(1, 1.35), wspace=0.02)
    left, right = parts
    _scatter(left.subplots(), series, attack)
    grid = right.subplots(rows, columns, squeeze=False)
    right.suptitle(f"held-out digits after {attack}: what each model sees and says", fontsize=10.5)
    _row(grid[0], "clean", "#333333", clean, labels, labels)
    for index, item in enumerate(series):
        _row(grid[index + 1], item.label, _colour(item), item.attacked, item.predictions, labels)
    save(picture, path)


def _colour(item: Series) -> str:
    return PALETTE[item.style % len(PALETTE)]


def _scatter(axes: Any, series: Sequence[Series], attack: str) -> None:
    for item in series:
        seconds, x_spread = mean_and_spread(item.seconds)
        accuracy, y_spread = mean_and_spread(item.accuracy)
        axes.errorbar(
            seconds,
            accuracy,
            xerr=x_spread,
            yerr=y_spread,
            fmt=MARKERS[item.style % len(MARKERS)],
            color=_colour(item),
            markersize=10,
            markeredgecolor="white",
            capsize=4,
            label=f"{item.label}  ({accuracy:.1f} %, {seconds:.1f} s)",
        )
    axes.set_xlabel("training time (seconds)")
    axes.set_ylabel(f"accuracy under {attack} (%)")
    axes.set_xlim(left=0, right=1.12 * max(max(item.seconds) for item in series))
    axes.set_ylim(-3, 103)
    clear_axes(axes)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9, frameon=False, ncols=1, handletextpad=0.3)


def _row(cells: Any, name: str, colour: str, images: Tensor, predictions: Tensor, labels: Tensor) -> None:
    """One line of digits; a wrong prediction is red, framed and crossed: colour is not all that tells."""
    for cell, image, predicted, label in zip(cells, images, predictions.tolist(), labels.tolist(), strict=True):
        pixels = image.detach().float().cpu().clamp(0, 1)
        if len(pixels) == 3:
            cell.imshow(pixels.permute(1, 2, 0).numpy())
        else:
            cell.imshow(torch.as_tensor(pixels[0]).numpy(), cmap="gray", vmin=0, vmax=1)
        right = predicted == label
        text = str(predicted) if right else f"{predicted} ×"
        cell.set_title(
            text,
            fontsize=9.5,
            pad=2,
            color="#333333" if right else _WRONG,
            fontweight="normal" if right else "bold",
        )
        cell.set_xticks([])
        cell.set_yticks([])
        for spine in cell.spines.values():
            spine.set(visible=not right, color=_WRONG, linewidth=1.6)
    cells[0].set_ylabel(
        name, rotation=0, ha="right", va="center", color=colour, fontsize=9.5, fontweight="bold", labelpad=6
    )
