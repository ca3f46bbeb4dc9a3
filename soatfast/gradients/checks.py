"""What can be wrong with a batch, and with what a model returns for it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from soatfast.ops.arguments import check_range, dtype_or_kind


def check_logits(logits: object, samples: int) -> None:
    """Raise ValueError unless a model returned (samples, K) with K >= 2."""
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != samples:
        came = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model must return logits of shape ({samples}, K), got {came}")
    if logits.shape[1] < 2:
        raise ValueError(f"model must return logits of at least 2 classes, got {tuple(logits.shape)}")


def check_labels(y: Tensor, classes: int) -> None:
    """Raise ValueError where a label is out of range; on CUDA a device assertion."""
    if y.numel():
        check_range(y, 0, classes - 1, lambda low, high: f"labels must lie in 0..{classes - 1}, got {low}..{high}")


# Rounding that normalising an image and undoing it leaves; anything further outside the box is an error.
_BOX_TOLERANCE = 1e-6


def check_batch(x: Tensor, y: Tensor, bounds: tuple[float, float]) -> None:
    """Everything that can be wrong with a batch, once per call; values asynchronously on CUDA."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x must be a floating tensor, got {dtype_or_kind(x)}")
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise TypeError(f"y must be a tensor of integer labels, got {dtype_or_kind(y)}")
    if x.dim() < 2:
        raise ValueError(f"x must be a batch of shape (B, ...), got shape {tuple(x.shape)}")
    if y.dim() != 1 or len(y) != len(x):
        raise ValueError(f"y must have shape ({len(x)},) to go with x {tuple(x.shape)}, got {tuple(y.shape)}")
    if x.device != y.device:
        raise ValueError(f"x and y must be on one device, got {x.device} and {y.device}")
    if x.numel() == 0:
        return
    lower, upper = bounds
    slack = _BOX_TOLERANCE * (upper - lower if math.isfinite(upper - lower) else 1.0)
    check_range(
        x,
        lower - slack,
        upper + slack,
        lambda low, high: f"x must lie in bounds [{lower}, {upper}] without NaN, got values from {low} to {high}",
    )
