"""What the one-step losses share: uniform noise, clipping, and the check that p is inf."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from soatfast.ops.arguments import Bounds


def uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in (-1, 1) per entry, of x's shape, dtype and device."""
    return torch.empty_like(x).uniform_(-1, 1, generator=generator)


def into_box(t: Tensor, bounds: Bounds) -> Tensor:
    """t clamped to the box, in place."""
    return t.clamp_(*bounds)  # type: ignore[arg-type]


def clip(v: Tensor, eps: float | Tensor) -> Tensor:
    """v in [-eps, eps], eps a number or a tensor that broadcasts."""
    return v.clamp(-eps, eps)  # type: ignore[arg-type]


def check_linf(loss: Any) -> None:
    """Raise ValueError unless the loss, which knows the Linf ball alone, has p = inf."""
    if loss.p != math.inf:
        raise ValueError(f"p must be math.inf for {type(loss).__name__}, got {loss.p!r}")
