"""Small data and one torch thread: these tests run many tiny batches, which more threads only slow down."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from soatfast.train import Data


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _any_precision() -> Iterator[None]:
    AcceleratorState._reset_state()  # else the first test's precision would hold for all
    yield
    AcceleratorState._reset_state()  # and the last one's for the next module's fixtures


def make_data(n: int = 40, shape: tuple[int, ...] = (1, 8, 8)) -> Data:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, *shape, generator=generator)
    y = (x.flatten(1)[:, :4].argmax(1)).long()
    return Data(TensorDataset(x, y), TensorDataset(x[:10], y[:10]), shape, 4, "tiny")


def make_model(seed: int = 0) -> nn.Module:
    """With batch norm and dropout: everything that a checkpoint has to keep."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(36, 4),
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
