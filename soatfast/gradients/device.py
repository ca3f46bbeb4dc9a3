"""Where a model is, and where a command puts one."""

from __future__ import annotations

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters; the CPU for a model without any.

    >>> device_of(torch.nn.Identity())
    device(type='cpu')
    """
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def default_device() -> torch.device:
    """A GPU where torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
