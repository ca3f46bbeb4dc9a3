"""Passes in true float32 for what differences nearly equal numbers, and how a pass in less is seen."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

_HALF = (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Matrix products and convolutions in true float32: TF32's noise of 1e-3 is too much for a small difference.

    Both of torch's switches are understood, ``allow_tf32`` and ``fp32_precision``: torch refuses to read the first
    where the second was used.
    """
    cuda, cudnn, places = torch.backends.cuda, torch.backends.cudnn, _places()
    try:
        old = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cuda.matmul.allow_tf32
    except RuntimeError:
        old = None
    before = [(place, _set_value(place)) for place in places]
    try:
        if old is not None:  # by the old switch as well, or torch would refuse to read it in the block
            torch.set_float32_matmul_precision("highest")
            cudnn.allow_tf32 = False
        for place in places:
            place.fp32_precision = "ieee"
        yield
    finally:
        if old is not None:
            torch.set_float32_matmul_precision(old[0])
            cudnn.allow_tf32 = old[1]
        for place, value in before:
            place.fp32_precision = value


def float32_precision() -> tuple[str, ...]:
    """The precision that torch's switches give float32 passes now, one word a kind of kernel; unset is "ieee"."""
    return tuple("ieee" if place.fp32_precision == "none" else place.fp32_precision for place in _places())


def _places() -> list[Any]:
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return [cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn]  # type: ignore[attr-defined]


def _set_value(place: Any) -> str:
    """The place's own precision: "none" where it has that of the switch above, which is to rule it afterwards too."""
    value = place.fp32_precision
    place.fp32_precision = "none"
    inherited = place.fp32_precision == value
    place.fp32_precision = value
    return "none" if inherited else value


def half_in(output: Tensor) -> torch.dtype | None:
    """The half precision in which part of the forward that made the output ran, or None; float16 before bfloat16.

    It is read from the autograd graph, whoever lowered it: autocast outside, inside, or the model itself. Of what runs
    as one node, a compiled model, only what it has saved for its backward is seen; see :func:`unseen_in`.
    """
    seen = {metadata.dtype for node in _nodes(output) for metadata in node._input_metadata}
    saved = (getattr(node, "saved_tensors", ()) for node in _nodes(output) if _is_one_node(node))
    seen |= {t.dtype for tensors in saved for t in tensors if t is not None}
    return next((dtype for dtype in _HALF if dtype in seen), None)


def unseen_in(output: Tensor) -> bool:
    """Whether a part of the forward that made the output is compiled or scripted into one node, and not seen into."""
    return any(map(_is_one_node, _nodes(output)))


def _is_one_node(node: torch.autograd.graph.Node) -> bool:
    """Whether it is what torch.compile or TorchScript makes of several operations."""
    return type(node).__name__.startswith(("CompiledFunction", "CppFunction"))


@functools.cache
def _warn_unseen(name: str) -> None:
    """Once: it is the same for every batch."""
    warnings.warn(
        f"{name} takes differences of nearly equal passes, and part of the model's forward is compiled or scripted: "
        "half precision inside it may not be seen. Make sure that it runs in float32, without autocast",
        stacklevel=2,
    )


def check_pass(name: str, half: torch.dtype | None, output: Tensor) -> None:
    """Raise TypeError where a pass ran in half precision, in part or wholly; warn once where that cannot be seen."""
    if half is not None:
        raise TypeError(
            f"{name} takes differences of nearly equal passes and needs float32 or float64, and part of the model's "
            f"forward runs in {half} (autocast outside or inside it?): give it the model without autocast"
        )
    if unseen_in(output):
        _warn_unseen(name)


def recomputes(output: Tensor) -> bool:
    """Whether a backward from the output runs parts of the forward again (``torch.utils.checkpoint``)."""
    return any(
        getattr(getattr(getattr(node, saved, None), "unpack_hook", None), "__module__", None)
        == "torch.utils.checkpoint"
        for node in _nodes(output)
        for saved in _saved(node)
    )


def _nodes(output: Tensor) -> list[torch.autograd.graph.Node]:
    """The autograd graph of the output, each node once."""
    found = [] if output.grad_fn is None else [output.grad_fn]
    seen = set(found)
    for node in found:  # which grows
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                found.append(following)
    return found


_saved_names: dict[type, tuple[str, ...]] = {}


def _saved(node: torch.autograd.graph.Node) -> tuple[str, ...]:
    """The names under which nodes of this type keep tensors for their backward."""
    names = _saved_names.get(type(node))
    if names is None:
        names = tuple(name for name in dir(node) if name.startswith("_raw_saved_"))
        _saved_names[type(node)] = names
    return names
