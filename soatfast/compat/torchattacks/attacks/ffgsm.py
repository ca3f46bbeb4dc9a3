"""FGSM from a random start (Wong, Rice and Kolter 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soatfast.compat.torchattacks.native import Stepwise


class FFGSM(Stepwise):
    """One step of PGD, Linf, from a random start (Wong, Rice and Kolter 2020)."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 10 / 255):
        super().__init__("FFGSM", model)
        self.eps = eps
        self.alpha = alpha
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        # torchattacks draws the normal numbers too, and does not use them.
        noise = torch.randn_like(images).uniform_(-self.eps, self.eps)
        return self._pgd(images, labels, (images + noise).clamp(0, 1), steps=1)
