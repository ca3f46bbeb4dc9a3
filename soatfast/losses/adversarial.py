"""Adversarial training (Madry et al. 2018) with any attack."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from torch import Tensor, nn

from ..attacks import PGD, Attack
from ..passes import Passes, passes_of
from .base import Loss, mean, sample_losses


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(Loss):
    r"""mean_i l_i(attack(x)_i): train on adversarial examples only.

    Args:
        attack: any attack of :mod:`soatfast.attacks`. Default PGD(10) at Linf 8/255.

    Passes: the attack's, plus 1 forward and 1 backward to the parameters.

    >>> import torch
    >>> from soatfast.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = AdversarialTraining(attack=PGD(eps=0.1, steps=7))
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().backward_input, loss.passes().backward_parameters
    (7, 1)
    """

    attack: Attack = field(default_factory=PGD)

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack must be one of soatfast.attacks, got {type(self.attack).__name__}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return mean(sample_losses(model, self.attack(model, x, y), y))

    def passes(self, batch: int = 1) -> Passes:
        return self.attack.passes(batch) + passes_of(batch, forward=1, backward_parameters=1)

    def with_eps(self, eps: float | Tensor) -> AdversarialTraining:
        return dataclasses.replace(self, attack=self.attack.with_eps(eps))
