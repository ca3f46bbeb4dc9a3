"""torchattacks' attacks that the attacks of this package serve: constructor arguments, defaults, random numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soatfast import attacks
from soatfast.attacks.base import Model
from soatfast.compat.torchattacks.attack import Attack, Labels, Logits
from soatfast.gradients.oracle import InputGradient
from soatfast.ops.arguments import as_column


class _Summed(InputGradient):
    """The gradient as the sum of several, for models that draw random numbers."""

    times = 1

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        g = super().gradient(x, y)
        for _ in range(self.times - 1):
            g = g + super().gradient(x, y)
        return g


@dataclass(frozen=True, kw_only=True)
class _PGD(attacks.PGD):
    """PGD from a point that is given (None: from x), with ``times`` gradients a step."""

    random_start: bool = True
    start: Tensor | None = field(default=None, compare=False, repr=False)
    times: int = 1

    def _start(self, x: Tensor) -> Tensor:
        return x if self.start is None else self.start.to(x.dtype)

    def oracle(self, model: Model) -> InputGradient:
        oracle = _Summed(model, self.objective, self.mode, self.engine, self.targeted)
        oracle.times = self.times
        return oracle


class _Targetable(Attack):
    """An attack with the fields ``eps`` and, but for FGSM, ``alpha`` and ``steps``."""

    eps: float
    alpha: float
    steps: int

    def _pgd(self, images: Tensor, labels: Tensor, start: Tensor | None = None, **fields: Any) -> Tensor:
        fields = {"eps": self.eps, "step_size": self.alpha, "targeted": self.targeted, "mode": "keep", **fields}
        steps = fields.pop("steps", None) or self.steps
        return self._run(_PGD(start=start, steps=steps, **fields), images, labels)

    def _uniform(self, images: Tensor) -> Tensor:
        """A start uniform in the Linf ball."""
        return (images + torch.empty_like(images).uniform_(-self.eps, self.eps)).clamp(0, 1)


class VANILA(Attack):
    """The images themselves."""

    def __init__(self, model: nn.Module):
        super().__init__("VANILA", model)

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:  # type: ignore[override]
        return images.detach().clone().to(self.device)


class GN(Attack):
    """Gaussian noise of standard deviation ``std``."""

    def __init__(self, model: nn.Module, std: float = 0.1):
        super().__init__("GN", model)
        self.std = std

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:  # type: ignore[override]
        images = self._images(images)
        return (images + self.std * torch.randn_like(images)).clamp(0, 1)


class FGSM(_Targetable):
    """:class:`soatfast.attacks.FGSM`, Linf."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255):
        super().__init__("FGSM", model)
        self.eps = eps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        attack = attacks.FGSM(eps=self.eps, targeted=self.targeted, mode="keep")
        return self._run(attack, *self._inputs(images, labels))


class BIM(_Targetable):
    """:class:`soatfast.attacks.PGD`, Linf, from the images. steps=0: min(255 eps + 4, 1.25 255 eps), the paper's."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("BIM", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = int(min(eps * 255 + 4, 1.25 * eps * 255)) if steps == 0 else steps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        return self._pgd(*self._inputs(images, labels))


class RFGSM(_Targetable):
    """PGD, Linf, from a random corner of the ball of radius alpha."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("RFGSM", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        return self._pgd(images, labels, (images + self.alpha * torch.randn_like(images).sign()).clamp(0, 1))


class PGD(_Targetable):
    """:class:`soatfast.attacks.PGD`, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = True,
    ):
        super().__init__("PGD", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        return self._pgd(images, labels, self._uniform(images) if self.random_start else None)


class EOTPGD(_Targetable):
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
        start = self._uniform(images) if self.random_start else None
        return self._pgd(images, labels, start, times=self.eot_iter)


class FFGSM(_Targetable):
    """One step of PGD, Linf, from a random start (Wong, Rice and Kolter 2020)."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 10 / 255):
        super().__init__("FFGSM", model)
        self.eps = eps
        self.alpha = alpha
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        # torchattacks draws the normal numbers too, and does not use them.
        noise = torch.randn_like(images).uniform_(-self.eps, self.eps)
        return self._pgd(images, labels, (images + noise).clamp(0, 1), steps=1)


class MIFGSM(_Targetable):
    """:class:`soatfast.attacks.MIFGSM`, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 1.0,
    ):
        super().__init__("MIFGSM", model)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        attack = attacks.MIFGSM(
            eps=self.eps,
            step_size=self.alpha,
            steps=self.steps,
            decay=self.decay,
            targeted=self.targeted,
            mode="keep",
        )
        return self._run(attack, *self._inputs(images, labels))


class PGDL2(_Targetable):
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


class TPGD(_Targetable):
    """PGD, Linf, on the Kullback-Leibler divergence from the clean prediction (TRADES' attack); labels have no use."""

    def __init__(self, model: nn.Module, eps: float = 8 / 255, alpha: float = 2 / 255, steps: int = 10):
        super().__init__("TPGD", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps

    def forward(self, images: Tensor, labels: Labels = None) -> Tensor:  # type: ignore[override]
        images = self._images(images)
        nobody = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        with InputGradient(Logits(self), mode="keep") as oracle:
            oracle.loss(images, nobody)
            clean = oracle.logits
        assert clean is not None

        def divergence(logits: Tensor, y: Tensor) -> Tensor:
            p = clean.to(logits.dtype).softmax(1)
            return F.kl_div(logits.log_softmax(1), p, reduction="none").sum(1)

        start = (images + 0.001 * torch.randn_like(images)).clamp(0, 1)
        return self._pgd(images, nobody, start, objective=divergence)
