"""STN, stability training with noise (Li, Chen, Wang and Carin 2019, arXiv 1809.03113)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from soatfast.attacks import ASOD
from soatfast.gradients.checks import check_batch
from soatfast.gradients.objectives import soft_cross_entropy
from soatfast.gradients.oracle import Mode
from soatfast.gradients.passes import Passes
from soatfast.losses.base import Loss, Step, fields_of, mean
from soatfast.losses.regulariser import UNBOUNDED
from soatfast.ops.arguments import Bounds, check_number


@dataclass(frozen=True, kw_only=True, eq=False)
class STN(Loss):
    r"""Stability training: the prediction at x', which is x with noise, is drawn towards that at x.

        mean_i [ l_i(x) + strength CE(softmax f(x), softmax f(x')) ],   CE(a, b) = -sum_k a_k log b_k

    noise "gauss": x' = x + u, u ~ N(0, sigma^2 I), not clamped. "asod": x' is the attack
    :class:`~soatfast.attacks.ASOD` of radius eps.

    Differentiated by the parameters: both predictions, as the paper's text has it. Held fixed: u and the attack. The
    authors' code takes the clean logits themselves as the target, without softmax; here it is the softmax.

    Args:
        noise: "gauss" or "asod".
        strength: weight, >= 0.
        sigma: standard deviation of the noise in input units, also of the attack's, >= 0.
        eps: radius in input units, of "asod", which needs it; a number or a tensor of shape () or (B,).
        p, bounds, steps, samples, mode: of the attack; without use for "gauss".
        generator: random numbers of the noise; on x's device.

    Defaults: the paper's for CIFAR-10, strength 1, sigma 100/255 (0.7 for MNIST); of the attack its own.

    Passes: 2 forwards and 1 backward to the parameters through both; with "asod" steps * samples forwards and backwards
    to the input more.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = STN(noise="asod", eps=0.1, steps=2, samples=3)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (8, 6, 1)
    """

    noise: Literal["gauss", "asod"] = "gauss"
    strength: float = 1.0
    sigma: float = 100 / 255
    eps: float | Tensor | None = None
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    steps: int = 20
    samples: int = 10
    mode: Mode = "eval"
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    eps_with: ClassVar[tuple[str, str]] = ("noise", "asod")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.noise not in ("gauss", "asod"):
            raise ValueError(f'noise must be "gauss" or "asod", got {self.noise!r}')
        check_number(self.strength, "strength", above=False)
        check_number(self.sigma, "sigma", above=False)
        if self.noise == "asod" and self.eps is None:
            raise ValueError('noise "asod" needs eps, the radius of the ball, got None')
        if self.noise == "gauss" and self.eps is not None:
            raise ValueError(f'eps belongs to noise "asod", got {self.eps!r} for "gauss"')
        _ = self.attack  # making it checks the rest

    @property
    def attack(self) -> ASOD | None:
        """The attack that gives x', or None for "gauss"."""
        if self.eps is None:
            return None
        return fields_of(ASOD, self)

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        attack = self.attack
        if attack is None:
            check_batch(x, y, UNBOUNDED, self._labels)
            noisy = x.detach() + self.sigma * torch.empty_like(x).normal_(generator=self.generator)
        else:
            noisy = attack(model, x, y)
        logits, moved = self._logits(model, x, y), self._logits(model, noisy, y)
        return mean(self._values(logits, y) + self.strength * soft_cross_entropy(logits, moved)), moved

    def passes(self, batch: int = 1) -> Passes:
        both = Passes(2, 0, 1, 2 * batch, 0, 2 * batch)
        attack = self.attack
        return both if attack is None else attack.passes(batch) + both

    def with_eps(self, eps: float | Tensor) -> STN:
        return self if self.noise == "gauss" else dataclasses.replace(self, eps=eps)

    def with_steps(self, steps: int) -> STN:
        if self.noise == "gauss":
            raise NotImplementedError("STN with Gaussian noise has no attack steps")
        return dataclasses.replace(self, steps=steps)
