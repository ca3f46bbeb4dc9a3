"""State of a long run as JSON and safetensors: numbers, text, lists, dicts and tensors. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from soatfast.runs.errors import RunFolderError
from soatfast.runs.files import write_json

MANIFEST = "manifest.json"


def save_state(path: Path, state: Any) -> None:
    """Write `state` to path.json, and its tensors to path.safetensors."""
    tensors: dict[str, Tensor] = {}
    plain = _plain(state, tensors)
    save_file(tensors, str(path.with_suffix(".safetensors")))
    write_json(path.with_suffix(".json"), plain)


def load_state(path: Path, device: torch.device | str = "cpu") -> Any:
    """What :func:`save_state` wrote, tensors on `device`; RunFolderError where a file is missing or damaged."""
    try:
        tensors = load_file(str(path.with_suffix(".safetensors")), device=str(device))
        return _built(json.loads(path.with_suffix(".json").read_text(encoding="utf-8")), tensors)
    except Exception as error:
        raise RunFolderError(f"{path}.json or .safetensors is missing or damaged ({error})") from error


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):  # as pairs: keys may be numbers
        return {"dict": [[key, _plain(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_plain(item, tensors) for item in value]}
    if isinstance(value, float):  # JSON has no inf and NaN
        return {"float": value.hex()}
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"a state holds numbers, text, lists, dicts and tensors, got {type(value).__name__}")


def _built(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float.fromhex(content)
    if kind == "dict":
        return {key: _built(item, tensors) for key, item in content}
    items = [_built(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items


def random_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, on the CPU and on every GPU."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators where :func:`random_state` found them."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([t.cpu() for t in state["cuda"]])


def write_manifest(folder: Path) -> None:
    """Note the SHA-256 of every file below `folder`, and see all of them on the disk: files first, then folders."""
    found = {str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    write_json(folder / MANIFEST, found)
    for path in sorted(folder.rglob("*"), reverse=True):
        sync(path)
    sync(folder)


def damage(folder: Path) -> str | None:
    """What is wrong with a folder that has a manifest, in words; None where every file is as it was written."""
    try:
        noted = dict(json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        return f"{folder / MANIFEST} is missing or damaged ({type(error).__name__})"
    for name, digest in noted.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            return f"{path} is missing or no plain file"
        if _digest(path) != digest:
            return f"{path} is damaged"
    return None


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
