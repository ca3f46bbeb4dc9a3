"""Patch-wise iterative FGSM (Gao et al. 2020): what a pixel cannot take goes to those around it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import Attack
from soatfast.attacks.smoothing import check_kernel, smoothed
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import check_number, check_steps, to_multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class PIFGSM(Attack):
    r"""Large steps; the part that would leave the ball is handed to the 8 pixels around, p = inf (algorithm 1).

        alpha = amplification eps / steps;   a <- a + alpha sgn(g);   c = max(|a| - eps, 0) sgn(a)
        r = project_factor alpha sgn(W c);   a <- a + r;   x_{k+1} = project(x_k + alpha sgn(g) + r)

    W is the mean of the 8 neighbours, a starts at 0. PI-FGSM++ (Gao et al. 2020b) smooths g by a ``kernel`` first, and
    leaves r out of a (``carried=False``); its project_factor is 0.8 and its kernel ``gaussian_kernel(3)``.

    Args:
        steps: gradient steps.
        amplification: the paper's beta, > 0.
        project_factor: the paper's gamma over beta eps / steps, >= 0; 0 is the iterative FGSM with large steps.
        carried: whether r is added to a.
        kernel: as :class:`~soatfast.attacks.MIFGSM`'s.

    Defaults of the paper: 10 steps, amplification 10, on ImageNet eps 16/255; here eps = 8/255. Images (B, C, H, W).

    Passes: steps forwards and backwards to the input.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> x = torch.full((1, 1, 4, 4), 0.5)
    >>> attack = PIFGSM(eps=0.1, steps=5)
    >>> round(float((attack(model, x, torch.tensor([1])) - x).abs().max()), 4), attack.passes().forward
    (0.1, 5)
    """

    steps: int = 10
    amplification: float = 10.0
    project_factor: float = 1.0
    carried: bool = True
    kernel: Tensor | None = None

    watchable = True
    _recordable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p != math.inf:
            raise ValueError(f"p must be math.inf for PIFGSM, got {self.p!r}")
        check_steps(self.steps)
        check_number(self.amplification, "amplification")
        check_number(self.project_factor, "project_factor", above=False)
        if self.kernel is not None:
            check_kernel(self.kernel)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"PIFGSM takes images (B, C, H, W), got shape {tuple(x.shape)}")
        eps = to_multiply(self.eps, "eps", x)
        alpha = eps / self.steps * self.amplification
        around = torch.full((3, 3), 1 / 8, dtype=x.dtype, device=x.device)
        around[1, 1] = 0
        x_adv, total = x, torch.zeros_like(x)
        for k in range(self.steps):
            g = g0 if k == 0 and g0 is not None else oracle.gradient(x_adv, y)
            if self.kernel is not None:
                g = smoothed(g, self.kernel)
            step = alpha * self._free(g).sign()
            total = total + step
            cut = (total.abs() - eps).clamp_min(0) * total.sign()
            passed_on = self._free(alpha * self.project_factor * smoothed(cut, around).sign())
            if self.carried:
                total = total + passed_on
            x_adv = ops.project(x_adv + step + passed_on, x, self.p, self.eps, bounds=self.bounds)
        return x_adv

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=self.steps, backward_input=self.steps)
