"""Where a model is."""

from __future__ import annotations

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's parameters; the CPU for a model without any.

    >>> device_of(torch.nn.Identity())
    device(type='cpu')
    """
    return next((p.device for p in model.parameters()), torch.device("cpu"))
