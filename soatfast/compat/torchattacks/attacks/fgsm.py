"""FGSM (Goodfellow et al. 2015)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast import attacks
from soatfast.compat.torchattacks.native import Stepwise


class FGSM(Stepwise):
    """:class:`soatfast.attacks.FGSM`, Linf."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255):
        super().__init__("FGSM", model)
        self.eps = eps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        attack = attacks.FGSM(eps=self.eps, targeted=self.targeted, mode="keep")
        return self._run(attack, *self._inputs(images, labels))
