"""What a hook looks at: the moment, the input, the line of the script and the formats. It changes none of them."""

from __future__ import annotations

import functools
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.gradients.counting import tensors

_LIBRARIES = tuple(str(Path(module.__file__ or "").parent) + "/" for module in (torch, sys.modules["soatfast"]))
THROUGH = ", through "
_SAMPLED = 2**12  # entries of an input that its fingerprint weighs by their places


def mark(device: torch.device) -> Any:
    """A moment: a float of seconds, or an event in the GPU's queue."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds(moment: Any, base: tuple[float, Any]) -> float:
    if isinstance(moment, float):
        return moment
    return base[0] + base[1].elapsed_time(moment) / 1e3


def fingerprint(value: object) -> Any:
    """Shapes and two sums of each tensor; equal for the same numbers. None where they cannot be taken."""
    found: list[Any] = []
    try:
        with torch.no_grad():
            for t in tensors(value):
                flat = t.detach().reshape(-1)
                part = flat[:: max(1, flat.numel() // _SAMPLED)].double()
                places = _places(len(part), part.device)
                found += [tuple(t.shape), torch.stack([flat.sum(dtype=torch.float64), (part * places).sum()])]
    except (RuntimeError, NotImplementedError, TypeError):  # sparse, complex, meta tensors
        return None
    return found or None


@functools.lru_cache(maxsize=8)
def _places(count: int, device: torch.device) -> Tensor:
    """A weight for each place, of a length that repeats nowhere; made without random numbers."""
    with torch.inference_mode(False):
        return torch.arange(count, device=device, dtype=torch.float64).sin_()


def without(entry: Any) -> None:
    """Take a filter of warnings away again."""
    if entry in warnings.filters:
        warnings.filters.remove(entry)  # type: ignore[attr-defined]


def read_out(found: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(part.tolist()) if isinstance(part, Tensor) else part for part in found)


def place() -> str:
    """The line of the script that is being run, and the package through which it calls the model, if any."""
    frame, through = sys._getframe(2), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(("<", *_LIBRARIES)):
            if "site-packages" not in name:
                return f"{name}:{frame.f_lineno}{through}"
            through = through or THROUGH + str(frame.f_globals.get("__name__")).partition(".")[0]
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def formats(module: nn.Module, x: Tensor | None) -> str:
    """How the passes are run: device, precision, memory format, compilation."""
    p = next(module.parameters())
    device = p.device.type
    parts = [device, f"weights {str(p.dtype).removeprefix('torch.')}"]
    if x is not None:
        parts.append(f"input {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}")
        if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            parts.append("channels_last")
    if torch.is_autocast_enabled(device):
        parts.append(f"autocast {str(torch.get_autocast_dtype(device)).removeprefix('torch.')}")
    compiled = hasattr(module, "_orig_mod") or module.__dict__.get("_compiled_call_impl") is not None
    return ", ".join([*parts, *(["compiled"] if compiled else [])])
