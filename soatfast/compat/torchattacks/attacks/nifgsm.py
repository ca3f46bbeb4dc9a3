"""NI-FGSM (Lin et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast.compat.torchattacks.native import Stepwise


class NIFGSM(Stepwise):
    """:class:`soatfast.attacks.MIFGSM` that looks ahead along its momentum, Linf."""

    def __init__(
        self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10, decay: float = 1.0
    ):
        super().__init__("NIFGSM", model)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self._momentum(*self._inputs(images, labels), decay=self.decay, nesterov=True)
