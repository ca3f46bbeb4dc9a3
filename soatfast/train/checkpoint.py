"""Run folders: options, checkpoints that are either whole or not there, and results.

A run folder holds `options.json` (what made it, with the versions and the counted passes), `checkpoint-0007/` (the
state after 7 epochs, by Accelerate), and, once finished, `model.safetensors` and `result.json`. Every file and folder
is written under another name and then renamed, so that an interruption at any moment leaves the folder usable.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from soatfast.errors import RunFolderError
from soatfast.files import PARTIAL, describe, generators, make_writable, read_json, write_json, write_text
from soatfast.memory import PerturbationMemory

__all__ = [
    "OPTIONS",
    "RESULT",
    "WEIGHTS",
    "check_options",
    "checkpoints",
    "describe",
    "generators",
    "load_memory",
    "load_weights",
    "make_writable",
    "read_json",
    "remove_run",
    "save_checkpoint",
    "save_weights",
    "write_json",
    "write_text",
]

OPTIONS, RESULT, WEIGHTS = "options.json", "result.json", "model.safetensors"
_FACTS = ("versions", "passes")  # in options.json for the reader: a run is the same run with others
_CHECKPOINT = "checkpoint-"
_MEMORY = "memory-rank"


def remove_run(folder: Path) -> None:
    """Delete what a training run wrote in `folder`, and nothing else."""
    if not (folder / OPTIONS).is_file():
        return
    for path in [*folder.glob(f"{_CHECKPOINT}*"), folder / RESULT, folder / WEIGHTS, folder / OPTIONS]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def remove_command(folder: Path, command: str, work: str, *names: str) -> None:
    """Delete those files and folders of `folder` and its options, where this command wrote them: its `work`."""
    path = folder / OPTIONS
    if not path.is_file():
        return
    if f'"command": "{command}"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise RunFolderError(f"{folder} does not hold {work}; use another folder")
    for name in (*names, OPTIONS):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def _flat(options: Any, name: str = "") -> dict[str, Any]:
    if isinstance(options, dict):
        parts = [_flat(value, f"{name}.{key}" if name else key) for key, value in options.items()]
        return {key: value for part in parts for key, value in part.items()}
    return {name: options}


def check_options(folder: Path, options: dict[str, Any]) -> bool:
    """Whether `folder` holds a run; RunFolderError if it was made with other `options`."""
    if not (folder / OPTIONS).is_file():
        return False
    stored = read_json(folder / OPTIONS)
    if not isinstance(stored, dict):
        raise RunFolderError(f"{folder / OPTIONS} is damaged (no options in it); use another folder or --fresh")
    then = _flat({key: value for key, value in stored.items() if key not in _FACTS})
    now = _flat(json.loads(json.dumps(options)))
    missing = "not set"
    changes = [
        f"{key} was {then.get(key, missing)}, now {now.get(key, missing)}"
        for key in [*now, *(key for key in then if key not in now)]
        if then.get(key, missing) != now.get(key, missing)
    ]
    if changes:
        shown = "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")
        raise RunFolderError(f"{folder} holds a run with other options ({shown}); use another folder or --fresh")
    return True


def write_options(folder: Path, options: dict[str, Any], passes: dict[str, int] | None = None) -> None:
    """Write options.json: the options, the versions of what runs them, and the counted passes once they are known."""
    from soatfast.config import describe as installation

    versions = installation()["versions"]
    write_json(folder / OPTIONS, {**options, "versions": versions, "passes": passes})


def checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in `folder`, oldest first."""
    found = [p for p in folder.glob(f"{_CHECKPOINT}*") if p.is_dir() and p.name[len(_CHECKPOINT) :].isdigit()]
    return sorted(found, key=lambda p: int(p.name[len(_CHECKPOINT) :]))


def save_checkpoint(
    accelerator: Accelerator, folder: Path, epoch: int, memory: PerturbationMemory | None = None
) -> None:
    """Save the training state after `epoch` epochs, then drop older ones. Called by every process."""
    final = folder / f"{_CHECKPOINT}{epoch:04d}"
    partial = final.with_name(final.name + PARTIAL)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    if memory is not None and (accelerator.is_main_process or memory.world > 1):
        memory.save(partial / f"{_MEMORY}{memory.rank}")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.replace(partial, final)
        for path in folder.glob(f"{_CHECKPOINT}*"):
            if path != final:
                shutil.rmtree(path, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_memory(checkpoint: Path, memory: PerturbationMemory) -> None:
    """What save_checkpoint wrote of the memory; RunFolderError when it does not fit."""
    try:
        memory.load(checkpoint / f"{_MEMORY}{memory.rank}")
    except ValueError as error:
        raise RunFolderError(str(error)) from error


def save_weights(model: nn.Module, path: Path) -> None:
    partial = path.with_name(path.name + PARTIAL)
    save_model(model, str(partial))
    os.replace(partial, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load safetensors weights into `model`; RunFolderError when they do not fit it."""
    try:
        load_model(model, str(path), device=str(next(model.parameters()).device))
    except Exception as error:
        raise RunFolderError(f"{path} cannot be loaded into {type(model).__name__}: {error}") from error
