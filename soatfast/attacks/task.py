"""What the rows of the catalogues are made for: a ball, a kind of image, a training set."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from soatfast.memory.crops import CropFlip
from soatfast.memory.store import PerturbationMemory


@dataclass(frozen=True)
class Task:
    """The ball of radius eps in the p-norm, and the images that it is about.

    samples: of the training set. shape: of one image. augment: how the training set moves its images. classes: those
    that the model tells apart; None: not known. device: where the training runs.
    """

    eps: float
    samples: int
    shape: tuple[int, ...]
    p: float = math.inf
    augment: CropFlip | None = None
    classes: int | None = None
    device: torch.device | str = "cpu"

    def memory(self, dtype: torch.dtype = torch.int8) -> PerturbationMemory:
        """A new memory for every sample of the training set, on the task's device."""
        return PerturbationMemory(self.samples, self.shape, dtype, self.device, augment=self.augment)


def check_ball(eps: float, p: float) -> None:
    """Raise ValueError unless the tables' methods and attacks know this ball."""
    if p not in (2, math.inf):
        raise ValueError(f"p must be 2 or inf, got {p}")
    if not 0 <= eps < math.inf or (p == math.inf and eps > 1):
        raise ValueError(f"eps must be finite and at least 0, and for p = inf at most 1, got {eps}")
