"""What a command has found so far, in files of the run folder: an interrupted command resumes after them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from soatfast.runs.files import describe, replacing

FOLDER = "parts"


def kept(path: Path, asked: Any, make: Callable[[], dict[str, Tensor]], fresh: bool = False) -> dict[str, Tensor]:
    """make()'s tensors on the CPU, or those in the file `path` where they were made for the same `asked`.

    asked: all that they depend on. A file that is damaged or was made for something else is made again; so is any file
    with fresh=True. Nothing is unpickled.
    """
    text = json.dumps(describe(asked), sort_keys=True)
    found = None if fresh else _read(path, text)
    if found is not None:
        return found
    made = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in make().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        save_file(made, partial, metadata={"asked": text})
    return made


def _read(path: Path, asked: str) -> dict[str, Tensor] | None:
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            if file.metadata().get("asked") != asked:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no dict
    except Exception:  # not there, or damaged in any of safetensors' ways
        return None
