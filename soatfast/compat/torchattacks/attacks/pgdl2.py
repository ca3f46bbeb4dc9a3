"""PGD in the L2 ball (Madry et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soatfast.compat.torchattacks.native import Stepwise
from soatfast.ops.arguments import as_column


class PGDL2(Stepwise):
    """:class:`soatfast.attacks.PGD`, L2. eps_for_division has no use: norms are scaled, and 0 makes no step."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        random_start: bool = True,
        eps_for_division: float = 1e-10,
    ):
        super().__init__("PGDL2", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start
        self.eps_for_division = eps_for_division
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        return self._pgd(images, labels, self._ball(images) if self.random_start else None, p=2)

    def _ball(self, images: Tensor) -> Tensor:
        """torchattacks' start: a random direction, and a length uniform in [0, eps]."""
        noise = torch.empty_like(images).normal_()
        length = as_column(noise.flatten(1).norm(p=2, dim=1), images)
        factor = torch.zeros_like(length).uniform_(0, 1) / length * self.eps
        return (images + factor * noise).clamp(0, 1)
