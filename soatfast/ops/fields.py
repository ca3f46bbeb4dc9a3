"""Frozen dataclasses whose fields may be tensors: compared and hashed by value."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor


class ByValue:
    """Equality and hash of a dataclass with ``eq=False``: by class and fields, tensors by dtype, device and entries.

    The hash of a tensor is of its shape and dtype alone, so that equal values have equal hashes at no read of a device.
    """

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_equal(a, b) for a, b in zip(_compared(self), _compared(other), strict=True))

    def __hash__(self) -> int:
        return hash((type(self), *map(_key, _compared(self))))


def _compared(value: Any) -> list[Any]:
    return [getattr(value, f.name) for f in dataclasses.fields(value) if f.compare]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        both = isinstance(a, Tensor) and isinstance(b, Tensor)
        return both and a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    return bool(a == b)


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    return tuple(map(_key, value)) if isinstance(value, tuple) else value
