"""PGD on a classifier under randomised smoothing (Salman et al. 2019)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from soatfast import attacks
from soatfast.compat.torchattacks.native import Stepwise


class RandomizedSmoothing(Stepwise):
    """What PGDRS and PGDRSL2 have in common."""

    noise_type: str
    noise_sd: float
    noise_batch_size: int
    batch_max: int

    def _smooth(self, images: Tensor, labels: Tensor, p: float) -> Tensor:
        """In parts where a batch and its noisy copies are more than batch_max images."""
        if len(images) * self.noise_batch_size <= self.batch_max:
            return self._part(images, labels, p)
        size = max(1, self.batch_max // self.noise_batch_size)
        parts = zip(images.split(size), labels.split(size), strict=True)
        return torch.cat([self._part(*part, p) for part in parts])

    def _part(self, images: Tensor, labels: Tensor, p: float) -> Tensor:
        """The box is part of the model, as in torchattacks: where it is left, the gradient is zero."""
        images, labels = self._inputs(images, labels)
        names = {"guassian": "gaussian", "gaussian": "gaussian", "uniform": "uniform"}
        if self.noise_type not in names:
            raise ValueError(f'noise_type must be "guassian" (sic) or "uniform", got {self.noise_type!r}')
        noise: Any = names[self.noise_type]
        smoothed = attacks.Smoothed(sigma=self.noise_sd, samples=self.noise_batch_size, distribution=noise)

        def forward(model: nn.Module, x: Tensor) -> Tensor:
            return smoothed(model, x.clamp(0, 1))

        return self._pgd(images, labels, p=p, bounds=(-math.inf, math.inf), forward=forward).clamp(0, 1)


class PGDRS(RandomizedSmoothing):
    """:class:`soatfast.attacks.SmoothAdv`'s loss, Linf; ``noise_sd`` is the half width of uniform noise."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        noise_type: str = "guassian",
        noise_sd: float = 0.5,
        noise_batch_size: int = 5,
        batch_max: int = 2048,
    ):
        super().__init__("PGDRS", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.noise_type = noise_type
        self.noise_sd = noise_sd
        self.noise_batch_size = noise_batch_size
        self.batch_max = batch_max
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self._smooth(images, labels, math.inf)
