"""Run folders: options, checkpoints that are either whole or not there, and results.

A run folder holds `options.json` (what made it, with the versions and the counted passes), `checkpoint-0007/` (the
state after 7 epochs, and the one before it), and, once finished, `model.safetensors`, `averaged.safetensors` where
weights were averaged, and `result.json`. A checkpoint is safetensors and JSON; its `manifest.json` has the digest of
every file. It is written under another name, waited for until it is on the disk, and then renamed, so that an
interruption or a power cut at any moment leaves the folder usable. Nothing in a run folder is ever unpickled.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch import nn

from soatfast.gradients.device import device_of
from soatfast.memory.store import PerturbationMemory
from soatfast.runs.errors import RunFolderError
from soatfast.runs.files import PARTIAL
from soatfast.runs.folder import OPTIONS
from soatfast.runs.state import damage, load_state, random_state, save_state, set_random_state, sync, write_manifest

RESULT, WEIGHTS, AVERAGED = "result.json", "model.safetensors", "averaged.safetensors"
_CHECKPOINT = "checkpoint-"
_MEMORY, _RANDOM, _TRAINING = "memory-rank", "random-rank", "training"
_KEPT = 2


def remove_run(folder: Path) -> None:
    """Delete what a training run wrote in `folder`, and nothing else."""
    if not (folder / OPTIONS).is_file():
        return
    for path in [*_written(folder), *(folder / name for name in (RESULT, WEIGHTS, AVERAGED, OPTIONS))]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _written(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first, whole or not. A folder of a like name is somebody else's."""
    pattern = re.compile(rf"{_CHECKPOINT}\d{{4,}}({re.escape(PARTIAL)})?")
    found = [p for p in folder.glob(f"{_CHECKPOINT}*") if pattern.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=lambda p: (epoch_of(p), p.name))


def check_owner(folder: Path) -> None:
    """RunFolderError where `folder` holds files of a training's names, but no options.json that says what made them."""
    names = [path.name for path in (folder / WEIGHTS, folder / RESULT, *_written(folder)) if path.exists()]
    if names and not (folder / OPTIONS).is_file():
        raise RunFolderError(
            f"{folder} holds {', '.join(names[:3])}, but no {OPTIONS} that says what run wrote it; use another folder"
        )


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints in `folder`, oldest first."""
    return [path for path in _written(folder) if not path.name.endswith(PARTIAL)]


def epoch_of(path: Path) -> int:
    """The epochs that a checkpoint has behind it."""
    return int(path.name.removesuffix(PARTIAL)[len(_CHECKPOINT) :])


def usable(folder: Path, say: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files are as they were written; `say` gets a line for each that is not.

    Raises RunFolderError where there are checkpoints and none is whole.
    """
    found = checkpoints(folder)
    problem = ""
    for path in reversed(found):
        problem = damage(path) or ""
        if not problem:
            return path
        say(f"{problem}; the checkpoint before it is used")
    if found:
        raise RunFolderError(f"{problem}, and no other checkpoint is whole; use --fresh or another folder")
    return None


def save_checkpoint(
    accelerator: Accelerator,
    folder: Path,
    epoch: int,
    model: nn.Module,
    state: dict[str, Any],
    memory: PerturbationMemory | None = None,
) -> None:
    """Save weights, `state`, random states and memory after `epoch` epochs; keep two. Called by every process."""
    final = folder / f"{_CHECKPOINT}{epoch:04d}"
    partial = final.with_name(final.name + PARTIAL)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
    accelerator.wait_for_everyone()
    save_state(partial / f"{_RANDOM}{accelerator.process_index}", random_state())
    if memory is not None and (accelerator.is_main_process or memory.world > 1):
        memory.save(partial / f"{_MEMORY}{memory.rank}")
    if accelerator.is_main_process:
        save_model(model, str(partial / WEIGHTS))
        save_state(partial / _TRAINING, state)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_manifest(partial)
        if final.exists():  # a damaged one, whose epoch was made again
            shutil.rmtree(final)
        os.replace(partial, final)
        sync(folder)
        for path in _written(folder)[:-_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, model: nn.Module) -> dict[str, Any]:
    """Weights and random states of a whole checkpoint; returns the `state` that was saved with them."""
    load_weights(model, checkpoint / WEIGHTS)
    state = load_state(checkpoint / _TRAINING)
    set_random_state(load_state(checkpoint / f"{_RANDOM}{accelerator.process_index}"))
    return state  # type: ignore[no-any-return]


def load_memory(checkpoint: Path, memory: PerturbationMemory) -> None:
    """What save_checkpoint wrote of the memory; RunFolderError when it does not fit."""
    try:
        memory.load(checkpoint / f"{_MEMORY}{memory.rank}")
    except ValueError as error:
        raise RunFolderError(str(error)) from error


def save_weights(model: nn.Module, path: Path) -> None:
    partial = path.with_name(path.name + PARTIAL)
    save_model(model, str(partial))
    sync(partial)
    os.replace(partial, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load safetensors weights into `model`; RunFolderError when they do not fit it."""
    try:
        load_model(model, str(path), device=str(device_of(model)))
    except Exception as error:
        raise RunFolderError(f"{path} cannot be loaded into {type(model).__name__}: {error}") from error
