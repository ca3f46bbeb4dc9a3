"""Which kernel serves a call: the registered one, or the reference where that is asked for."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import torch

from soatfast.ops import contract, load, reference

_ops = torch.ops.soatfast
_choice = os.environ.get("SOATFAST_BACKEND", "auto")


def _checked_backend(name: str) -> str:
    if name not in ("auto", "reference"):
        raise ValueError(f'backend must be "auto" or "reference", got {name!r} (SOATFAST_BACKEND or ops.backend)')
    return name


_checked_backend(_choice)
contract.define()
load.load_libraries()


@contextlib.contextmanager
def backend(name: Literal["auto", "reference"]) -> Iterator[None]:
    """Force the pure-PyTorch twin of every op (``"reference"``) inside the block, for A/B runs.

    >>> import torch, soatfast.ops as ops
    >>> g = torch.tensor([[3.0, -4.0]])
    >>> with ops.backend("reference"):
    ...     ops.lmo(g, p=2, eps=1.0)
    tensor([[ 0.6000, -0.8000]])
    """
    global _choice
    previous, _choice = _choice, _checked_backend(name)
    try:
        yield
    finally:
        _choice = previous


_twins_unsaid = load.without_library()


def kernel(name: str) -> Callable:
    if _twins_unsaid and _choice == "auto":
        _say_twins()
    return getattr(reference, name) if _choice == "reference" else getattr(_ops, name).default


def _say_twins() -> None:
    global _twins_unsaid
    reason, _twins_unsaid = _twins_unsaid, ""
    text = f"the PyTorch twins serve soatfast's ops on the CPU, which takes longer: {reason}"
    warnings.warn(text, load.NativeWarning, stacklevel=4)


def choice() -> str:
    """ "auto" or "reference", as the environment and :func:`backend` have set it."""
    return _choice
