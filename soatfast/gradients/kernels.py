"""Kernels of torch that lack the derivative which a pass needs, and how to run that pass without them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def twice_differentiable() -> contextlib.AbstractContextManager[None]:
    """Attention by plain operations while the block lasts: its fused kernels have no second derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def has_recurrent(modules: Iterable[nn.Module]) -> bool:
    """Whether a recurrent layer is in eval mode, in which cuDNN has no backward of it."""
    return any(isinstance(module, nn.RNNBase) and not module.training for module in modules)


@contextlib.contextmanager
def without_cudnn() -> Iterator[None]:
    """torch's own kernels, which have that backward; on other devices nothing changes."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before
