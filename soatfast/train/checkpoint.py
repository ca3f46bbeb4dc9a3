"""Run folders: options, checkpoints that are either whole or not there, and results.

A run folder holds `options.json` (what made it, with the versions and the counted passes), `checkpoint-0007/` (the
state after 7 epochs) or `checkpoint-0007-000120/` (and 120 batches of the next), the one before it, and, once finished,
`model.safetensors`, `averaged.safetensors` where weights were averaged, and `result.json`. A checkpoint is safetensors
and JSON; its `manifest.json` has the digest of every file. It is written under another name, waited for until it is on
the disk, and then renamed, so that an interruption or a power cut at any moment leaves the folder usable. Nothing in a
run folder is ever unpickled.
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
from soatfast.runs.files import PARTIAL, replacing, writing
from soatfast.runs.folder import OPTIONS
from soatfast.runs.state import damage, load_state, random_state, save_state, set_random_state, sync, write_manifest
from soatfast.train.processes import agreed

RESULT, WEIGHTS, AVERAGED = "result.json", "model.safetensors", "averaged.safetensors"
_NAME = re.compile(rf"checkpoint-(\d{{4,}})(?:-(\d{{6,}}))?(?:{re.escape(PARTIAL)})?")
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
    found = [p for p in folder.glob("checkpoint-*") if _NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink()]
    return sorted(found, key=lambda p: (*place_of(p), p.name))


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


def place_of(path: Path) -> tuple[int, int]:
    """The epochs that a checkpoint has behind it, and the batches of the next one."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1]), int(match[2] or 0)


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
    place: tuple[int, int],
    model: nn.Module,
    state: dict[str, Any],
    own: dict[str, Any],
    memory: PerturbationMemory | None = None,
) -> None:
    """Save weights, `state`, and of each process its random state, `own` and memory; keep two. All processes call it.

    place: the epochs that are done, and the batches of the next one.
    """
    epoch, batches = place
    final = folder / (f"checkpoint-{epoch:04d}" + (f"-{batches:06d}" if batches else ""))
    partial = final.with_name(final.name + PARTIAL)
    agreed(accelerator, lambda: _begin(partial) if accelerator.is_main_process else None)

    def write() -> None:
        with writing(final):
            rank = accelerator.process_index
            save_state(partial / f"{_RANDOM}{rank}", {"random": random_state(), "own": own})
            # Whole memories on several processes are the same after an epoch, and differ within one.
            if memory is not None and (accelerator.is_main_process or memory.world > 1 or batches):
                memory.save(partial / f"{_MEMORY}{rank}")
            if accelerator.is_main_process:
                save_model(model, str(partial / WEIGHTS))
                save_state(partial / _TRAINING, state)

    try:
        agreed(accelerator, write)
        agreed(accelerator, lambda: _finish(folder, partial, final) if accelerator.is_main_process else None)
    except BaseException:
        if accelerator.is_main_process:  # a full disk should not be filled by what is of no use
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _begin(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    with writing(partial):
        partial.mkdir()


def _finish(folder: Path, partial: Path, final: Path) -> None:
    with writing(final):
        write_manifest(partial)
        if final.exists():  # a damaged one, whose epoch was made again
            shutil.rmtree(final)
        os.replace(partial, final)
        sync(folder)
    for path in _written(folder)[:-_KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, model: nn.Module) -> tuple[Any, Any]:
    """Weights and random states of a whole checkpoint; returns the (state, own) that were saved with them."""
    load_weights(model, checkpoint / WEIGHTS)
    state = load_state(checkpoint / _TRAINING)
    of_rank = load_state(checkpoint / f"{_RANDOM}{accelerator.process_index}")
    set_random_state(of_rank["random"])
    return state, of_rank["own"]


def load_memory(accelerator: Accelerator, checkpoint: Path, memory: PerturbationMemory) -> None:
    """What save_checkpoint wrote of the memory; RunFolderError when it does not fit."""
    path = checkpoint / f"{_MEMORY}{accelerator.process_index}"
    if memory.world == 1 and not path.exists():
        path = checkpoint / f"{_MEMORY}0"
    try:
        memory.load(path)
    except ValueError as error:
        raise RunFolderError(str(error)) from error


def save_weights(model: nn.Module, path: Path) -> None:
    with replacing(path) as partial:
        save_model(model, str(partial))
        sync(partial)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load safetensors weights into `model`; RunFolderError when they do not fit it."""
    try:
        load_model(model, str(path), device=str(device_of(model)))
    except Exception as error:
        raise RunFolderError(f"{path} cannot be loaded into {type(model).__name__}: {error}") from error
