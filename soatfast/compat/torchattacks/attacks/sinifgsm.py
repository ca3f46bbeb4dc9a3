"""SI-NI-FGSM (Lin et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast.compat.torchattacks.native import Stepwise


class SINIFGSM(Stepwise):
    """:class:`soatfast.attacks.MIFGSM` that looks ahead, with the mean gradient of ``m`` scaled copies, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        m: int = 5,
    ):
        super().__init__("SINIFGSM", model)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha
        self.m = m
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self._momentum(*self._inputs(images, labels), decay=self.decay, nesterov=True, scales=self.m)
