"""Run folders: options, checkpoints that are either whole or not there, and results.

A run folder holds `options.json` (what made it, with the versions and the counted passes), `checkpoint-0007/` (the
state after 7 epochs, by Accelerate), and, once finished, `model.safetensors` and `result.json`. Every file and folder
is written under another name and then renamed, so that an interruption at any moment leaves the folder usable.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from soatfast.memory.store import PerturbationMemory
from soatfast.runs.errors import RunFolderError
from soatfast.runs.files import PARTIAL
from soatfast.runs.folder import OPTIONS

RESULT, WEIGHTS = "result.json", "model.safetensors"
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
