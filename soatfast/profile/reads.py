"""Counting the numbers that Python reads from tensors: on a GPU each waits for the passes before it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_NAMES = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__", "numpy", "cpu")


class HostReads:
    """A block in which ``seen(tensor)`` is called for each read of a tensor's numbers by the host.

    The methods of torch.Tensor are wrapped, not the dispatcher: passes cost nothing more. What C++ reads by itself (a
    boolean mask as an index) is not seen.
    """

    def __init__(self, seen: Callable[[Tensor], None]):
        self._seen = seen
        self._before: dict[str, Any] = {}

    def __enter__(self) -> HostReads:
        for name in _NAMES:
            self._before[name] = torch.Tensor.__dict__.get(name)
            setattr(torch.Tensor, name, self._counted(name, getattr(torch.Tensor, name)))
        return self

    def _counted(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        seen = self._seen

        @functools.wraps(original)
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            if name not in ("numpy", "cpu") or (tensor.device.type == "cpu") == (name == "numpy"):
                seen(tensor)
            return original(tensor, *args, **kwargs)

        return call

    def __exit__(self, *error: object) -> None:
        for name, before in self._before.items():
            if before is None:
                delattr(torch.Tensor, name)
            else:
                setattr(torch.Tensor, name, before)
        self._before.clear()
