"""R+FGSM (Tramer et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soatfast.compat.torchattacks.native import Stepwise


class RFGSM(Stepwise):
    """PGD, Linf, from a random corner of the ball of radius alpha."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("RFGSM", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        return self._pgd(images, labels, (images + self.alpha * torch.randn_like(images).sign()).clamp(0, 1))
