"""Fast gradient sign method (Goodfellow et al. 2015), for any L^p ball."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import Attack, check_step_size
from soatfast.attacks.pgd import PGD
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import norm_order


@dataclass(frozen=True, kw_only=True, eq=False)
class FGSM(Attack):
    r"""One step to the maximiser of the linearised objective.

        x_adv = clamp(x + lmo_p(g; eps))

    For p = inf that is x + eps sgn(g). For p = 1 and 2 the maximiser is that of ball and box (:func:`soatfast.ops.lmo`
    at x): for p = 2 the multiple of g, clipped to the box, that has norm eps; for p = 1 the entries of largest |g| are
    moved to the box's edge until eps is spent. For another p it is the ball's, clamped.

    With ``random_start`` it is FGSM-RS (Wong et al., ICLR 2020, Algorithm 3), one step of PGD from a random point z:

        z = clamp(x + eps U),   x_adv = project(z + step_size step_p(g(z))),   U uniform in the unit ball

    Args:
        random_start: begin at z; p is 1, 2 or inf then.
        step_size: with ``random_start``, in input units; None means 1.25 eps (the authors').
        generator: random numbers of z; on x's device.

    Defaults: eps = 8/255 in Linf (the CIFAR-10 convention), no random start.

    Passes: 1 forward, 1 backward to the input.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.full((1, 1, 2, 2), 0.5)
    >>> (FGSM(eps=0.25)(model, x, torch.tensor([0])) - x).abs().unique()
    tensor([0.2500])
    >>> bool((FGSM(eps=0.25, random_start=True)(model, x, torch.tensor([0])) - x).abs().max() <= 0.25)
    True
    """

    random_start: bool = False
    step_size: float | Tensor | None = None
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    watchable = True
    _recordable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_step_size(self)
        if self.step_size is not None and not self.random_start:
            raise ValueError(f"step_size needs random_start=True: without it the step is eps, got {self.step_size!r}")
        if self.random_start and self.p not in (1, 2, math.inf):
            raise ValueError(f"p must be 1, 2 or math.inf for FGSM with random_start, got {self.p!r}")

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if self.random_start:
            step = 1.25 * self.eps if self.step_size is None else self.step_size
            one = PGD(eps=self.eps, p=self.p, bounds=self.bounds, mask=self.mask, steps=1, step_size=step)
            return replace(one, generator=self.generator)._perturb(oracle, x, y, None)
        if g0 is None:
            g0 = oracle.gradient(x, y)
        if norm_order(self.p) in (1, 2):
            s = ops.lmo(g0, self.p, self.eps, x=x, bounds=self.bounds)
        else:
            s = ops.lmo(g0, self.p, self.eps)
        return (x + s).clamp_(*self.bounds)  # type: ignore[arg-type]

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=1, backward_input=1)
