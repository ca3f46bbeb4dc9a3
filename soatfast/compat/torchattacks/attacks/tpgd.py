"""TRADES' attack (Zhang et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soatfast.compat.torchattacks.attack import Labels, Logits
from soatfast.compat.torchattacks.native import Stepwise
from soatfast.gradients.oracle import InputGradient


class TPGD(Stepwise):
    """PGD, Linf, on the Kullback-Leibler divergence from the clean prediction (TRADES' attack); labels have no use."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("TPGD", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:  # type: ignore[override]
        images = self._images(images)
        nobody = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        with InputGradient(Logits(self), mode="keep") as oracle:
            oracle.loss(images, nobody)
            clean = oracle.logits
        assert clean is not None

        def divergence(logits: Tensor, y: Tensor) -> Tensor:
            p = clean.to(logits.dtype).softmax(1)
            return F.kl_div(logits.log_softmax(1), p, reduction="none").sum(1)

        start = (images + 0.001 * torch.randn_like(images)).clamp(0, 1)
        return self._pgd(images, nobody, start, objective=divergence)
