"""BIM (Kurakin et al. 2017)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast.compat.torchattacks.native import Stepwise


class BIM(Stepwise):
    """:class:`soatfast.attacks.PGD`, Linf, from the images. steps=0: min(255 eps + 4, 1.25 255 eps), the paper's."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("BIM", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = int(min(eps * 255 + 4, 1.25 * eps * 255)) if steps == 0 else steps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self._pgd(*self._inputs(images, labels))
