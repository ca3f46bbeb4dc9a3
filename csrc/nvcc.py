"""Finds nvcc: CUDA_HOME, PATH, the usual folder, or the pip packages nvidia-cuda-nvcc, -crt, -runtime, nvidia-nvvm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0;9.0;10.0"  # and PTX of the last for later devices


@dataclass(frozen=True)
class Toolkit:
    nvcc: str
    version: str
    include: list[str]  # folders that nvcc does not find by itself
    library: list[str]


def find_nvcc() -> Toolkit | None:
    """The first toolkit whose nvcc starts, or None."""
    candidates = [Path(os.environ[name]) / "bin/nvcc" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    if on_path := shutil.which("nvcc"):
        candidates.append(Path(on_path))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    for key in ("purelib", "platlib"):
        site = Path(sysconfig.get_path(key)) / "nvidia"
        candidates += [*sorted(site.glob("cu*/bin/nvcc"), reverse=True), site / "cuda_nvcc/bin/nvcc"]
    for nvcc in candidates:
        if not (nvcc.is_file() and os.access(nvcc, os.X_OK)):
            continue
        answer = subprocess.run([nvcc, "--version"], capture_output=True, text=True)
        match = re.search(r"release ([\d.]+)", answer.stdout)
        if answer.returncode == 0 and match:
            root = _root(nvcc)
            include = [str(path) for path in (root / "include",) if path.is_dir()]
            library = [str(path) for path in (root / "lib64", root / "lib") if path.is_dir()]
            return Toolkit(str(nvcc), match[1], include, library)
    return None


def _root(nvcc: Path) -> Path:
    """The toolkit's folder, as nvcc itself says it: the file may be a wrapper somewhere else."""
    answer = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    match = re.search(r"^#\$ TOP=(.*)$", answer.stderr, re.MULTILINE)
    return Path(match[1].strip()).resolve() if match else nvcc.resolve().parent.parent


def known_architectures(nvcc: str) -> set[str]:
    """Numbers such as "90" and "100a" that this nvcc compiles for; empty where it does not say."""
    answer = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    return set(re.findall(r"compute_(\w+)", answer.stdout))


def architectures(text: str | None = None, known: set[str] | None = None) -> list[str]:
    """``-gencode`` flags for a list such as "8.0;9.0+PTX"; default TORCH_CUDA_ARCH_LIST, else DEFAULT_ARCHITECTURES.

    known: what nvcc compiles for. An unknown entry of the default is left out, and the last one before it gives PTX for
    later devices; one that was asked for is a ValueError.
    """
    asked = text or os.environ.get("TORCH_CUDA_ARCH_LIST")
    flags = []
    for entry in re.split(r"[;,\s]+", asked.strip()) if asked else _default(known):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if match is None:
            raise ValueError(f'TORCH_CUDA_ARCH_LIST: expected entries such as "9.0" or "9.0+PTX", got {entry!r}')
        if known and match[1] + match[2] not in known:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST: this nvcc does not compile for {entry}, but for {_said(known)}")
        number = match[1] + match[2] + match[3]
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match[4]:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags


def _default(known: set[str] | None) -> list[str]:
    found = DEFAULT_ARCHITECTURES.split(";")
    if known:
        found = [entry for entry in found if entry.replace(".", "") in known]
    return [*found[:-1], f"{found[-1]}+PTX"] if found else []


def _said(known: set[str]) -> str:
    numbers = sorted({int(re.sub(r"\D", "", number)) for number in known})
    return ", ".join(f"{number // 10}.{number % 10}" for number in numbers)
