"""PGD with the mean of several gradients a step (Liu et al. 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast.compat.torchattacks.native import Stepwise


class EOTPGD(Stepwise):
    """PGD, Linf, each step along the sum of eot_iter gradients, for models that draw random numbers."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        eot_iter: int = 2,
        random_start: bool = True,
    ):
        super().__init__("EOTPGD", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.eot_iter = eot_iter
        self.random_start = random_start
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        start = self._uniform(images, self.random_start)
        return self._pgd(images, labels, start, times=self.eot_iter)
