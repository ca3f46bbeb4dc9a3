"""What the interpreter tests share: the switch, the launchers, and cases that the interpreter gets right."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from soatfast.ops import triton as kernels

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
only_interpreted = pytest.mark.skipif(
    not INTERPRETED, reason="run in a process of its own: TRITON_INTERPRET=1 pytest tests/ops/triton"
)
quiet = pytest.mark.filterwarnings(
    "ignore:((overflow|invalid value|divide by zero) encountered|All-NaN slice):RuntimeWarning"
)

OPS = [op for op in kernels.OPS if not op.startswith("replay_")]  # whose scattered rows have a test of their own


def launcher(op: str) -> Callable:
    """The launcher of an op: it takes CPU tensors when the kernels are interpreted."""
    return getattr(importlib.import_module(f"soatfast.ops.triton.{op}"), op)


def force_streaming(monkeypatch: pytest.MonkeyPatch, chunk: int = 32) -> None:
    """Rows of any length are worked on in chunks."""
    module = importlib.import_module("soatfast.ops.triton._launch")
    monkeypatch.setattr(module, "ON_CHIP_BYTES", 0)
    monkeypatch.setattr(module, "CHUNK", chunk)


def interpretable(args: tuple) -> tuple:
    """The same arguments without what the interpreter gets wrong in bfloat16.

    It reads denormals wrongly and truncates where a GPU rounds to nearest: one unit in the last place, which
    the budget of soatfast.testing.budget allows, but the largest float32 stays finite instead of becoming infinite.
    """

    def mend(t: Tensor) -> Tensor:
        info = torch.finfo(torch.bfloat16)
        t = torch.where(t.abs() < info.tiny, torch.zeros_like(t), t)
        return torch.where(t.isinf(), t.sign() * 1e38, t)

    return tuple(mend(a) if isinstance(a, Tensor) and a.dtype == torch.bfloat16 else a for a in args)
