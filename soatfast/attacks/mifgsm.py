"""Momentum iterative FGSM (Dong et al. 2018) in the Linf and L2 ball, and the attacks that were made of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import Attack, check_step_size
from soatfast.attacks.early_stop import EarlyStop, check_early_stop
from soatfast.attacks.smoothing import check_kernel, smoothed
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import as_column, check_flag, check_number, check_steps, to_multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class MIFGSM(Attack):
    r"""Steps along a decaying sum of normalised gradients, from x (equations 6, 7 and 9 of Dong et al.).

        m_{k+1} = decay m_k + g_k / mean|g_k|;   x_{k+1} = project(x_k + step_size step_p(m_{k+1}))

    step_inf(m) = sgn(m). For p = 2 the step is the maximiser over ball and box (:func:`soatfast.ops.lmo` at x_k), which
    is step_size m/||m||_2 where the box is far; projection on ball and box. A gradient that is zero or not finite adds
    nothing: the momentum alone makes that step. The paper divides by ||g||_1, which makes the same steps; the mean is
    that of its authors' code, and decides how far the look-ahead is. g_k is the gradient at x_k, or:

        NI-FGSM (Lin et al. 2020, equation 6):  ``nesterov``,  g at x_k + step_size decay m_k
        SI-NI-FGSM (there, equation 8):  ``scales``,  the mean over i < scales of g at x_k / 2^i
        VMI-, VNI-FGSM (Wang and He 2021, equation 5):  ``neighbours``,  g_k + v_k
        v_{k+1} = mean over U of g(x_k + U) - g_k,   U uniform in [-reach eps, reach eps]
        TI-FGSM (Dong et al. 2019, equation 7):  ``kernel``,  kernel * g
        DI-FGSM (Xie et al. 2019):  ``forward=ResizePad()``

    They may be combined. Images are scaled towards the lower bound of the box.

    Args:
        steps: gradient steps.
        step_size: in input units; None means eps / steps, the paper's.
        decay: the paper's mu, >= 0; 0 is the iterative FGSM.
        early_stop, stop_after: as of :class:`~soatfast.attacks.PGD`: a sample is done once the model is fooled.
        nesterov: look ahead along the momentum; p = inf.
        scales: how many copies of the image, each half as bright as the one before it.
        neighbours: how many points near x_k the gradient's variance is measured at; p = inf.
        reach: the radius of their neighbourhood, in radii of the ball; the paper's beta.
        kernel: (h, w), or (C, h, w) one a channel, see :func:`~soatfast.attacks.gaussian_kernel`; images (B, C, H, W).
        generator: random numbers of the neighbours; on x's device.

    Defaults of the papers: decay 1, 10 steps, on ImageNet eps 16/255 (here 8/255); 5 scales; 20 neighbours within 1.5
    radii; a Gaussian kernel of size 15.

    Passes: scales (steps + neighbours (steps - 1)) forwards and backwards to the input; with ``early_stop`` at most.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.full((1, 1, 2, 2), 0.5)
    >>> attack = MIFGSM(eps=0.1, steps=5)
    >>> round(float((attack(model, x, torch.tensor([1])) - x).abs().max()), 4), attack.passes().forward
    (0.1, 5)
    >>> MIFGSM(steps=5, nesterov=True, scales=3).passes().forward, MIFGSM(steps=5, neighbours=2).passes().forward
    (15, 13)
    """

    steps: int = 10
    step_size: float | Tensor | None = None
    decay: float = 1.0
    early_stop: bool = False
    stop_after: int = 0
    nesterov: bool = False
    scales: int = 1
    neighbours: int = 0
    reach: float = 1.5
    kernel: Tensor | None = None
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

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
        check_flag(self.nesterov, "nesterov")
        check_steps(self.scales, "scales")
        check_steps(self.neighbours, "neighbours", least=0)
        check_number(self.reach, "reach", above=False)
        if self.kernel is not None:
            check_kernel(self.kernel)
        if self.p != math.inf and (self.nesterov or self.neighbours):
            raise ValueError(f"nesterov and neighbours need p = math.inf, got p = {self.p!r}")
        if self.early_stop and (self.nesterov or self.scales > 1 or self.neighbours):
            raise ValueError(
                "early_stop sees what the model says of x_k itself: not with nesterov, scales or neighbours"
            )

    def with_steps(self, steps: int) -> MIFGSM:
        """With another number of steps, and the default step size for it: a given one was meant for the old number."""
        return dataclasses.replace(self, steps=steps, step_size=None)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        alpha = self.eps / self.steps if self.step_size is None else self.step_size
        ahead = to_multiply(alpha, "eps" if self.step_size is None else "step_size", x) if self.nesterov else 0.0
        step = self._stepper(x, alpha)
        x_adv, momentum, variance = self._start(x), torch.zeros_like(x), None
        stop = EarlyStop(self, oracle, x, y) if self.early_stop else None
        for k in range(self.steps):
            if stop is not None:
                if stop.stopped():
                    break
                g = stop.gradient(x_adv)
            elif k == 0 and g0 is not None and self.scales == 1:
                g = g0
            else:
                g = self._gradient(oracle, x_adv + self.decay * ahead * momentum if self.nesterov else x_adv, y)
            momentum = self._accumulated(momentum, g if variance is None else g + variance)
            if self.neighbours and k < self.steps - 1:  # the last step's would be used by nobody
                variance = self._around(oracle, x_adv, y) - g
            moved = step(x_adv, momentum)
            x_adv = moved if stop is None else stop.moved(x_adv, moved)
        return x_adv

    def _start(self, x: Tensor) -> Tensor:
        return x

    def _gradient(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        """The mean of the gradients at the scaled copies, by x."""
        if self.scales == 1:
            return oracle.gradient(x, y)
        lower = torch.as_tensor(self.bounds[0], dtype=x.dtype, device=x.device)
        lower = torch.where(lower.isfinite(), lower, 0.0)
        total = torch.zeros_like(x)
        for i in range(self.scales):
            total += 0.5**i * oracle.gradient(lower + 0.5**i * (x - lower), y)
        return total / self.scales

    def _accumulated(self, momentum: Tensor, g: Tensor) -> Tensor:
        """The next momentum."""
        if self.kernel is not None:
            g = self._free(smoothed(g, self.kernel))
        return self.decay * momentum + _of_mean_1(g)

    def _around(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        """The mean gradient at the neighbours of x."""
        total = torch.zeros_like(x)
        for _ in range(self.neighbours):
            total += self._gradient(oracle, x + self._offset(x), y)
        return total / self.neighbours

    def _offset(self, x: Tensor) -> Tensor:
        """From a point to one of its neighbours."""
        noise = self._free(torch.empty_like(x).uniform_(-1, 1, generator=self.generator))
        return self.reach * to_multiply(self.eps, "eps", x) * noise

    def _stepper(self, x: Tensor, alpha: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x_adv, m) -> the next x_adv."""
        if self.p == math.inf:
            return ops.pgd_stepper(x, self.p, self.eps, alpha, bounds=self.bounds)

        def step(x_adv: Tensor, m: Tensor) -> Tensor:
            moved = x_adv + ops.lmo(m, self.p, alpha, x=x_adv, bounds=self.bounds)
            return ops.project(moved, x, self.p, self.eps, bounds=self.bounds, exact=True)

        return step

    def passes(self, batch: int = 1) -> Passes:
        times = self.scales * (self.steps + self.neighbours * (self.steps - 1))
        return passes_of(batch, forward=times, backward_input=times)


def _of_mean_1(g: Tensor) -> Tensor:
    """g/mean|g| of each sample; 0 where it is zero or not finite."""
    mean = as_column(ops.lp_norm(g, 1).to(g.dtype) / max(g[0].numel(), 1), g)
    return torch.nan_to_num(g / mean, nan=0.0, posinf=0.0, neginf=0.0)
