"""SIGTERM: the state within an epoch is kept, the process ends with 143, and the resumed training loses no bit."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from soatfast.attacks import PGD, FrankWolfe
from soatfast.commands import main as cli
from soatfast.losses import AdversarialTraining, Free
from soatfast.memory.crops import CropFlip
from soatfast.memory.store import PerturbationMemory
from soatfast.runs.progress import Progress
from soatfast.train import train
from soatfast.train.processes import asked_to_stop
from tests.train.conftest import make_data, make_model, same, weights
from tests.train.sittings import CONFIG, CROPS, PGD_LOSS

ROOT = Path(__file__).parents[2]
GUARD = dataclasses.replace(CONFIG, guard=10, average=0.9, schedule="cosine", optimizer="sgd")


class Terminate(Progress):
    """SIGTERM in step `step` of this sitting, counted from 1."""

    def __init__(self, step=0):
        self.left = step
        self.notes = []

    def step(self, loss):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def note(self, text):
        self.notes.append(text)


def noisy():
    return AdversarialTraining(PGD(eps=0.1, steps=1, generator=torch.Generator().manual_seed(3)))


def memory(augment=None):
    return AdversarialTraining(FrankWolfe(eps=0.1, steps=1), memory=PerturbationMemory(40, (1, 8, 8), augment=augment))


@pytest.mark.parametrize(
    ("loss", "config", "step", "name", "at"),
    [
        (lambda: PGD_LOSS, CONFIG, 1, "checkpoint-0000-000001", "epoch 1, after batch 1"),
        (noisy, GUARD, 6, "checkpoint-0001-000002", "epoch 2, after batch 2"),
        (lambda: memory(CropFlip(padding=1, flip=True)), CROPS, 11, "checkpoint-0002-000003", "epoch 3, after batch 3"),
        (lambda: Free(eps=0.1, replays=2), CONFIG, 3, "checkpoint-0000-000002", "epoch 1, after batch 2"),
        (lambda: PGD_LOSS, CONFIG, 8, "checkpoint-0002", "epoch 3, after batch 0"),  # the last step of an epoch
    ],
)
def test_the_state_within_an_epoch_is_kept_to_the_bit(tmp_path, loss, config, step, name, at):
    model = make_model()
    whole = train(model, loss(), make_data(), config, tmp_path / "whole")
    progress, folder = Terminate(step), tmp_path / "cut"
    with pytest.raises(SystemExit) as end:
        train(make_model(), loss(), make_data(), config, folder, progress=progress)
    assert end.value.code == 143 and progress.notes == [f"stopped in {at} of 4"]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert max(p.name for p in folder.glob("checkpoint-*")) == name
    other, progress = make_model(seed=9), Terminate()
    again = train(other, loss(), make_data(), config, folder, progress=progress)
    assert progress.notes[0].startswith("resumed after epoch")
    assert same(weights(model), weights(other))
    figures = ("epoch", "loss", "lr", "eps", "guard")
    rows = [[{k: row[k] for k in figures if k in row} for row in result.history] for result in (whole, again)]
    assert rows[0] == rows[1]
    kept = [json.loads((tmp_path / f / "result.json").read_text())["steps"] for f in ("whole", "cut")]
    assert kept[0] == kept[1]
    assert sorted(p.name for p in folder.glob("checkpoint-*")) == ["checkpoint-0002", "checkpoint-0003"] or name > (
        "checkpoint-0002"
    )


def test_a_program_with_a_handler_of_its_own_keeps_it(tmp_path):
    came = []
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        with asked_to_stop() as asked:
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == [signal.SIGTERM] and not asked()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_the_command_ends_with_143_and_resumes(tmp_path, capsys, monkeypatch):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    words = ["--data", "digits8", "--train-samples", "400", "--test-samples", "50", "--epochs", "2"]
    words = ["train", "--run-dir", "run", *words, "--batch-size", "4", "pgd", "--steps", "1"]
    command = [sys.executable, "-m", "soatfast", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
    )
    try:
        for line in process.stdout:
            if "epoch 1/2" in line:
                time.sleep(0.1)
                process.terminate()
                break
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 143, error
    assert error == "terminated; the same command (without --fresh) resumes\n" and "stopped in epoch 2, after" in out
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 0
    assert "resumed after epoch 1 of 2 and batch" in capsys.readouterr().out
