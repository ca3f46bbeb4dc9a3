"""The trainer with a memory: kept through any interruption, checked against data and processes."""

import dataclasses
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from soatfast.attacks import FrankWolfe
from soatfast.losses import AdversarialTraining
from soatfast.memory.store import PerturbationMemory
from soatfast.runs.errors import RunFolderError
from soatfast.train import train
from tests.train.conftest import make_data, make_model, same
from tests.train.sittings import CONFIG, CROPS, Interrupt, interrupted, replay, resumed, same_memory, whole


@pytest.mark.parametrize("config", [CONFIG, CROPS], ids=["plain", "crops"])
@pytest.mark.parametrize("step", [4, 6, 9])  # at the start and in the middle of an epoch of 4 steps
def test_a_memory_survives_any_interruption_bit_for_bit(tmp_path, config, step):
    first, again = replay(augment=config.augment), replay(augment=config.augment)
    _, expected = whole(tmp_path / "whole", first, config)
    interrupted(tmp_path / "cut", Interrupt(step=step), replay(augment=config.augment), config)
    _, found, notes = resumed(tmp_path / "cut", again, config)
    assert same(expected, found)
    assert same_memory(first, again)
    assert first.memory.visits.tolist() == [3] * 40
    assert notes == [f"resumed after epoch {step // 4} of 3"]


@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32])
def test_a_mapped_memory_trains_and_resumes_like_one_in_ram(tmp_path, dtype):
    loss = replay(dtype)
    _, expected = whole(tmp_path / "whole", loss)
    interrupted(tmp_path / "cut", Interrupt(step=6), replay(dtype, device=tmp_path / "first"))
    again = replay(dtype, device=tmp_path / "second")
    assert again.memory.path == tmp_path / "second"
    _, found, notes = resumed(tmp_path / "cut", again)
    assert notes == ["resumed after epoch 1 of 3"]
    assert same(expected, found) and same_memory(loss, again)


def test_a_new_run_starts_from_an_empty_memory(tmp_path):
    loss = replay()
    _, first = whole(tmp_path / "a", loss)
    _, second = whole(tmp_path / "b", loss)
    assert same(first, second)


def test_a_finished_run_brings_its_memory_along(tmp_path):
    loss, again = replay(), replay()
    whole(tmp_path, loss)
    assert resumed(tmp_path, again)[2] == ["trained already"]
    assert same_memory(loss, again)
    shutil.rmtree(tmp_path / "checkpoint-0003")
    bare = replay()
    assert resumed(tmp_path, bare)[2] == ["trained already"]
    assert not bare.memory.visits.any()


def test_memory_and_training_must_fit(tmp_path):
    with pytest.raises(ValueError, match=r"40 samples of shape \(1, 8, 8\), the memory is .*samples=39"):
        whole(tmp_path, replay(samples=39))
    with pytest.raises(ValueError, match="memory is"):
        whole(tmp_path, replay(shape=(1, 8, 9)))
    with pytest.raises(ValueError, match=r"augmented by CropFlip.*follows None"):
        whole(tmp_path, replay(), CROPS)
    with pytest.raises(ValueError, match="augmented by None, the memory follows CropFlip"):
        whole(tmp_path, replay(augment=CROPS.augment))
    loss = AdversarialTraining(FrankWolfe(steps=1), memory=PerturbationMemory(40, (1, 8, 8), rank=1, world=2))
    with pytest.raises(ValueError, match="process 0 of 1"):
        whole(tmp_path, loss)


class Noisy(Dataset):
    """Samples of any shape that change a little from read to read."""

    def __init__(self, tensors, noise=0.01):
        self.tensors, self.noise = tensors, noise

    def __len__(self):
        return len(self.tensors)

    def __getitem__(self, i):
        x, y = self.tensors[i]
        return (x + self.noise * torch.rand(x.shape)).clamp(0, 1), y


def test_a_data_set_that_changes_its_samples_is_refused(tmp_path):
    data = make_data()
    data = dataclasses.replace(data, train=Noisy(data.train))
    with pytest.raises(ValueError, match=r"Noisy changes .* TrainConfig\(crop_padding=..., flip=...\); check=False is"):
        train(make_model(), replay(), data, CONFIG, tmp_path)
    loss = replay()
    train(make_model(), loss, data, CONFIG, tmp_path, check=False)
    assert loss.memory.visits.tolist() == [3] * 40


def test_a_memory_of_samples_that_are_no_images(tmp_path):
    data = make_data(shape=(6,))
    data = dataclasses.replace(data, train=Noisy(data.train, noise=0))
    loss = replay(shape=(6,))
    train(nn.Linear(6, 4), loss, data, CONFIG, tmp_path)
    assert loss.memory.visits.tolist() == [3] * 40


def test_another_kind_of_memory_is_another_run(tmp_path):
    interrupted(tmp_path, Interrupt(epoch=1), replay())
    with pytest.raises(RunFolderError, match=r"loss\.memory\.dtype was int8, now float32"):
        resumed(tmp_path, replay(torch.float32))
    with pytest.raises(RunFolderError, match=r"loss\.memory\.type was"):
        resumed(tmp_path, AdversarialTraining(FrankWolfe(eps=0.1, steps=1)))


def test_a_lost_memory_is_an_error(tmp_path):
    interrupted(tmp_path, Interrupt(epoch=1), replay())
    shutil.rmtree(tmp_path / "checkpoint-0001" / "memory-rank0")
    with pytest.raises(RunFolderError, match=r"rows-00000.safetensors is missing .* no other checkpoint is whole"):
        resumed(tmp_path, replay())
