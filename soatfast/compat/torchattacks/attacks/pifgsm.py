"""PI-FGSM (Gao et al. 2020)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast import attacks
from soatfast.compat.torchattacks.attack import Attack


class PIFGSM(Attack):
    """:class:`soatfast.attacks.PIFGSM`, Linf. ``momentum`` and ``prob`` are of no use, as in torchattacks."""

    def __init__(
        self,
        model: nn.Module,
        max_epsilon: float = 16 / 255,
        num_iter_set: int = 10,
        momentum: float = 1.0,
        amplification: float = 10.0,
        prob: float = 0.7,
    ):
        super().__init__("PIFGSM", model)
        self.max_epsilon = max_epsilon
        self.num_iter_set = num_iter_set
        self.momentum = momentum
        self.amplification = amplification
        self.prob = prob
        self.supported_mode = ["default"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        attack = attacks.PIFGSM(
            eps=self.max_epsilon, steps=self.num_iter_set, amplification=self.amplification, mode="keep"
        )
        return self._run(attack, *self._inputs(images, labels))
