"""The pictures of the measures: one PNG each, a line for each model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soatfast.commands.measures.measured import SHARES, STEPS, Ball
from soatfast.ops.arguments import norm_name
from soatfast.runs.figures import PALETTE, clear_axes, figure, save
from soatfast.solvers import Spectrum

Found = Mapping[str, Mapping[str, Tensor]]
"""Label of a model -> its tensors."""


def _picture(path: Path, panels: int, draw: Callable[..., None]) -> None:
    made = figure((7.2 if panels == 1 else 11.5, 4.4))
    axes: Any = made.subplots(1, panels, squeeze=False)[0]
    draw(*axes)
    for axis in axes:
        clear_axes(axis)
        axis.legend(frameon=False, fontsize=9)
    save(made, path)


def _colours(found: Found) -> dict[str, str]:
    return {label: PALETTE[i % len(PALETTE)] for i, label in enumerate(found)}


def _density(path: Path, found: Found, ball: Ball) -> None:
    """The mean density over the samples, smoothed by a hundredth of the range."""
    nodes = torch.cat([t["nodes"].flatten() for t in found.values()]).nan_to_num()
    low, high = float(nodes.min()), float(nodes.max())
    width = max(high - low, 1e-9) / 100
    at = torch.linspace(low - 3 * width, high + 3 * width, 400)

    def draw(axis: Any) -> None:
        for label, colour in _colours(found).items():
            t = found[label]
            curve = Spectrum(t["nodes"], t["weights"]).density(at, width).nanmean(0)
            axis.semilogy(at.numpy(), curve.clamp_min(1e-6).numpy(), label=label, color=colour, linewidth=1.6)
        axis.set_xlabel("eigenvalue of the input Hessian")
        axis.set_ylabel("density, mean over samples")

    _picture(path, 1, draw)


def _profile(path: Path, found: Found, ball: Ball) -> None:
    def draw(axis: Any) -> None:
        for label, colour in _colours(found).items():
            mean = found[label]["eigenvalues"].nanmean(0)
            axis.plot(range(1, len(mean) + 1), mean.numpy(), label=label, color=colour, linewidth=1.6)
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.set_xlabel("rank of the eigenvalue, largest first")
        axis.set_ylabel("eigenvalue, mean over samples")

    _picture(path, 1, draw)


def _linearity(path: Path, found: Found, ball: Ball) -> None:
    def draw(axis: Any) -> None:
        for label, colour in _colours(found).items():
            median = found[label]["gamma"].double().nanmedian(0).values
            axis.semilogy(
                [s * ball.eps for s in SHARES], median.clamp_min(1e-9).numpy(), "o-", label=label, color=colour
            )
        axis.set_xlabel(f"radius ({norm_name(ball.p)})")
        axis.set_ylabel("gamma: distance of the loss from its tangent")

    _picture(path, 1, draw)


def _lines(path: Path, found: Found, ball: Ball) -> None:
    def draw(*axes: Any) -> None:
        for axis, name in zip(axes, ("adversarial", "random"), strict=True):
            for label, colour in _colours(found).items():
                mean = found[label][name].nanmean(0)
                axis.plot([t * ball.eps for t in STEPS], mean.numpy(), label=label, color=colour, linewidth=1.6)
            axis.set_xlabel(f"distance along the {name} direction ({norm_name(ball.p)})")
            axis.set_ylabel("loss, mean over samples")

    _picture(path, 2, draw)


def _gap(path: Path, found: Found, ball: Ball) -> None:
    """Left SCORPIO's figure 3, right what the quadratic model misses."""
    radii = [share * ball.eps for share in SHARES]

    def draw(left: Any, right: Any) -> None:
        for label, colour in _colours(found).items():
            t = found[label]
            for name, style, what in (("pgd", "-", "PGD-10"), ("frank_wolfe", "--", "quadratic, FE(3)")):
                share = 100 * t[name].double().mean(0)
                left.plot(radii, share.numpy(), style, marker="o", label=f"{label}, {what}", color=colour)
            right.plot(radii, t["gap"].nanmean(0).numpy(), "o-", label=label, color=colour)
        left.set_xlabel(f"radius ({norm_name(ball.p)})")
        left.set_ylabel("accuracy (%)")
        right.set_xlabel(f"radius ({norm_name(ball.p)})")
        right.set_ylabel("L_A - L_Q, mean over samples")

    _picture(path, 2, draw)


PICTURES: dict[str, Callable[[Path, Found, Ball], None]] = {
    "density": _density,
    "profile": _profile,
    "linearity": _linearity,
    "lines": _lines,
    "gap": _gap,
}
"""Of the measures that have one; the file is NAME.png."""
