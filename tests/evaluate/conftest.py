"""A small network, samples of which it gets some wrong, and an environment without torchmetrics."""

import builtins

import pytest
import torch

from tests.nets import batch, relu_net


@pytest.fixture
def net():
    return relu_net()


@pytest.fixture
def samples(net):
    x, y = batch(n=50)
    with torch.no_grad():
        predicted = net(x).argmax(1)
    return x, torch.where(torch.arange(50) % 4 == 0, y, predicted)


@pytest.fixture
def without_torchmetrics(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("torchmetrics"):
            raise ImportError("no such package")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
