"""Jitter (Schwinn et al. 2021): PGD on noisy, rescaled predictions, which seeks the smallest change that fools."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from soatfast.attacks.base import Model
from soatfast.attacks.pgd import PGD
from soatfast.gradients.oracle import InputGradient
from soatfast.ops.arguments import as_column, check_number


@dataclass(frozen=True, kw_only=True, eq=False)
class Jitter(PGD):
    r"""PGD on the squared distance of scaled predictions with noise from the label, p = inf (section 3 of the paper).

        q = softmax(scale z / ||z||_inf) + std N(0, I);   l = mean_k (q_k - 1[k = y])^2

    Where the model is fooled already, l / ||x_adv - x||_inf is raised in its place. The scale keeps the gradient of a
    confident model from vanishing, the noise makes the attack try other classes.

    Args:
        scale: the paper's alpha, > 0.
        std: of the noise, >= 0.
        generator: random numbers of start and noise; on x's device.

    Defaults of the paper's code: scale 10, std 0.1. ``objective`` stays "ce": the loss is the one above. All else, and
    the passes, as :class:`~soatfast.attacks.PGD`.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 2])
    >>> attack = Jitter(eps=0.1, steps=5)
    >>> bool((attack(model, x, y) - x).abs().max() <= 0.1 + 1e-6), attack.passes().forward
    (True, 5)
    """

    scale: float = 10.0
    std: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p != math.inf:
            raise ValueError(f"p must be math.inf for Jitter, got {self.p!r}")
        check_number(self.scale, "scale")
        check_number(self.std, "std", above=False)
        if self.objective != "ce":
            raise ValueError(f'Jitter has a loss of its own: leave objective at "ce", got {self.objective!r}')

    def check_replay(self) -> None:
        """Its loss depends on how far the example is from x in one call."""
        raise TypeError("Jitter cannot go on from a memory; FrankWolfe and PGD can")

    def oracle(self, model: Model) -> _Gradient:
        return _Gradient(self, model)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if not isinstance(oracle, _Gradient):
            raise TypeError(f"Jitter needs its own oracle, attack.oracle(model), got {type(oracle).__name__}")
        oracle.centre = x
        return super()._perturb(oracle, x, y, None)

    def _won(self, oracle: InputGradient, y: Tensor) -> Tensor:
        """(B,) bool: whose loss is divided by the distance."""
        return oracle.fooled(y)


class _Gradient(InputGradient):
    """The loss and its gradient; one draw of noise a pass."""

    def __init__(self, attack: Jitter, model: Model):
        super().__init__(
            model,
            self._distance,
            attack.mode,
            attack.engine,
            attack.targeted,
            output=attack.output,
            forward=attack.forward,
            classes=True,
        )
        self.attack = attack
        self.centre: Tensor | None = None
        self.noise: Tensor | float = 0.0

    def _forward(self, x: Tensor, y: Tensor, own: bool = True) -> Tensor:
        logits = super()._forward(x, y, own)
        if self.attack.std:
            wide = logits.dtype if logits.dtype.itemsize > 2 else torch.float32
            noise = torch.empty(logits.shape, dtype=wide, device=logits.device)
            self.noise = self.attack.std * noise.normal_(generator=self.attack.generator)
        return logits

    def _distance(self, logits: Tensor, y: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(logits, math.inf, dim=1, keepdim=True)
        q = (self.attack.scale * logits / size.clamp_min(torch.finfo(logits.dtype).tiny)).softmax(1) + self.noise
        label = torch.zeros_like(logits).scatter(1, y.long().unsqueeze(1), 1.0)  # one_hot reads the device
        return (q - label).square().mean(1)

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        return self(x, y)[1]

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, g = super().__call__(x, y)
        assert self.centre is not None, "_perturb has set it"
        delta = x - self.centre
        size = delta.abs().flatten(1).amax(1)
        divided = self.attack._won(self, y) & (size > 0)
        safe = as_column(torch.where(divided, size, 1.0), g)
        at = delta.abs() == as_column(size, g)  # where the norm grows
        slope = delta.sign() * at / as_column(at.flatten(1).sum(1), g)
        of_ratio = g / safe - as_column(loss, g).to(g.dtype) / safe.square() * slope
        loss = torch.where(divided, loss / safe.flatten().to(loss.dtype), loss)
        return loss, torch.where(as_column(divided, g), of_ratio, g)
