"""No attack."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast.compat.torchattacks.attack import Attack, Labels


class VANILA(Attack):
    """The images themselves."""

    def __init__(self, model: nn.Module):
        super().__init__("VANILA", model)

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:  # type: ignore[override]
        return images.detach().clone().to(self.device)
