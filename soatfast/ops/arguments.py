"""Checks of the public ops' arguments, and how a batch becomes the (B, D) rows of the kernels."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from soatfast.ops.constants import accumulate_dtype

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def kind(value: object) -> str:
    """The type of what came, for an error's line; a NumPy array is told how it becomes a tensor."""
    name = type(value).__name__
    return "a NumPy array, which torch.from_numpy makes a tensor" if name == "ndarray" else name


def dtype_or_kind(value: object) -> str:
    return str(value.dtype) if isinstance(value, Tensor) else kind(value)


def number(value: Any, name: str, expected: str = "a number") -> float:
    """value as Python's float or int; NumPy's scalars are numbers, a bool is none.

    >>> import numpy
    >>> number(numpy.int64(3), "steps"), number(numpy.float64(0.5), "h")
    (3, 0.5)
    """
    if type(value) is float or type(value) is int:  # first: this is paid between any two passes of an attack
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be {expected}, got {kind(value)}")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_number(value: Any, name: str, above: bool = True, expected: str = "a number") -> float:
    """The value as a float. Raise unless it is a finite number > 0, or, with above=False, >= 0."""
    if not 0 <= number(value, name, expected) < math.inf or (above and value == 0):
        raise ValueError(f"{name} must be finite and {'>' if above else '>='} 0, got {value!r}")
    return float(value)


def check_between(value: Any, name: str, low: float, high: float) -> float:
    """The value as a float. Raise unless it is a number in [low, high]."""
    if not low <= number(value, name) <= high:
        raise ValueError(f"{name} must be a number in [{low:g}, {high:g}], got {value!r}")
    return float(value)


def finite_number(value: Any, name: str) -> float:
    if not -math.inf < number(value, name) < math.inf:
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def whole_number(value: Any, name: str) -> int:
    """value as Python's int; NumPy's integers are whole numbers, a bool and 2.0 are none."""
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    return int(value)


def check_steps(value: Any, name: str = "steps", least: int = 1) -> int:
    if whole_number(value, name) < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return int(value)


def check_flag(value: object, name: str) -> None:
    """Raise unless value is True or False: the string "False" would count as true."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_fields(config: Any) -> None:
    """What holds for the fields of any frozen dataclass: flags are flags, and NumPy's scalars become Python's."""
    cls: Any = type(config)
    for name, is_flag in _names_and_flags(cls):
        value = getattr(config, name)
        if is_flag:
            check_flag(value, name)
        elif type(value) not in _USUAL and isinstance(value, numbers.Real):
            object.__setattr__(config, name, number(value, name))


_USUAL = frozenset((bool, int, float, str, tuple, type(None)))


@functools.cache
def _names_and_flags(config: Any) -> tuple[tuple[str, bool], ...]:
    """(name, whether it is a flag) of each field of a dataclass."""
    return tuple((field.name, isinstance(field.default, bool)) for field in dataclasses.fields(config))


def norm_order(p: float, general: bool = True) -> float:
    """p as the kernels take it: 1, 2, inf or another number in [1.01, 1000).

    p in (1, 1.01) is treated as 1 and p >= 1000 as inf: nearer to those ends the powers |g|^(1/(p-1)) underflow and the
    step is the limit's to float32 accuracy.
    """
    if not number(p, "p", "a number >= 1 or math.inf") >= 1:
        raise ValueError(f"p must be a number >= 1 or math.inf, got {p!r}")
    if p >= 1e3:
        return math.inf
    if p < 1.01:
        return 1.0
    if p != 2 and not general:
        raise ValueError(f"p must be 1, 2 or math.inf for this operation, got {p!r}")
    return float(p)


def norm_name(p: float) -> str:
    """The norm in the words of tables and titles.

    >>> norm_name(math.inf), norm_name(2), norm_name(1.5)
    ('Linf', 'L2', 'L1.5')
    """
    return "Linf" if p == math.inf else f"L{p:g}"


def per_sample(value: float | Tensor, name: str, like: Tensor) -> tuple[float, Tensor | None]:
    """A non-negative number, or a tensor of one number per sample: () or (B,), in the kernels' accumulation dtype."""
    if not isinstance(value, Tensor):
        return check_number(value, name, above=False, expected="a number or a tensor"), None
    _check_shape(value, name, like.shape[0])
    if value.device != like.device:
        raise ValueError(f"{name} is on {value.device}, expected {like.device}")
    return 0.0, value.detach().reshape(-1).to(accumulate_dtype(like.dtype)).contiguous()


def check_radius(value: Any, name: str = "eps") -> None:
    """Raise unless value is what :func:`per_sample` takes for some batch; entries of a tensor are looked at too."""
    if not isinstance(value, Tensor):
        check_number(value, name, above=False, expected="a number or a tensor")
        return
    _check_shape(value, name)
    if value.numel():
        check((value >= 0).all() & value.isfinite().all(), lambda: f"{name} must be finite and >= 0, got {value}")


def _check_shape(t: Tensor, name: str, batch: int | None = None) -> None:
    if t.dim() > 1 or not t.is_floating_point() or (batch is not None and t.numel() not in (1, batch)):
        raise ValueError(
            f"{name} must be a number or a floating tensor of shape () or ({'B' if batch is None else batch},), "
            f"got {t.dtype} of shape {tuple(t.shape)}"
        )


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


Bounds = tuple[float | Tensor, float | Tensor]
"""(lower, upper): numbers, or tensors that broadcast to a batch, which are applied behind the kernel."""


def kernel_box(bounds: Bounds, inside: bool = False) -> tuple[float, float]:
    """The box that a kernel applies: none where a bound is a tensor, which :func:`clamped` applies behind it."""
    lower, upper = bounds
    if not isinstance(lower, Tensor) and not isinstance(upper, Tensor):
        return box((lower, upper))
    if inside:
        raise ValueError("in_box, exact and an lmo at x take bounds that are numbers, got tensors")
    return -math.inf, math.inf


def clamped(t: Tensor, bounds: Bounds) -> Tensor:
    """t in bounds, where they are tensors; else as it is."""
    lower, upper = bounds
    if isinstance(lower, Tensor) or isinstance(upper, Tensor):
        return t.clamp(*(torch.as_tensor(b, dtype=t.dtype, device=t.device) for b in bounds))
    return t


class Layout:
    """Views tensors as (B, D) in the memory order of one of them, and results back."""

    def __init__(self, like: Tensor):
        if not isinstance(like, Tensor) or not like.is_floating_point():
            raise TypeError(f"expected a floating tensor, got {dtype_or_kind(like)}")
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
        if not isinstance(t, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(t).__name__}")
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


def boxed_order(p: float, in_box: bool, name: str = "in_box") -> float:
    """:func:`norm_order`; ValueError where the maximiser over ball and box is asked for and p is in between."""
    order = norm_order(p)
    if in_box and order not in (1, 2, math.inf):
        raise ValueError(f"{name} takes p = 1, 2 or math.inf, got p = {p!r}")
    return order


def labelled(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, K), K >= 2, without their graph, and labels (B,) as int64; the labels' range is not looked at."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise TypeError(f"logits must be a floating tensor, got {dtype_or_kind(logits)}")
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ValueError(f"logits must have shape (B, K) with K >= 2, got {tuple(logits.shape)}")
    if not isinstance(y, Tensor) or y.dtype not in _WHOLE:
        raise TypeError(f"y must be a tensor of integers, got {dtype_or_kind(y)}")
    if y.shape != logits.shape[:1]:
        raise ValueError(f"y must have shape ({logits.shape[0]},), one label a row, got {tuple(y.shape)}")
    if y.device != logits.device:
        raise ValueError(f"y is on {y.device}, expected {logits.device}")
    return logits.detach(), y if y.dtype == torch.int64 else y.to(torch.int64)


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
