"""What the one-step losses share: uniform noise, radii shaped to multiply a batch, and the check that p is inf."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def uniform(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform in (-1, 1) per entry, of x's shape, dtype and device."""
    return torch.empty_like(x).uniform_(-1, 1, generator=generator)


def column(value: float | Tensor, x: Tensor, name: str = "eps") -> float | Tensor:
    """A number, or a tensor of shape () or (B,), shaped to multiply x (B, ...). ValueError for another length."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() and len(value) not in (1, len(x)):
        raise ValueError(f"{name} must be a number or have shape () or ({len(x)},), got {tuple(value.shape)}")
    return value.to(x).view(-1, *(1,) * (x.dim() - 1)) if value.dim() else value.to(x)


def clip(v: Tensor, eps: float | Tensor) -> Tensor:
    """v in [-eps, eps], eps a number or a tensor that broadcasts."""
    return v.clamp(-eps, eps)  # type: ignore[arg-type]


def check_linf(loss: Any) -> None:
    """Raise ValueError unless the loss, which knows the Linf ball alone, has p = inf."""
    if loss.p != math.inf:
        raise ValueError(f"p must be math.inf for {type(loss).__name__}, got {loss.p!r}")
