"""PGD from a point near x, the inner attack of TRADES and MART."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import check_noise
from soatfast.attacks.pgd import PGD

# TRADES, CIFAR-10: Linf steps of 0.007 at eps 0.031, 10 of them; L2 steps of 2 eps / steps.
_REACH = {math.inf: 0.007 * 10 / 0.031, 2: 2.0}


@dataclass(frozen=True, kw_only=True, eq=False)
class NearPGD(PGD):
    r"""PGD that starts at x + ``noise`` N(0, I), as TRADES (Zhang et al. 2019) and MART (Wang et al. 2020) do.

    The start is in neither ball nor box (with ``early_stop`` it is projected), every later iterate is in both:
    x_{k+1} = project(x_k + step_size step_p(g)).

    Args:
        noise: standard deviation of the start, in input units; a number or a tensor (C, 1, 1).
        step_size: None means the papers' 0.007 at eps = 0.031 and 10 steps, in proportion to eps / steps (2.26 times
            it); for p = 2 it means 2 eps / steps.

    With a memory the start is x + v + ``noise`` N(0, I), v the sample's perturbation of its last visit: at v = 0 the
    divergence of TRADES has no gradient.

    All else, and the passes, as :class:`~soatfast.attacks.PGD`; p is 2 or inf.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(3, 1, 2, 2)
    >>> attack = NearPGD(eps=0.1, steps=5)
    >>> x_adv = attack(model, x, torch.tensor([0, 1, 0]))
    >>> bool((x_adv - x).abs().max() <= 0.1 + 1e-6), attack.passes().forward
    (True, 5)
    """

    noise: float | Tensor = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in _REACH:
            raise ValueError(f"p must be 2 or math.inf for {type(self).__name__}, got {self.p!r}")
        check_noise(self.noise, "noise")

    def _alpha(self) -> float | Tensor:
        return _REACH[self.p] * self.eps / self.steps if self.step_size is None else self.step_size

    def _resumed(self, start: Tensor) -> Tensor:
        return self._start(start) if self.random_start else start

    def _start(self, x: Tensor) -> Tensor:
        start = x + self.noise * self._free(torch.empty_like(x).normal_(generator=self.generator))
        # A sample that is fooled at its start stays there: it has to be in ball and box.
        return ops.project(start, x, self.p, self.eps, bounds=self.bounds) if self.early_stop else start
