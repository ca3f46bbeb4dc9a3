"""What can be wrong with a batch, and with what a model returns for it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from soatfast.ops.arguments import Bounds, check, check_range, dtype_or_kind


def check_labels(y: Tensor, classes: int) -> None:
    """Raise ValueError where a label is out of range; on CUDA a device assertion."""
    if y.numel():
        check_range(y, 0, classes - 1, lambda low, high: f"labels must lie in 0..{classes - 1}, got {low}..{high}")


# Rounding that normalising an image and undoing it leaves; anything further outside the box is an error.
_BOX_TOLERANCE = 1e-6


def check_batch(x: Tensor, y: Tensor, bounds: Bounds, labels: bool = True) -> None:
    """Everything that can be wrong with a batch, once per call; values asynchronously on CUDA.

    labels=False: y belongs to an objective of the caller's, and may be a tensor of any dtype and shape (B, ...).
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {dtype_or_kind(x)}")
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor{' of integer labels' if labels else ''}, got {dtype_or_kind(y)}")
    if labels and (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool):
        raise TypeError(
            f"y must be a tensor of integer labels, got {y.dtype}: "
            "other targets need objective= a callable (logits, y) -> (B,)"
        )
    if x.dim() < 2:
        raise ValueError(f"x must be a batch of shape (B, ...), got shape {tuple(x.shape)}")
    if y.dim() == 0 or len(y) != len(x) or (labels and y.dim() != 1):
        raise ValueError(f"y must have shape ({len(x)},) to go with x {tuple(x.shape)}, got {tuple(y.shape)}")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    if x.numel() == 0:
        return
    lower, upper = bounds
    if isinstance(lower, Tensor) or isinstance(upper, Tensor):
        _check_box(x, lower, upper)
        return
    slack = _BOX_TOLERANCE * (upper - lower if math.isfinite(upper - lower) else 1.0)
    check_range(
        x,
        lower - slack,
        upper + slack,
        lambda low, high: f"x must lie in bounds [{lower}, {upper}] without NaN, got values from {low} to {high}",
    )


def _check_box(x: Tensor, lower: float | Tensor, upper: float | Tensor) -> None:
    """As check_range, for bounds of each entry."""
    low, high = (per_entry(b, x, "bounds") for b in (lower, upper))
    slack = _BOX_TOLERANCE * torch.where((high - low).isfinite(), high - low, 1.0)
    check(
        ((x >= low - slack) & (x <= high + slack)).all(),
        lambda: f"x must lie in bounds without NaN, got values from {x.min().item()} to {x.max().item()}",
    )


def per_entry(value: Any, x: Tensor, name: str, samples: bool = False) -> Tensor:
    """value (C, 1, 1) as a tensor of x's dimensions, its first 1, or with samples=True the batch's length."""
    t = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=x.dtype)
    t = t.to(x.device) if t.dtype == torch.bool else t.to(x.device, x.dtype)
    came, own = tuple(t.shape), t.dim() == x.dim()
    if not own:
        t = t.unsqueeze(0)
    fits = t.dim() <= x.dim() and (not own or len(t) == 1 or (samples and len(t) == len(x)))
    if fits:
        t = t.view(len(t), *(1,) * (x.dim() - t.dim()), *t.shape[1:])
        fits = all(a in (1, b) for a, b in zip(t.shape[1:], x.shape[1:], strict=True))
    if not fits:
        batch = f", or {tuple(x.shape)}" if samples else ""
        raise ValueError(f"{name} must broadcast to one sample {tuple(x.shape[1:])}{batch}, got {came}")
    return t.expand(len(t), *x.shape[1:])
