"""Trainings in one sitting or several: whole, interrupted, resumed; with a memory or without."""

import dataclasses

import pytest
import torch

from soatfast.attacks import PGD, FrankWolfe
from soatfast.losses import AdversarialTraining
from soatfast.memory.store import PerturbationMemory
from soatfast.runs.progress import Progress
from soatfast.train import TrainConfig, train
from tests.train.conftest import make_data, make_model, same, weights

CONFIG = TrainConfig(epochs=3, batch_size=10, eps_ramp_epochs=2, seed=5)
CROPS = dataclasses.replace(CONFIG, crop_padding=1, flip=True)
PGD_LOSS = AdversarialTraining(attack=PGD(eps=0.1, steps=2))


class Interrupt(Progress):
    """Ctrl-C in step `step` (counted over the epochs of this sitting), or after the checkpoint of `epoch`."""

    def __init__(self, step=None, epoch=None):
        self.left, self.last = step, epoch
        self.notes = []

    def step(self, loss):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt

    def epoch(self, row):
        if row["epoch"] == self.last:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)


def whole(folder, loss=PGD_LOSS, config=CONFIG):
    model = make_model()
    return train(model, loss, make_data(), config, folder), weights(model)


def resumed(folder, loss=PGD_LOSS, config=CONFIG):
    model = make_model(seed=9)  # first weights do not matter when there is a checkpoint
    progress = Interrupt()
    return train(model, loss, make_data(), config, folder, progress=progress), weights(model), progress.notes


def interrupted(folder, progress, loss=PGD_LOSS, config=CONFIG):
    with pytest.raises(KeyboardInterrupt):
        train(make_model(), loss, make_data(), config, folder, progress=progress)


def replay(dtype=torch.int8, augment=None, samples=40, shape=(1, 8, 8), device="cpu"):
    memory = PerturbationMemory(samples, shape, dtype, device, augment=augment)
    return AdversarialTraining(FrankWolfe(eps=0.1, steps=1), memory=memory)


def same_memory(a, b):
    return same(a.memory.state(), b.memory.state())
