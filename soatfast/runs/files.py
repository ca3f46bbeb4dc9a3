"""What runs leave on disk: options in JSON's terms, and files that are either whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from soatfast.runs.errors import DiskError, RunFolderError

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


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file to write, which takes the place of `path` where the block ends well.

    The name is of this block alone. An error removes the file; one of the disk is a DiskError.
    """
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    try:
        with writing(path):
            yield partial
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file that cannot be written (a full disk, no rights) is a DiskError that says so in one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DiskError(f"{path} cannot be written: {reason}{_free(path)}") from error


def _free(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f" ({shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free there)"
    return ""


def remove_partial(folder: Path) -> None:
    """Delete what :func:`replacing` left in `folder` when its process was killed; only for who holds the folder."""
    pattern = re.compile(rf".+\.[0-9a-f]{{8}}{re.escape(PARTIAL)}")
    for path in folder.glob(f"*{PARTIAL}"):
        if pattern.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write the whole file or nothing."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write the whole file or nothing."""
    write_bytes(path, text.encode())


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
        probe = folder / f".write-test-{secrets.token_hex(4)}"
        try:
            probe.write_bytes(b"1")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise DiskError(f"the run folder {folder} cannot be written: {error.strerror or error}") from error


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
