"""Projected gradient descent (Madry et al. 2018) in the Linf, L2 and L1 ball."""

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
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.memory.visit import Visit
from soatfast.ops.arguments import as_column, check_steps, to_multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class PGD(Attack):
    r"""Projected gradient ascent on the loss, from a random point of the ball (Madry et al. 2018).

        x_{k+1} = project(x_k + step_size step_p(g(x_k)));   step_inf(g) = sgn(g);   step_2(g) = g/||g||_2

    step_1(g) = sgn(g)/k on the 1 % largest |g| (SLIDE, Tramer and Boneh 2019). Projection on the ball, then on the box
    (p = 1: exactly on their intersection, as Croce and Hein 2021).

    Args:
        steps: gradient steps.
        step_size: in input units; None means 2.5 eps / steps (Madry et al.), so that the ball's edge is in reach.
        random_start: uniform in the L^p ball (p = inf: uniform per entry); False starts at x.
        restarts: independent attempts; the strongest is returned for each sample.
        best: return the strongest iterate of the path, not the last one. Stronger means: fools the model, then
            the higher objective.
        early_stop: a sample is done once the model is fooled (targeted: once the target is reached). It stays at that
            point and, where the mode allows it, leaves the passes: not with batch statistics (mode "train", or "keep"
            of a model with batch norm in train mode), nor under FSDP or a compiled model, where it stands still in each
            step that finds it fooled. Costs one host read a step; takes labels, and no engine with "graph".
        stop_after: tau of early-stopped training (FAT, Zhang et al. 2020, Algorithm 1): this number of further steps is
            taken at points that fool the model. Needs early_stop.
        generator: random numbers of the start; on x's device.

    With a memory (``AdversarialTraining(attack, memory=memory)``) a sample starts where its last visit left it, as in
    ATTA (Zheng et al. 2020): no random start, and step_size None means eps / (steps + 1), as the path has many visits.

    Defaults of the papers: MNIST Linf 0.3, 40 steps of 0.01; CIFAR-10 Linf 8/255, 10 steps of 2/255.

    Passes: R restarts cost R*steps forwards and backwards to the input; ``best`` or R > 1 adds R forwards that
    score the last iterates. With ``early_stop`` at most that: a sample makes one pass more than it makes steps, and
    what one restart has fooled takes no part in the next.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.rand(3, 1, 2, 2)
    >>> attack = PGD(eps=0.1, steps=5)
    >>> x_adv = attack(model, x, torch.tensor([0, 1, 0]))
    >>> bool((x_adv - x).abs().max() <= 0.1 + 1e-6), attack.passes().forward
    (True, 5)
    """

    steps: int = 10
    step_size: float | Tensor | None = None
    random_start: bool = True
    restarts: int = 1
    best: bool = False
    early_stop: bool = False
    stop_after: int = 0
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    watchable = True
    _recordable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2, math.inf):
            raise ValueError(f"p must be 1, 2 or math.inf for PGD, got {self.p!r} (FrankWolfe and FGSM take any p)")
        check_steps(self.steps)
        check_steps(self.restarts, "restarts")
        check_step_size(self)
        check_early_stop(self)

    def with_steps(self, steps: int) -> PGD:
        """With another number of steps, and the default step size for it: a given one was meant for the old number."""
        return dataclasses.replace(self, steps=steps, step_size=None)

    def check_replay(self) -> None:
        if self.best or self.restarts > 1:
            raise ValueError(
                f"with a memory PGD takes restarts=1 and best=False, got restarts={self.restarts}, best={self.best}"
            )
        if self.early_stop:
            raise ValueError("with a memory PGD takes early_stop=False: each sample has its steps at each visit")

    def _replay(self, oracle: InputGradient, x: Tensor, y: Tensor, visit: Visit) -> Tensor:
        alpha = self.eps / (self.steps + 1) if self.step_size is None else self.step_size
        x_adv, step = self._resumed(visit.start(x, self.eps, self.bounds)), self._stepper(x, alpha)
        for _ in range(self.steps):
            x_adv = step(x_adv, oracle.gradient(x_adv, y))
        visit.put(x_adv - x, self.p, self.eps)
        return x_adv

    def _resumed(self, start: Tensor) -> Tensor:
        """Where the steps begin from a remembered point."""
        return start

    def _stepper(self, x: Tensor, alpha: float | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x_adv, g) -> the next x_adv."""
        return ops.pgd_stepper(x, self.p, self.eps, alpha, bounds=self.bounds, exact=self.p == 1)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if self.early_stop:
            return self._until_fooled(oracle, x, y)
        scored = self.best or self.restarts > 1
        kept: _Strongest | None = _Strongest(x) if scored else None
        x_adv = x
        for _ in range(self.restarts):
            x_adv = self._attempt(oracle, x, y, kept if self.best else None)
            if kept is not None:
                kept.offer(x_adv, oracle.loss(x_adv, y), oracle.fooled(y))
        return x_adv if kept is None else kept.x_adv

    def _attempt(self, oracle: InputGradient, x: Tensor, y: Tensor, kept: _Strongest | None) -> Tensor:
        step = self._stepper(x, self._alpha())
        x_adv = self._start(x) if self.random_start else x
        for _ in range(self.steps):
            if kept is None:
                g = oracle.gradient(x_adv, y)
            else:
                loss, g = oracle(x_adv, y)
                kept.offer(x_adv, loss, oracle.fooled(y))
            x_adv = step(x_adv, g)
            del g  # or it would lie there during the next pass, where the memory peaks
        return x_adv

    def _until_fooled(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        scored = self.best or self.restarts > 1
        kept = _Strongest(x)
        stop, step = EarlyStop(self, oracle, x, y), self._stepper(x, self._alpha())
        x_adv = x
        for _ in range(self.restarts):
            stop.begin(kept.fooled)
            if stop.stopped():
                break
            x_adv = stop.moved(x_adv, self._start(x)) if self.random_start else stop.moved(x_adv, x)
            for _ in range(self.steps):
                if stop.stopped():
                    break
                g = stop.gradient(x_adv, with_loss=scored)
                if self.best:
                    kept.offer(x_adv, stop.loss, stop.fooled)
                x_adv = stop.moved(x_adv, step(x_adv, g))
            if scored:
                stop.score(x_adv)
                kept.offer(x_adv, stop.loss, stop.fooled)
        return kept.x_adv if scored else x_adv

    def _alpha(self) -> float | Tensor:
        return 2.5 * self.eps / self.steps if self.step_size is None else self.step_size

    def _start(self, x: Tensor) -> Tensor:
        """A point uniform in the ball, then clamped to the box."""
        eps = to_multiply(self.eps, "eps", x)
        if self.p == math.inf:
            delta = self._free(torch.empty_like(x).uniform_(-1, 1, generator=self.generator))
        else:
            if self.p == 2:
                direction = torch.empty_like(x).normal_(generator=self.generator)
            else:
                sign = torch.empty_like(x).uniform_(-1, 1, generator=self.generator).sign()
                direction = torch.empty_like(x).exponential_(generator=self.generator) * sign
            direction = self._free(direction)
            radius = torch.empty(len(x), dtype=x.dtype, device=x.device).uniform_(generator=self.generator)
            size = x[0].numel() if self.mask is None else self.mask.flatten(1).sum(1).clamp_min(1)
            radius = radius.pow(1 / size) / ops.lp_norm(direction, self.p).to(x.dtype)
            delta = direction * as_column(radius, x)
            if self.mask is not None:  # 0/0 where nothing may change
                delta = self._free(delta.nan_to_num())
        return (x + eps * delta).clamp_(*self.bounds)  # type: ignore[arg-type]

    def passes(self, batch: int = 1) -> Passes:
        runs = self.restarts * self.steps
        scores = self.restarts if self.best or self.restarts > 1 else 0
        return passes_of(batch, forward=runs + scores, backward_input=runs)


class _Strongest:
    """The strongest example of each sample so far, chosen without asking the device."""

    def __init__(self, x: Tensor):
        self.x_adv = x
        self.loss = torch.full((len(x),), -math.inf, device=x.device)
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def offer(self, x_adv: Tensor, loss: Tensor, fooled: Tensor) -> None:
        better = (fooled & ~self.fooled) | ((fooled == self.fooled) & (loss > self.loss))
        self.x_adv = torch.where(as_column(better, x_adv), x_adv, self.x_adv)
        self.loss = torch.where(better, loss, self.loss)
        self.fooled = self.fooled | fooled
