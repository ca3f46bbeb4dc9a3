"""Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soatfast.compat.torchattacks.attack import Attack, Labels


class GN(Attack):
    """Gaussian noise of standard deviation ``std``."""

    def __init__(self, model: nn.Module, std: float = 0.1):
        super().__init__("GN", model)
        self.std = std

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:  # type: ignore[override]
        images = self._images(images)
        return (images + self.std * torch.randn_like(images)).clamp(0, 1)
