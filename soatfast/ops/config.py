"""What is installed, what was built, and which kernel serves each op: ``show_config()`` and ``soatfast doctor``."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
from typing import Any

import torch

from soatfast.ops import dispatch, load
from soatfast.ops.contract import SCHEMAS

_PROVIDERS = {"ops_cpu": "C++ for the CPU", "ops_cuda": "CUDA C++", "triton": "Triton"}


def cpu_isa() -> str | None:
    """The instruction set of the CPU kernels in use: baseline, avx2 or avx512; None without the C++ library."""
    if not load.parts["ops_cpu"].loaded:
        return None
    library = ctypes.CDLL(str(load.library_path("ops_cpu")))
    library.soatfast_cpu_isa.restype = ctypes.c_char_p
    return library.soatfast_cpu_isa().decode()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def version() -> str:
    """The installed version; "0+sources" where the package runs from sources that were not installed."""
    return _version("soatfast") or "0+sources"


def _devices() -> list[str]:
    if not torch.cuda.is_available():
        return []
    names = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        names.append(f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, sm_{facts.major}{facts.minor}")
    return names


def _no_gpu() -> str | None:
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    return None if torch.cuda.is_available() else "this PyTorch has CUDA, but sees no GPU"


def _why_reference(key: str) -> str:
    parts = ("ops_cpu",) if key == "CPU" else ("triton", "ops_cuda")
    return "; ".join(f"{_PROVIDERS[name]}: {load.parts[name].reason}" for name in parts if load.parts[name].reason)


def describe() -> dict[str, Any]:
    """Versions, devices, and for each op the kernel that serves it on the CPU and on CUDA, as plain values."""
    kernels: dict[str, dict[str, str]] = {}
    otherwise = {"CPU": "reference", "CUDA": "reference" if torch.version.cuda else "not available"}
    for op in SCHEMAS:
        kernels[op] = {key: load.served_by.get((op, key), otherwise[key]) for key in otherwise}
    reasons = {key: _why_reference(key) for key in otherwise if any(k[key] == "reference" for k in kernels.values())}
    return {
        "versions": {
            "soatfast": version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "triton": _version("triton"),
        },
        "backend": dispatch.choice(),
        "cpu": {"threads": torch.get_num_threads(), "isa": cpu_isa(), "cores": os.cpu_count()},
        "gpus": _devices(),
        "no_gpu": _no_gpu(),
        "kernels": kernels,
        "why_reference": reasons,
        "parts": {name: {"loaded": p.loaded, "reason": p.reason, "broken": p.broken} for name, p in load.parts.items()},
        "build": load.build_info(),
    }


def show_config() -> str:
    """The same as readable text.

    >>> print(show_config().splitlines()[0].split()[0])
    soatfast
    """
    facts = describe()
    versions, cpu = facts["versions"], facts["cpu"]
    lines = [
        f"soatfast {versions['soatfast']}",
        f"  Python {versions['python']}, torch {versions['torch']}, "
        + (f"triton {versions['triton']}" if versions["triton"] else "no triton"),
        f"  CPU: {cpu['threads']} threads on {cpu['cores']} cores, "
        + (f"{cpu['isa']} kernels" if cpu["isa"] else "no native kernels"),
    ]
    lines += [f"  GPU: {name}" for name in facts["gpus"]] or [f"  GPU: none, {facts['no_gpu']}"]
    if facts["backend"] == "reference":
        lines.append("  SOATFAST_BACKEND=reference: the pure-PyTorch reference serves every op")
    lines += ["", f"{'op':18}{'on the CPU':14}on CUDA"]
    lines += [f"{op:18}{by['CPU']:14}{by['CUDA']}" for op, by in facts["kernels"].items()]
    lines += [f"Reference on {key} because: {why}" for key, why in facts["why_reference"].items()]
    broken = [f"BROKEN: {name}: {part['reason']}" for name, part in facts["parts"].items() if part["broken"]]
    return "\n".join([*lines, "", *_build_lines(facts["build"]), *broken])


def _build_lines(build: dict[str, Any]) -> list[str]:
    if not build:
        return ["Build: nothing noted; the package runs from sources that were not installed"]
    lines = []
    for name, facts in build.items():
        if facts["built"]:
            extra = [facts["compiler"]]
            extra += [f"torch {facts['torch']}"] if "torch" in facts else []
            extra += ["/".join(facts["isa"])] if "isa" in facts else []
            extra += (
                [" ".join(a.rpartition("=")[2] for a in facts["architectures"])] if "architectures" in facts else []
            )
            lines.append(f"Build: {name}: {', '.join(extra)}")
        else:
            lines.append(f"Build: {name}: not built, {facts['reason']}")
    return lines
