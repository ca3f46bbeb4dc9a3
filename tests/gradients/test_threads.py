"""Threads that attack one model: one lock a model, however it is wrapped."""

import threading

import pytest
import torch
from torch import nn

from soatfast.attacks import PGD
from soatfast.gradients.state import ModelState
from tests.nets import batch, conv_net

PLAIN = PGD(eps=0.05, steps=3, random_start=False)


def test_threads_attack_one_model_one_after_the_other():
    model, (x, y) = conv_net().train(), batch(shape=(3, 8, 8), dtype=torch.float32)
    expected = PLAIN(model, x, y)
    results, wrapped = [], nn.Sequential(nn.Identity(), model)

    def attack(target):
        for _ in range(5):
            results.append(torch.equal(PLAIN(target, x, y), expected))

    threads = [threading.Thread(target=attack, args=(target,)) for target in (model, wrapped, lambda x: model(x))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 15
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())


def test_the_lock_is_free_after_an_error():
    model = conv_net()
    with pytest.raises(RuntimeError, match="stop"), ModelState(model, "train"):
        raise RuntimeError("stop")
    done = threading.Event()

    def enter():
        with ModelState(model, "eval"):
            done.set()

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    assert done.wait(10)
