"""Momentum iterative FGSM (Dong et al. 2018) in the Linf and L2 ball."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import Attack, check_step_size
from soatfast.attacks.early_stop import EarlyStop, check_early_stop
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import as_column, check_number, check_steps


@dataclass(frozen=True, kw_only=True, eq=False)
class MIFGSM(Attack):
    r"""Steps along a decaying sum of normalised gradients, from x (equations 6, 7 and 9 of the paper).

        m_{k+1} = decay m_k + g(x_k) / ||g(x_k)||_1;   x_{k+1} = project(x_k + step_size step_p(m_{k+1}))

    step_inf(m) = sgn(m), step_2(m) = m/||m||_2; projection on the ball, then on the box. A gradient that is zero or not
    finite adds nothing: the momentum alone makes that step.

    Args:
        steps: gradient steps.
        step_size: in input units; None means eps / steps, the paper's.
        decay: the paper's mu, >= 0; 0 is the iterative FGSM.
        early_stop, stop_after: as of :class:`~soatfast.attacks.PGD`: a sample is done once the model is fooled.

    Defaults of the paper: decay 1, 10 steps, on ImageNet eps 16/255; here eps = 8/255.

    Passes: steps forwards and backwards to the input; with ``early_stop`` at most.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.full((1, 1, 2, 2), 0.5)
    >>> attack = MIFGSM(eps=0.1, steps=5)
    >>> round(float((attack(model, x, torch.tensor([1])) - x).abs().max()), 4), attack.passes().forward
    (0.1, 5)
    """

    steps: int = 10
    step_size: float | Tensor | None = None
    decay: float = 1.0
    early_stop: bool = False
    stop_after: int = 0

    watchable = True
    _recordable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (2, math.inf):
            raise ValueError(f"p must be 2 or math.inf for MIFGSM, got {self.p!r}")
        check_steps(self.steps)
        check_step_size(self)
        check_number(self.decay, "decay", above=False)
        check_early_stop(self)

    def with_steps(self, steps: int) -> MIFGSM:
        """With another number of steps, and the default step size for it: a given one was meant for the old number."""
        return dataclasses.replace(self, steps=steps, step_size=None)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        alpha = self.eps / self.steps if self.step_size is None else self.step_size
        x_adv, momentum = x, torch.zeros_like(x)
        stop = EarlyStop(self, oracle, x, y) if self.early_stop else None
        for k in range(self.steps):
            if stop is not None:
                if stop.stopped():
                    break
                g = stop.gradient(x_adv)
            else:
                g = g0 if k == 0 and g0 is not None else oracle.gradient(x_adv, y)
            momentum = self.decay * momentum + _of_length_1(g)
            moved = ops.pgd_step(x_adv, momentum, x, self.p, self.eps, alpha, bounds=self.bounds)
            x_adv = moved if stop is None else stop.moved(x_adv, moved)
        return x_adv

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=self.steps, backward_input=self.steps)


def _of_length_1(g: Tensor) -> Tensor:
    """g/||g||_1 of each sample; 0 where it is zero or not finite."""
    length = as_column(ops.lp_norm(g, 1).to(g.dtype), g)
    return torch.nan_to_num(g / length, nan=0.0, posinf=0.0, neginf=0.0)
