"""What runs leave on disk: options in JSON's terms, and files that are either whole or not there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.runs.errors import RunFolderError

PARTIAL = ".partial"
"""Ending of a file while it is written."""


def describe(value: Any) -> Any:
    """`value` in JSON's terms: a dataclass becomes its type and fields, a generator its seed."""
    if hasattr(value, "describe") and not isinstance(value, type):  # a perturbation memory: not its rows
        return {"type": type(value).__name__, **value.describe()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"type": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [describe(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, torch.Generator):
        return f"generator seeded {value.initial_seed()}"
    if isinstance(value, torch.Tensor):
        return describe(value.tolist())
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return str(value)


def generators(value: Any) -> Iterator[torch.Generator]:
    """Every torch.Generator in a dataclass and the dataclasses inside it, in field order."""
    if isinstance(value, torch.Generator):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from generators(getattr(value, f.name))


def write_text(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    partial = path.with_name(path.name + PARTIAL)
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged ({error}); use another folder or --fresh") from error


def make_writable(folder: Path) -> None:
    """Make the folder and try it, so that hours of training do not end in a failed write."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write-test-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RunFolderError(f"the run folder {folder} cannot be written: {error.strerror or error}") from error


def digest(x: Tensor, y: Tensor) -> str:
    """SHA-256 of a batch's shape and bytes."""
    state = hashlib.sha256(f"{tuple(x.shape)} {x.dtype}".encode())
    for t in (x, y):
        state.update(_bytes(t))
    return state.hexdigest()


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names and values of the state dict: the same weights, whatever file they came from."""
    state = hashlib.sha256()
    for name, value in model.state_dict().items():
        state.update(name.encode())
        if isinstance(value, Tensor):  # a module may keep other things there
            state.update(f"{tuple(value.shape)} {value.dtype}".encode())
            state.update(_bytes(value))
    return state.hexdigest()


def _bytes(t: Tensor) -> Any:
    return t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
