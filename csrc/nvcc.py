"""Finds nvcc: CUDA_HOME, PATH, the usual folder, or the pip packages nvidia-cuda-nvcc, -crt, -runtime, nvidia-nvvm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0;9.0;10.0+PTX"


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


def architectures(text: str | None = None) -> list[str]:
    """``-gencode`` flags for a list such as "8.0;9.0+PTX"; default TORCH_CUDA_ARCH_LIST, else DEFAULT_ARCHITECTURES."""
    text = text or os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    flags = []
    for entry in re.split(r"[;,\s]+", text.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", entry)
        if match is None:
            raise ValueError(f'TORCH_CUDA_ARCH_LIST: expected entries such as "9.0" or "9.0+PTX", got {entry!r}')
        number = match[1] + match[2] + match[3]
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match[4]:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    return flags
