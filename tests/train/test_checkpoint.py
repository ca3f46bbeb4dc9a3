"""Checkpoints: damage is named, nothing is unpickled, other people's files are left alone, the disk has all of it."""

import contextlib
import os
import shutil
from pathlib import Path

import pytest
import torch

from soatfast.runs import state
from soatfast.runs.errors import RunFolderError
from soatfast.train import checkpoint, train
from tests.train.conftest import make_data, make_model, same
from tests.train.sittings import CONFIG, PGD_LOSS, Interrupt, interrupted, resumed, whole


@pytest.mark.parametrize("name", ["model.safetensors", "random-rank0.json", "training.safetensors", "manifest.json"])
@pytest.mark.parametrize("how", ["empty", "flipped", "gone", "folder"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, name, how):
    interrupted(tmp_path, Interrupt(epoch=2))
    path = tmp_path / "checkpoint-0002" / name
    content = bytearray(path.read_bytes())
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "flipped":
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    elif how == "folder":
        path.mkdir()
    _, got, notes = resumed(tmp_path)
    assert name in notes[0] and "the checkpoint before it is used" in notes[0]
    assert notes[1] == "resumed after epoch 1 of 3" and same(got, whole(tmp_path / "whole")[1])


class Payload:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_nothing_in_a_run_folder_is_unpickled(tmp_path):
    interrupted(tmp_path / "run", Interrupt(epoch=2))
    names = {p.relative_to(tmp_path / "run") for p in (tmp_path / "run").rglob("*") if p.is_file()}
    names |= {name.parent / "custom_checkpoint_0.pkl" for name in names} | {name.with_suffix(".bin") for name in names}
    mark = tmp_path / "ran"
    for number, name in enumerate(sorted(names)):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", folder)
        torch.save(Payload(mark), folder / name)
        with contextlib.suppress(RunFolderError, ValueError):
            resumed(folder)
        assert not mark.exists(), name


@pytest.mark.parametrize("name", ["checkpoint-best/weights.bin", "checkpoint-12/x", "model.safetensors", "result.json"])
def test_what_somebody_else_wrote_is_left_alone(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("weeks of work")
    for resume in (True, False):
        refused = name in ("model.safetensors", "result.json")
        with pytest.raises(RunFolderError, match="use another folder") if refused else contextlib.nullcontext():
            train(make_model(), PGD_LOSS, make_data(), CONFIG, tmp_path, resume=resume)
        assert path.read_text() == "weeks of work"


def test_checkpoints_without_options_are_no_run(tmp_path):
    interrupted(tmp_path, Interrupt(epoch=1))
    (tmp_path / "options.json").unlink()
    with pytest.raises(RunFolderError, match=r"holds checkpoint-0001, but no options.json"):
        resumed(tmp_path)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced, renamed = [], []
    real = os.replace

    def replace(source, target):
        if str(target).endswith("checkpoint-0001"):
            renamed.append({str(p) for p in synced})
        real(source, target)

    monkeypatch.setattr(state.os, "fsync", lambda handle: synced.append(Path(os.readlink(f"/proc/self/fd/{handle}"))))
    monkeypatch.setattr(checkpoint.os, "replace", replace)
    interrupted(tmp_path, Interrupt(epoch=1))
    folder = tmp_path / "checkpoint-0001"
    expected = {str(p).replace("checkpoint-0001", "checkpoint-0001.partial") for p in (folder, *folder.rglob("*"))}
    assert expected <= renamed[0] and str(tmp_path) in {str(p) for p in synced}
