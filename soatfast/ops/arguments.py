"""Checks of the public ops' arguments, and how a batch becomes the (B, D) rows of the kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from soatfast.ops.constants import accumulate_dtype

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def norm_order(p: float, general: bool = True) -> float:
    """p as the kernels take it: 1, 2, inf or another number in [1.01, 1000).

    p in (1, 1.01) is treated as 1 and p >= 1000 as inf: nearer to those ends the powers |g|^(1/(p-1)) underflow and the
    step is the limit's to float32 accuracy.
    """
    if not isinstance(p, (int, float)) or isinstance(p, bool):
        raise TypeError(f"p must be a number >= 1 or math.inf, got {p!r}")
    if not p >= 1:
        raise ValueError(f"p must be a number >= 1 or math.inf, got {p!r}")
    if p >= 1e3:
        return math.inf
    if p < 1.01:
        return 1.0
    if p != 2 and not general:
        raise ValueError(f"p must be 1, 2 or math.inf for this operation, got {p!r}")
    return float(p)


def per_sample(value: float | Tensor, name: str, like: Tensor) -> tuple[float, Tensor | None]:
    """A non-negative number, or a tensor of one number per sample: () or (B,), in the kernels' accumulation dtype."""
    if isinstance(value, Tensor):
        if value.dim() > 1 or value.numel() not in (1, like.shape[0]) or not value.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a floating tensor of shape () or ({like.shape[0]},), "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
        if value.device != like.device:
            raise ValueError(f"{name} is on {value.device}, expected {like.device}")
        return 0.0, value.detach().reshape(-1).to(accumulate_dtype(like.dtype)).contiguous()
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")
    return float(value), None


def as_column(t: Tensor, like: Tensor) -> Tensor:
    """One entry a sample, t () or (B,), as (B, 1, ..., 1): what multiplies a batch ``like`` (B, ...)."""
    return t.view(-1, *(1,) * (like.dim() - 1))


def to_multiply(value: float | Tensor, name: str, x: Tensor) -> float | Tensor:
    """A number, or a tensor of one number per sample, () or (B,), shaped and typed to multiply x (B, ...)."""
    if not isinstance(value, Tensor):
        return value
    if value.dim() and len(value) not in (1, len(x)):
        raise ValueError(f"{name} must be a number or have shape () or ({len(x)},), got {tuple(value.shape)}")
    return as_column(value.to(x.dtype), x) if value.dim() else value.to(x.dtype)


def box(bounds: tuple[float, float]) -> tuple[float, float]:
    lower, upper = bounds
    if not lower < upper:
        raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {bounds!r}")
    return float(lower), float(upper)


class Layout:
    """Views tensors as (B, D) in the memory order of one of them, and results back."""

    def __init__(self, like: Tensor):
        if not isinstance(like, Tensor) or not like.is_floating_point():
            raise TypeError(f"expected a floating tensor, got {getattr(like, 'dtype', type(like).__name__)}")
        if like.dim() < 2:
            raise ValueError(f"expected a batch of shape (B, ...), got shape {tuple(like.shape)}")
        self.sample = like.shape[1:]
        self.size = math.prod(self.sample)
        if self.size == 0:
            raise ValueError(f"a sample must have at least one entry, got shape {tuple(like.shape)}")
        self.like = like
        self.format = torch.contiguous_format
        if like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last):
            self.format = torch.channels_last

    def rows(self, t: Tensor, name: str, blocks: int = 1) -> Tensor:
        like = self.like
        expected = (blocks * like.shape[0], *self.sample)
        if t.shape != expected:
            raise ValueError(f"{name} must have shape {tuple(expected)}, got {tuple(t.shape)}")
        if t.dtype != like.dtype:
            raise TypeError(f"{name} must have dtype {like.dtype}, got {t.dtype}")
        if t.device != like.device:
            raise ValueError(f"{name} is on {t.device}, expected {like.device}")
        return self.flat(t)

    def flat(self, t: Tensor) -> Tensor:
        """Any number of samples as rows, in the memory order of the one that made the layout."""
        if t.requires_grad:  # each of these calls is paid between any two passes of an attack
            t = t.detach()
        if not t.is_contiguous(memory_format=self.format):
            t = t.contiguous(memory_format=self.format)
        if self.format is torch.channels_last:
            t = t.permute(0, 2, 3, 1)
        return t.view(t.shape[0], self.size)

    def restore(self, rows: Tensor) -> Tensor:
        if self.format is torch.channels_last:
            channels, height, width = self.sample
            return rows.view(rows.shape[0], height, width, channels).permute(0, 3, 1, 2)
        return rows.view(rows.shape[0], *self.sample)


def boxed_order(p: float, in_box: bool) -> float:
    order = norm_order(p)
    if in_box and order != math.inf:
        raise ValueError(f"in_box needs p = math.inf, where ball and box are both boxes, got p = {p!r}")
    return order


def labelled(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K), K >= 2, without their graph, and labels (B,) as int64; the labels' range is not looked at."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits must be a floating tensor, got {getattr(logits, 'dtype', type(logits).__name__)}")
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape (B, K) with K >= 2, got {tuple(logits.shape)}")
    if not isinstance(y, Tensor) or y.dtype not in _WHOLE:
        raise TypeError(f"y must be a tensor of integers, got {getattr(y, 'dtype', type(y).__name__)}")
    if y.shape != logits.shape[:1]:
        raise ValueError(f"y must have shape ({logits.shape[0]},), one label a row, got {tuple(y.shape)}")
    if y.device != logits.device:
        raise ValueError(f"y is on {y.device}, expected {logits.device}")
    return logits.detach(), y if y.dtype == torch.int64 else y.to(torch.int64)


def finite_number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def positive_step(h: float) -> float:
    if isinstance(h, bool) or not isinstance(h, (int, float)):
        raise TypeError(f"h must be a number, got {type(h).__name__}")
    if not 0 < h < math.inf:
        raise ValueError(f"h must be finite and > 0, got {h!r}")
    return float(h)


def check_range(t: Tensor, lower: float, upper: float, message: Callable[[float, float], str]) -> None:
    """Raise ValueError where t, which is not empty, has entries outside [lower, upper] or NaN; on CUDA an assertion."""
    low, high = torch.aminmax(t)  # NaN if there is one
    if t.device.type == "cuda":
        check((low >= lower) & (high <= upper), str)
    else:
        least, most = low.item(), high.item()
        if not (least >= lower and most <= upper):
            raise ValueError(message(least, most))


def check(condition: Tensor, message: Callable[[], str]) -> None:
    """Raise ValueError where the (0-d, bool) condition is false: at once on the CPU, as a device assertion on CUDA."""
    if condition.device.type == "cuda":
        torch._assert_async(condition, "soatfast: invalid labels or inputs (run on the CPU for the full message)")
    elif not condition.item():
        raise ValueError(message())


def check_radius(eps: Any, name: str = "eps") -> None:
    if isinstance(eps, Tensor):
        if eps.dim() > 1 or not eps.is_floating_point():
            raise ValueError(
                f"{name} must be a number or a floating tensor of shape () or (B,), got {eps.dtype} of "
                f"shape {tuple(eps.shape)}"
            )
        if eps.numel():
            check((eps >= 0).all() & eps.isfinite().all(), lambda: f"{name} must be finite and >= 0, got {eps}")
        return
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(eps).__name__}")
    if not 0 <= eps < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {eps!r}")


def check_number(value: object, name: str, above: bool = True) -> None:
    """Raise unless value is a finite number > 0, or, with above=False, >= 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < math.inf or (above and value == 0):
        raise ValueError(f"{name} must be finite and {'>' if above else '>='} 0, got {value!r}")


def check_steps(steps: Any, name: str = "steps") -> None:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"{name} must be a whole number, got {steps!r}")
    if steps < 1:
        raise ValueError(f"{name} must be at least 1, got {steps!r}")
