"""MI-FGSM (Dong et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast import attacks
from soatfast.compat.torchattacks.native import Stepwise


class MIFGSM(Stepwise):
    """:class:`soatfast.attacks.MIFGSM`, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
    ):
        super().__init__("MIFGSM", model)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        attack = attacks.MIFGSM(
            eps=self.eps,
            step_size=self.alpha,
            steps=self.steps,
            decay=self.decay,
            targeted=self.targeted,
            mode="keep",
        )
        return self._run(attack, *self._inputs(images, labels))
