"""Triton kernels of the streaming ops: one file an op, one launch an op, one program a sample.

The package imports without Triton; :func:`register` puts the launchers under the CUDA key of ops that are
defined already, and a launcher's module (and with it Triton) is imported when it is first called.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

OPS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if not path.stem.startswith("_")))
_registered: set[str] = set()


def _launcher(name: str) -> Callable[..., Any]:
    def launch(*args: Any) -> Any:
        module = importlib.import_module(f"{__name__}.{name}")
        return getattr(module, name)(*args)

    launch.__name__ = name
    return launch


def register() -> tuple[str, ...]:
    """Register every launcher for CUDA and return the ops' names.

    Raises:
        ImportError: Triton is not installed.
    """
    if importlib.util.find_spec("triton") is None:
        raise ImportError("Triton is not installed")
    for name in OPS:
        if name not in _registered:
            torch.library.impl(f"soatfast::{name}", "CUDA", _launcher(name))
            _registered.add(name)
    return OPS
