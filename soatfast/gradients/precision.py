"""Half-precision batches: widened for arithmetic, rounded back so that they stay in the ball."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from soatfast.gradients.engine import images_channels_last
from soatfast.gradients.oracle import InputGradient


def is_half(t: Tensor) -> bool:
    return t.dtype in (torch.float16, torch.bfloat16)


@contextlib.contextmanager
def widened(oracle: InputGradient, x: Tensor) -> Iterator[Tensor]:
    """x as an attack computes on it: in the engine's memory format, and a half-precision batch in float32, while the
    model is fed x's dtype.
    """
    if is_half(x):
        oracle.input_dtype = x.dtype
    wide = x.detach().float() if is_half(x) else x.detach()
    try:
        yield images_channels_last(wide) if oracle.engine.channels_last else wide
    finally:
        oracle.input_dtype = None


def round_towards(x_adv: Tensor, x: Tensor) -> Tensor:
    """x_adv (float32) in x's half dtype, no entry further from x than it was."""
    rounded = x_adv.to(x.dtype)
    beyond = (rounded.float() - x.float()).abs() > (x_adv - x.float()).abs()
    bits = rounded.view(torch.int16).int()
    order = torch.where(bits >= 0, bits, -32768 - bits)  # float order as integer order
    order = order + torch.sign(x.float() - rounded.float()).int()
    inward = torch.where(order >= 0, order, -32768 - order).to(torch.int16).view(x.dtype)
    return torch.where(beyond, inward, rounded)


def wide(t: Tensor) -> Tensor:
    """In float32 or wider."""
    return t if t.dtype.itemsize > 4 else t.float()
