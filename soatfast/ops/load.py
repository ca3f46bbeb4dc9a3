"""Loads what serves the ops besides the reference, the native libraries and Triton; says why one is missing.

Nothing here is needed: without any library the reference serves every op. A library that is there but does not load is
never hidden: the error is kept for :func:`soatfast.show_config`, and ``SOATFAST_REQUIRE_NATIVE=1`` raises it.
``SOATFAST_NATIVE_DISABLE=1`` leaves the native libraries alone, for comparisons.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PACKAGE = Path(__file__).resolve().parent.parent
_INFO = PACKAGE / "_build_info.json"
_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")  # csrc/cpu/isa.cpp


@dataclass(frozen=True)
class Part:
    """One provider of kernels: whether it is loaded, and if not, why."""

    loaded: bool
    reason: str = ""
    broken: bool = False  # there, but it does not load


parts: dict[str, Part] = {}
served_by: dict[tuple[str, str], str] = {}  # (op, "CPU" | "CUDA") -> "C++", "CUDA C++" or "Triton"


class NativeWarning(UserWarning):
    """The C++ library was not built or does not load: the PyTorch twins serve the ops, which take longer."""


def without_library() -> str:
    """Why the twins serve the CPU, where nobody asked for that; else empty."""
    part = parts["ops_cpu"]
    return "" if part.loaded or "switched off" in part.reason else part.reason


def build_info() -> dict[str, Any]:
    """What setup.py noted when the package was built; empty in a source tree that was never built."""
    return json.loads(_INFO.read_text()) if _INFO.is_file() else {}


def library_path(name: str) -> Path:
    return PACKAGE / f"_{name}.so"


def load_libraries() -> None:
    """Load every part once; called when :mod:`soatfast.ops` is imported."""
    if parts:
        return
    isa = os.environ.get("SOATFAST_ISA", "")
    if isa and isa not in _INSTRUCTION_SETS:
        raise ValueError(f"SOATFAST_ISA must be one of {', '.join(_INSTRUCTION_SETS)}, got {isa!r}")
    parts["ops_cpu"] = _load("ops_cpu", "CPU", "C++")
    if torch.version.cuda is None:
        parts["ops_cuda"] = parts["triton"] = Part(False, "this PyTorch is built without CUDA")
    else:
        parts["ops_cuda"] = _load("ops_cuda", "CUDA", "CUDA C++")
        parts["triton"] = _register_triton()
    if os.environ.get("SOATFAST_REQUIRE_NATIVE") == "1":
        for name, part in parts.items():
            if part.broken or (name == "ops_cpu" and not part.loaded):
                raise ImportError(f"SOATFAST_REQUIRE_NATIVE=1, but {name} is not loaded: {part.reason}")


def _load(name: str, key: str, language: str) -> Part:
    if os.environ.get("SOATFAST_NATIVE_DISABLE") == "1":
        return Part(False, "switched off by SOATFAST_NATIVE_DISABLE=1")
    path = library_path(name)
    if not path.is_file():
        facts = build_info().get(name)
        if facts is None:
            return Part(False, "not built: the package runs from sources, or from a wheel without libraries")
        return Part(False, f"not built: {facts.get('reason', 'the file is gone')}", broken=bool(facts.get("built")))
    before = _kernels(key)
    try:
        torch.ops.load_library(str(path))
    except Exception as error:
        return Part(False, f"{path.name} does not load: {error}", broken=True)
    served_by.update(dict.fromkeys([(op, key) for op in _kernels(key) - before], language))
    return Part(True)


def _register_triton() -> Part:
    try:
        from soatfast.ops.triton import register

        registered = register()
    except ImportError as error:
        return Part(False, str(error))
    except Exception as error:
        return Part(False, f"the Triton kernels do not register: {error}", broken=True)
    served_by.update(dict.fromkeys([(op, "CUDA") for op in registered], "Triton"))
    return Part(True)


def _kernels(key: str) -> set[str]:
    """The ops that have a kernel of their own under a dispatch key."""
    from soatfast.ops.contract import NAMESPACE, SCHEMAS

    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {op for op in SCHEMAS if has_kernel(f"{NAMESPACE}::{op}", key)}
