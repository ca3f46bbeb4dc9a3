"""Fast gradient sign method (Goodfellow et al. 2015), for any L^p ball."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import Attack
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of


@dataclass(frozen=True, kw_only=True, eq=False)
class FGSM(Attack):
    r"""One step to the maximiser of the linearised objective.

        x_adv = clamp(x + lmo_p(g; eps))

    For p = inf that is x + eps sgn(g); for p = 2 x + eps g/||g||_2; for p = 1 all of eps on one entry. No random start.

    Defaults: eps = 8/255 in Linf (the CIFAR-10 convention).

    Passes: 1 forward, 1 backward to the input.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.full((1, 1, 2, 2), 0.5)
    >>> (FGSM(eps=0.25)(model, x, torch.tensor([0])) - x).abs().unique()
    tensor([0.2500])
    """

    watchable = True
    _recordable = True

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if g0 is None:
            g0 = oracle.gradient(x, y)
        return (x + ops.lmo(g0, self.p, self.eps)).clamp_(*self.bounds)  # type: ignore[arg-type]

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=1, backward_input=1)
