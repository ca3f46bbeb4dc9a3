"""Galleries: rows of images beside their perturbations, saliency maps and explanations, a column for each sample."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks import Attack
from soatfast.explain.explanation import Explanation
from soatfast.explain.saliency import per_pixel, standardised
from soatfast.gradients.oracle import InputGradient
from soatfast.runs.figures import PALETTE, figure, save

_SIGNED = "RdBu_r"  # ColorBrewer's, told apart by every kind of colour vision; 0 is white
_WRONG, _PLAIN = "#B00020", "#333333"


@dataclass(frozen=True)
class Strip:
    """One row of a gallery.

    images: (K, C, H, W), C = 1 or 3; pictures in [0, 1], or with a ``scale`` signed values, shown from -scale to scale
    on a diverging colour map whose middle is 0: of three channels the entry of the largest magnitude.
    notes: K texts over the images. marks: K flags; a marked image is framed, and its note red and crossed.
    style: the number of the name's colour, None for grey. end: what the colour bar calls the scale.
    """

    name: str
    images: Tensor
    scale: float | None = None
    notes: Sequence[str] = ()
    marks: Sequence[bool] = ()
    style: int | None = None
    end: str = ""

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.shape[1] not in (1, 3) or not self.images.numel():
            raise ValueError(f"images must have shape (K, 1 or 3, H, W), got {tuple(self.images.shape)}")
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale must be greater than 0, got {self.scale!r}")
        for name in ("notes", "marks"):
            if len(getattr(self, name)) not in (0, len(self.images)):
                raise ValueError(f"expected {len(self.images)} {name} or none, got {len(getattr(self, name))}")


@dataclass(frozen=True)
class Attacked:
    """One model under one attack: its attacked images (K, C, H, W), and what it says before and after (K,)."""

    name: str
    image: Tensor
    before: tuple[Tensor, Tensor]
    after: tuple[Tensor, Tensor]
    style: int | None = None


def attacked(
    model: nn.Module, attack: Attack, x: Tensor, y: Tensor, name: str = "", style: int | None = None
) -> Attacked:
    """Attack images x (K, C, H, W) for :func:`perturbations`. Passes: the attack's and two forwards."""
    image = attack(model, x, y)
    return Attacked(
        name or type(attack).__name__, image, predictions(model, x, attack), predictions(model, image, attack), style
    )


def predictions(model: nn.Module, x: Tensor, like: Attack | None = None) -> tuple[Tensor, Tensor]:
    """(classes, their softmax probabilities) of the batch, (B,) each.

    like: an attack whose mode, engine, output and forward are taken; None: eval mode, and what is recognised.
    """
    like = Attack() if like is None else like
    with InputGradient(model, mode=like.mode, engine=like.engine, output=like.output, forward=like.forward) as oracle:
        oracle.loss(x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        assert oracle.logits is not None
        confidence, classes = oracle.logits.float().softmax(1).max(1)
    return classes, confidence


def verdicts(said: tuple[Tensor, Tensor], prefix: str = "") -> list[str]:
    """What a model says, as notes.

    >>> import torch
    >>> verdicts((torch.tensor([3]), torch.tensor([0.87])))
    ['3  87 %']
    """
    pairs = zip(said[0].tolist(), said[1].tolist(), strict=True)
    return [f"{prefix}{label}  {100 * share:.0f} %" for label, share in pairs]


def perturbations(
    path: Path, x: Tensor, y: Tensor, shown: Sequence[Attacked], scale: float | None = None, title: str = ""
) -> None:
    """Write a PNG: clean images x with labels y; for each model or attack its perturbations and the attacked images.

    scale: the end of the colour map, the eps of an Linf attack; None means each row's own largest magnitude.
    """
    rows = [Strip("clean", x, notes=[f"label {label}" for label in y.tolist()])]
    for one in shown:
        delta = one.image - x
        told, wrong = verdicts(one.before, "was "), (one.before[0] != y).tolist()
        rows.append(
            Strip(f"{_wrapped(one.name)}\nperturbation", delta, scale or _largest(delta), told, wrong, one.style)
        )
        told, wrong = verdicts(one.after), (one.after[0] != y).tolist()
        rows.append(Strip("attacked", one.image, None, told, wrong, one.style))
    draw(path, rows, title, "red and ×: not the label")


def saliencies(
    path: Path, x: Tensor, y: Tensor, maps: Sequence[tuple[str, Tensor]], title: str = "", styles: Sequence[int] = ()
) -> None:
    """Write a PNG: clean images, and a row of signed saliency maps for each (name, S of x's shape).

    A map is divided by three times its standard deviation, so that maps of any size can be seen; 0 stays white.
    """
    rows = [Strip("clean", x, notes=[f"label {label}" for label in y.tolist()])]
    for index, (name, saliency) in enumerate(maps):
        relative = standardised(saliency, centre=False)
        rows.append(Strip(_wrapped(name), relative, 1.0, style=styles[index] if styles else None, end="3 σ"))
    draw(path, rows, title, "red: a brighter pixel raises the loss; blue: lowers it; σ: standard deviation of the map")


def explanations(
    path: Path,
    x: Tensor,
    y: Tensor,
    said: tuple[Tensor, Tensor],
    found: Sequence[tuple[str, Explanation]],
    title: str = "",
) -> None:
    """Write a PNG: clean images with what the model says of them; for each (name, explanation) delta and its image.

    An explanation that was found and is 0 is noted as empty.
    """
    rows = [Strip("clean", x, notes=verdicts(said), marks=(said[0] != y).tolist())]
    for index, (name, one) in enumerate(found):
        rows.append(Strip(name, one.delta, _largest(one.delta), style=index))
        rows.append(Strip("with it", one.image, notes=_notes(one), style=index))
    draw(path, rows, title, "red and ×: not the label")


def _notes(found: Explanation) -> list[str]:
    texts = verdicts((found.predictions, found.confidence))
    flags = zip(found.success.tolist(), found.changed.tolist(), strict=True)
    ends = ["none found" if not good else "" if size else ", empty" for good, size in flags]
    return [end if end == "none found" else text + end for text, end in zip(texts, ends, strict=True)]


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 18)


def _largest(values: Tensor) -> float:
    return float(values.abs().amax()) or 1.0


def draw(path: Path, strips: Sequence[Strip], title: str = "", caption: str = "") -> None:
    """Write a PNG with a row for each strip; all have the same number of images."""
    counts = {len(strip.images) for strip in strips}
    if len(counts) != 1:
        raise ValueError(f"all strips must have the same number of images, got {sorted(counts) or 'no strips'}")
    columns, rows = counts.pop(), len(strips)
    picture = figure((2.6 + 0.95 * columns, 0.9 + 1.12 * rows), title)
    if caption:
        picture.supxlabel(caption, fontsize=9, color=_PLAIN)
    cells = picture.subplots(rows, columns, squeeze=False)
    for row, strip in zip(cells, strips, strict=True):
        _row(picture, row, strip)
    save(picture, path)


def _row(picture: Any, row: Any, strip: Strip) -> None:
    images = strip.images.detach().float().cpu()
    for index, (cell, image) in enumerate(zip(row, images, strict=True)):
        if strip.scale is not None:
            flat = per_pixel(image[None])[0]
            drawn = cell.imshow(flat.numpy(), cmap=_SIGNED, vmin=-strip.scale, vmax=strip.scale)
        elif len(image) == 3:
            drawn = cell.imshow(image.clamp(0, 1).permute(1, 2, 0).numpy())
        else:
            drawn = cell.imshow(image[0].clamp(0, 1).numpy(), cmap="gray", vmin=0, vmax=1)
        marked = bool(strip.marks) and bool(strip.marks[index])
        note = strip.notes[index] if strip.notes else ""
        cell.set_title(
            f"{note} ×" if marked else note,
            fontsize=8.5,
            pad=2.5,
            color=_WRONG if marked else _PLAIN,
            fontweight="bold" if marked else "normal",
        )
        cell.set_xticks([])
        cell.set_yticks([])
        for spine in cell.spines.values():
            spine.set(visible=marked or strip.scale is not None, color=_WRONG if marked else "#BBBBBB")
            spine.set_linewidth(1.6 if marked else 0.6)
    colour = _PLAIN if strip.style is None else PALETTE[strip.style % len(PALETTE)]
    row[0].set_ylabel(
        strip.name, rotation=0, ha="right", va="center", color=colour, fontsize=9, fontweight="bold", labelpad=6
    )
    if strip.scale is not None:
        # inside the last cell's frame of reference: a bar beside the axes would move that cell alone
        bar = picture.colorbar(drawn, cax=row[-1].inset_axes((1.04, 0, 0.05, 1)), ticks=[-strip.scale, 0, strip.scale])
        end = strip.end or f"{strip.scale:.2g}"
        bar.ax.set_yticklabels([f"−{end}", "0", end], fontsize=8)
        bar.outline.set_visible(False)
