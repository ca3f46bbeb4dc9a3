"""DI-FGSM (Xie et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast import attacks
from soatfast.compat.torchattacks.native import Stepwise


class DIFGSM(Stepwise):
    """:class:`soatfast.attacks.MIFGSM` on images of a random size and place (``ResizePad``), Linf.

    Images that are not square keep their shape; torchattacks makes them square.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.5,
        random_start: bool = False,
    ):
        super().__init__("DIFGSM", model)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha
        self.resize_rate = resize_rate
        self.diversity_prob = diversity_prob
        self.random_start = random_start
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        start = self._uniform(images, self.random_start)
        forward = attacks.ResizePad(self.resize_rate, self.diversity_prob)
        return self._momentum(images, labels, start, decay=self.decay, forward=forward)
