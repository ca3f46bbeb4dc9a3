"""A cheap watch for catastrophic overfitting of single-step adversarial training."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from soatfast.attacks import FGSM, PGD, Attack
from soatfast.gradients.checks import check_batch
from soatfast.gradients.passes import Passes, passes_of
from soatfast.losses.alignment import pert_align
from soatfast.ops.arguments import check_radius, check_steps

__all__ = ["GuardReading", "OverfittingGuard", "OverfittingWarning"]


class OverfittingWarning(UserWarning):
    """The model answers the one-step attack it is trained on, and no stronger one."""


@dataclass(frozen=True)
class GuardReading:
    """What one :meth:`OverfittingGuard.check` saw. All figures are Python numbers, so JSON takes ``vars(reading)``.

    epoch: as given to check. pert_align: PertAlign, in [-1, 1]. one_step_accuracy: share of the probe that is
    classified right at x and after the one-step attack. probe_accuracy: share that also withstands PGD; None where PGD
    was not run. fired: train the next epoch with more attack steps.
    """

    epoch: int
    pert_align: float
    one_step_accuracy: float
    probe_accuracy: float | None
    fired: bool

    @property
    def survival(self) -> float | None:
        """probe_accuracy / one_step_accuracy, what the alarm goes by; None where PGD was not run."""
        return None if self.probe_accuracy is None else self.probe_accuracy / self.one_step_accuracy

    def __str__(self) -> str:
        pgd = "PGD not run" if self.probe_accuracy is None else f"{self.probe_accuracy:.0%} withstand PGD"
        return (
            f"after epoch {self.epoch} the probe's accuracy is {self.one_step_accuracy:.0%} under the one-step attack, "
            f"{pgd}; PertAlign {self.pert_align:.2f}"
        )


class OverfittingGuard:
    r"""Reads, once an epoch, on a fixed probe batch whether robustness to one step is robustness at all.

        x' = clamp(x + lmo_p(g; eps)),   g = g(x),   g' = g(x'),   PertAlign = mean_i cos(g_i, g'_i)      (SORA)
        S = {i: right at x_i and at x'_i},   survival = #{i in S: right after PGD} / #S
        alarm:  PertAlign < align,  #S >= least  and  survival < survive;  it lasts until survival >= recover

    PertAlign is 0 for samples without a gradient, so a network that hides its gradients is attacked. Above ``align``
    the loss is nearly linear in the ball, and PGD is not worth its passes.

    Survival tells a collapse from a sound training. PertAlign alone does not: it falls as far in PGD-10 training. One
    probe may miss a partial collapse. A network that has collapsed once mostly does so again in the first epoch of one
    step, hence recover = 1: the alarm stays.

    Args:
        x, y: the probe, (B, ...) with labels (B,); about 100 training samples (held-out ones would leak into training),
            on the model's device. Copied.
        attack: the training attack at full radius; its eps, p, bounds, objective and engine are used. The probe is
            attacked from x, whatever start the training attack has. The model predicts in eval mode.
        steps: of PGD, with its default step size and a random start; the same start in every reading.
        align, survive, recover, least: the thresholds above; align > 1 runs PGD in every reading, recover < 1 lets
            survival end an alarm, fewer than ``least`` survivors neither start nor end one.
        seed: of PGD's start; torch's random state is neither used nor changed.
        warn: emit an :class:`OverfittingWarning` with each reading that fired.

    Defaults: PGD-10; the thresholds were tried on mnist5k with SmallCNN, at eps 0.2 and 0.3.

    Raises:
        TypeError: attack is no Attack; x or y have a wrong dtype.
        ValueError: the probe is empty, lengths differ, x lies outside the attack's bounds, the attack is targeted, has
            per-sample radii or a p that PGD does not know, or a threshold is out of range.

    Passes: 2 forwards and 2 backwards to the input of B samples; with PGD ``steps`` of both and 1 forward more, of #S
    samples. With B = 100 that is 1/40 of a one-step epoch of 40 batches of 100; with PGD on half of them about 1/11.

    >>> import torch
    >>> from soatfast.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x, y = torch.rand(20, 1, 2, 2), torch.zeros(20, dtype=torch.int64)
    >>> guard = OverfittingGuard(x, y, PGD(eps=0.1, steps=1))
    >>> reading = guard.check(model, epoch=1)
    >>> round(reading.pert_align, 4), reading.probe_accuracy, reading.fired  # a linear model cannot overfit this way
    (1.0, None, False)
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        attack: Attack,
        *,
        steps: int = 10,
        align: float = 0.8,
        survive: float = 0.5,
        recover: float = 1.0,
        least: int = 10,
        seed: int = 0,
        warn: bool = True,
    ) -> None:
        if not isinstance(attack, Attack):
            raise TypeError(f"attack must be one of soatfast.attacks, got {type(attack).__name__}")
        if attack.targeted:
            raise ValueError("the guard needs an untargeted attack: it is given the true labels, got targeted=True")
        check_batch(x, y, attack.bounds)
        if x.numel() == 0:
            raise ValueError("the guard needs a probe of at least one sample")
        check_steps(steps)
        check_steps(least, "least")
        if not -1 <= align <= 1.5:
            raise ValueError(f"align must lie in -1..1.5 (above 1: PGD in every reading), got {align!r}")
        if not 0 <= survive <= recover <= 1:
            raise ValueError(f"need 0 <= survive <= recover <= 1, got survive {survive!r}, recover {recover!r}")
        common: dict[str, Any] = {name: getattr(attack, name) for name in ("p", "bounds", "objective", "engine")}
        eps = _radius(attack.eps)
        self.x, self.y = x.detach().clone(), y.detach().clone()
        self._one_step = FGSM(eps=eps, **common)
        self._pgd = PGD(eps=eps, steps=steps, generator=torch.Generator(x.device), **common)
        self.align, self.survive, self.recover, self.least = align, survive, recover, least
        self.seed, self.warn = seed, warn
        self.alarmed = False

    def check(self, model: nn.Module, epoch: int, eps: float | Tensor | None = None) -> GuardReading:
        """The reading of `model` after `epoch`; eps is the current radius of a ramp (None: the attack's).

        Leaves the model (flags, buffers, gradients) and all random states as they were. In a process group every rank
        has to call it: all get rank 0's reading, as ranks may differ in batch-norm statistics.
        """
        radius = self._one_step.eps if eps is None else _radius(eps)
        align, kept, held = self._measure(model, radius)
        if dist.is_available() and dist.is_initialized():
            figures = torch.tensor([align, kept, held], dtype=torch.float32, device=self.x.device)
            dist.broadcast(figures, 0)
            align, kept, held = figures[0].item(), int(figures[1]), int(figures[2])
        attacked = held >= 0
        if align >= self.align:
            self.alarmed = False
        elif attacked:
            self.alarmed = held < (self.recover if self.alarmed else self.survive) * kept
        n = len(self.x)
        reading = GuardReading(epoch, align, kept / n, held / n if attacked else None, self.alarmed)
        if reading.fired and self.warn:
            warnings.warn(f"catastrophic overfitting: {reading}", OverfittingWarning, stacklevel=2)
        return reading

    def _measure(self, model: nn.Module, eps: float | Tensor) -> tuple[float, int, int]:
        """(PertAlign, #S, those of S that withstand PGD or -1 where it was not run)."""
        one_step, pgd = self._one_step.with_eps(eps), self._pgd.with_eps(eps)
        x, y = self.x, self.y
        with one_step.oracle(model) as oracle:
            g = oracle.gradient(x, y)
            right = ~oracle.fooled(y)
            x_adv = one_step.run(oracle, x, y, g)
            h = oracle.gradient(x_adv, y)
            right &= ~oracle.fooled(y)
            align = float(pert_align(g, h))
            kept = int(right.sum())
            if align >= self.align or kept < self.least:
                return align, kept, -1
            x, y = x[right], y[right]
            assert pgd.generator is not None
            pgd.generator.manual_seed(self.seed)  # the same start each time: an exact resume needs no random state
            x_adv = pgd.run(oracle, x, y)
            oracle.loss(x_adv, y)
            return align, kept, int((~oracle.fooled(y)).sum())

    def passes(self, survivors: int = 0) -> Passes:
        """Passes of one reading in which PGD attacked `survivors` samples (0: it was not run)."""
        passes = passes_of(len(self.x), forward=2, backward_input=2)
        if survivors:
            passes += self._pgd.passes(survivors) + passes_of(survivors, forward=1)
        return passes

    def state_dict(self) -> dict[str, Any]:
        """What decides later readings besides the arguments, in JSON's terms."""
        return {"alarmed": self.alarmed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.alarmed = bool(state["alarmed"])


def _radius(eps: float | Tensor) -> float:
    check_radius(eps)
    if isinstance(eps, Tensor) and eps.numel() != 1:
        raise ValueError(f"the guard needs one radius for all samples, got eps of shape {tuple(eps.shape)}")
    return float(eps)
