"""VNI-FGSM (Wang and He 2021)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast.compat.torchattacks.native import Stepwise


class VNIFGSM(Stepwise):
    """:class:`soatfast.attacks.MIFGSM` tuned by the gradient at ``N`` neighbours, looking ahead, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
        N: int = 5,
        beta: float = 3 / 2,
    ):
        super().__init__("VNIFGSM", model)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha
        self.N = N
        self.beta = beta
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        return self._momentum(images, labels, decay=self.decay, nesterov=True, neighbours=self.N, reach=self.beta)
