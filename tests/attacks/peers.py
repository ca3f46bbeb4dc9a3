"""torchattacks' attacks in the floating type of a test, on the models of these tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tests.nets import conv_net, relu_net, smooth_net

SHAPE = (3, 8, 8)


def centred(net: nn.Module) -> nn.Module:
    """The same with a last bias that gives every class its share of random inputs."""
    x = torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    with torch.no_grad():
        net[-1].bias -= net(x.to(net[-1].bias.dtype)).mean(0)
    return net


def bold_net(dtype: torch.dtype) -> nn.Module:
    """Logits 30 times those of a plain network: nearly all confident."""
    net = smooth_net(dtype, SHAPE, 6, seed=3)
    with torch.no_grad():
        net[-1].weight *= 30
    return net


def deep_net(dtype: torch.dtype) -> nn.Module:
    return nn.Sequential(relu_net(dtype, SHAPE, 20, seed=5), nn.Tanh(), nn.Linear(20, 6).to(dtype))


NETS = {
    "relu": lambda dtype: centred(relu_net(dtype, SHAPE, 6)),
    "smooth": lambda dtype: centred(smooth_net(dtype, SHAPE, 6)),
    "conv": lambda dtype: centred(conv_net(dtype, 3, 6).eval()),
    "bold": lambda dtype: centred(bold_net(dtype)),
    "deep": lambda dtype: centred(deep_net(dtype)),
}


def right_batch(model: nn.Module, n: int, dtype=torch.float64, seed=2) -> tuple[Tensor, Tensor]:
    """n samples, all but the first classified as labelled."""
    x = torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 6
    return x, y


@contextlib.contextmanager
def reckoned_in(dtype: torch.dtype) -> Iterator[None]:
    """What torchattacks makes without a dtype, or by .float(), is of this one."""
    before, narrow = torch.get_default_dtype(), Tensor.float
    torch.set_default_dtype(dtype)
    Tensor.float = lambda t: t.to(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
        Tensor.float = narrow


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
