"""The L2 form of PGDRS (Salman et al. 2019)."""

from __future__ import annotations

from torch import Tensor, nn

from soatfast.compat.torchattacks.attacks.pgdrs import RandomizedSmoothing


class PGDRSL2(RandomizedSmoothing):
    """:class:`soatfast.attacks.SmoothAdv`'s loss, L2. eps_for_division has no use, as in PGDL2."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 1.0,
        alpha: float = 0.2,
        steps: int = 10,
        noise_type: str = "guassian",
        noise_sd: float = 0.5,
        noise_batch_size: int = 5,
        batch_max: int = 2048,
        eps_for_division: float = 1e-10,
    ):
        super().__init__("PGDRSL2", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.noise_type = noise_type
        self.noise_sd = noise_sd
        self.noise_batch_size = noise_batch_size
        self.eps_for_division = eps_for_division
        self.batch_max = batch_max
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self._smooth(images, labels, 2)
