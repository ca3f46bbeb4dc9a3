"""This package's attacks as torchattacks' classes run them: from a given start, with torchattacks' random numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from soatfast import attacks
from soatfast.attacks.base import Model
from soatfast.compat.torchattacks.attack import Attack
from soatfast.gradients.oracle import InputGradient


class Summed(InputGradient):
    """The gradient as the sum of several, for models that draw random numbers."""

    times = 1

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        g = super().gradient(x, y)
        for _ in range(self.times - 1):
            g = g + super().gradient(x, y)
        return g


@dataclass(frozen=True, kw_only=True, eq=False)
class Started(attacks.Attack):
    """From a point that is given (None: from x), with ``times`` gradients a step."""

    start: Tensor | None = field(default=None, compare=False, repr=False)
    times: int = 1

    def _start(self, x: Tensor) -> Tensor:
        return x if self.start is None else self.start.to(x.dtype)

    def oracle(self, model: Model) -> InputGradient:
        oracle = Summed(model, self.objective, self.mode, self.engine, self.targeted, forward=self.forward)
        oracle.times = self.times
        return oracle


@dataclass(frozen=True, kw_only=True, eq=False)
class StartedPGD(Started, attacks.PGD):
    random_start: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class StartedMIFGSM(Started, attacks.MIFGSM):
    def _offset(self, x: Tensor) -> Tensor:
        """torchattacks draws the normal numbers too, and does not use them."""
        reach = float(self.eps) * self.reach
        return torch.randn_like(x).uniform_(-reach, reach)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        x_adv = super()._perturb(oracle, x, y, g0)
        for _ in range(self.neighbours):  # drawn by torchattacks after the last step, for nobody
            self._offset(x)
        return x_adv


class Stepwise(Attack):
    """An attack with the fields ``eps`` and, but for FGSM, ``alpha`` and ``steps``, and random numbers as theirs."""

    eps: float
    alpha: float
    steps: int

    def _pgd(self, images: Tensor, labels: Tensor, start: Tensor | None = None, **fields: Any) -> Tensor:
        return self._run(StartedPGD(start=start, **{**self._fields(), **fields}), images, labels)

    def _momentum(self, images: Tensor, labels: Tensor, start: Tensor | None = None, **fields: Any) -> Tensor:
        return self._run(StartedMIFGSM(start=start, **{**self._fields(), **fields}), images, labels)

    def _fields(self) -> dict[str, Any]:
        steps = {"steps": self.steps} if hasattr(self, "steps") else {}
        return {"eps": self.eps, "step_size": self.alpha, "targeted": self.targeted, "mode": "keep", **steps}

    def _uniform(self, images: Tensor, wanted: bool = True) -> Tensor | None:
        """A start uniform in the Linf ball; None if none is wanted."""
        if not wanted:
            return None
        return (images + torch.empty_like(images).uniform_(-self.eps, self.eps)).clamp(0, 1)
