"""Auto-PGD (Croce and Hein 2020): PGD with momentum whose step size is halved where the loss stops rising."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.attempts import Attempts, Rows, Towards, chosen
from soatfast.attacks.base import Attack, Model
from soatfast.gradients.engine import parse
from soatfast.gradients.objectives import dlr_towards
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import as_column, check_between, check_steps, to_multiply

_MOMENTUM = 0.75  # the paper's alpha


@dataclass(frozen=True, kw_only=True, eq=False)
class APGD(Attack):
    r"""PGD with momentum and a step size of its own for each sample, with no parameter to tune (algorithm 1).

        z_{k+1} = project(x_k + s_k step_p(g_k));   x_{k+1} = project(x_k + a (z_{k+1} - x_k) + (1 - a)(x_k - x_{k-1}))

    a = 0.75 (1 in the first step) and s_0 = 2 eps. At checkpoints, after 22 % of the steps and then at distances that
    shrink by 3 % of the steps down to 6 %, a sample's s is halved and it goes back to its best point where the loss
    rose in at most ``rho`` of the steps since the last checkpoint, or where neither s nor the best loss has changed
    since. Each attempt starts at random, on the sphere of radius eps (clamped to the box).

    Each sample's example is a point that fools the model, or, without one, the point of the greatest loss. A sample
    that is fooled at x keeps x.

    Args:
        steps: gradient steps of each attempt.
        restarts: attempts; the second is made of the samples that the first has not fooled, and so on.
        rho: share of rising steps under which the step size is halved, in [0, 1].
        eot: gradients that are averaged at each point (expectation over transformations, Athalye et al. 2018), for a
            model that draws random numbers.
        early_stop: a sample leaves at the first point that fools the model, and costs no further pass; one host read a
            step. False: it goes on and keeps the last such point, as the authors' code has it.
        generator: random numbers of the starts; on x's device.

    p is 2 or inf. ``objective="dlr"`` is the paper's second loss.

    Defaults of the paper: 100 steps, rho 0.75.

    Passes: 1 forward at x; at most R (E K + 1) forwards and R E K backwards to the input, of R restarts of K steps
    with E = ``eot``. The authors' code makes R (K + 1) E of each.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x = torch.rand(3, 1, 2, 2)
    >>> attack = APGD(eps=0.1, steps=5, objective="dlr")
    >>> x_adv = attack(model, x, torch.tensor([0, 1, 0]))
    >>> bool((x_adv - x).abs().max() <= 0.1 + 1e-6), attack.passes().forward
    (True, 7)
    """

    steps: int = 100
    restarts: int = 1
    rho: float = 0.75
    eot: int = 1
    early_stop: bool = True
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (2, math.inf):
            raise ValueError(f"p must be 2 or math.inf for {type(self).__name__}, got {self.p!r}")
        check_steps(self.steps)
        check_steps(self.restarts, "restarts")
        check_steps(self.eot, "eot")
        check_between(self.rho, "rho", 0, 1)
        if parse(self.engine).graph:
            raise ValueError(
                f'{type(self).__name__} takes no engine with "graph", whose recordings are of whole batches, '
                f"got {self.engine!r}"
            )

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        attempts = Attempts(self, oracle, x, y)
        for _, rows in attempts.rounds(self.restarts):
            self._attempt(oracle, x, y, rows, attempts)
        return attempts.x_adv

    def _attempt(
        self,
        oracle: InputGradient,
        x: Tensor,
        y: Tensor,
        rows: Tensor,
        attempts: Attempts,
        target: Tensor | None = None,
    ) -> None:
        """One attempt on these rows of the batch; target (n,): the classes to go to, for an oracle that takes them."""
        path = _Path(x[rows], y[rows], chosen(self.eps, rows), rows, target)
        path.x_adv = self._start(path.x, path.eps, rows)
        ends = set(_checkpoints(self.steps))
        since = 0
        for k in range(self.steps + 1):
            if isinstance(oracle, Towards):
                oracle.target = path.target
            loss, g = self._pass(oracle, path, last=k == self.steps)
            fooled = oracle.fooled(path.y)
            path.note(k, loss, g, fooled, first=self.early_stop)
            if self.early_stop and not oracle.state.sharded:
                stay = (~path.fooled).nonzero().squeeze(1)
                if len(stay) == 0:
                    break
                if attempts.in_parts and len(stay) < len(fooled):
                    attempts.offer(*path.found())
                    path.keep(stay)
            if k == self.steps:
                break
            if k in ends:
                path.check(self.rho * (k - since))
                since = k
            z = ops.pgd_step(path.x_adv, path.g, path.x, self.p, path.eps, path.step_size, bounds=self.bounds)
            if k:
                pushed = path.x_adv + _MOMENTUM * (z - path.x_adv) + (1 - _MOMENTUM) * (path.x_adv - path.before)
                z = ops.project(pushed, path.x, self.p, path.eps, bounds=self.bounds)
            path.before, path.x_adv = path.x_adv, z
        attempts.offer(*path.found())

    def _pass(self, oracle: InputGradient, path: _Path, last: bool) -> tuple[Tensor, Tensor]:
        """(loss, gradient) at the path's point; the last point needs no gradient."""
        if last:
            return oracle.loss(path.x_adv, path.y), path.g
        loss, g = oracle(path.x_adv, path.y)
        for _ in range(self.eot - 1):
            loss, further = oracle(path.x_adv, path.y)
            g = g + further
        return loss, self._free(g / self.eot if self.eot > 1 else g, path.rows)

    def _start(self, x: Tensor, eps: float | Tensor, rows: Tensor) -> Tensor:
        """A random point at distance eps, clamped to the box."""
        if self.p == math.inf:
            t = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=self.generator).mul_(2).sub_(1)
        else:
            t = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=self.generator)
        t = self._free(t, rows)
        length = ops.lp_norm(t, self.p).to(x.dtype).clamp_min(torch.finfo(x.dtype).tiny)
        return (x + to_multiply(eps, "eps", x) * (t / as_column(length, x))).clamp(*self.bounds)  # type: ignore[arg-type]

    def passes(self, batch: int = 1) -> Passes:
        gradients = self._attempts() * self.eot * self.steps
        return passes_of(batch, forward=1 + gradients + self._attempts(), backward_input=gradients)

    def _attempts(self) -> int:
        return self.restarts


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetedAPGD(APGD):
    r"""APGD towards each of the likeliest wrong classes in turn, by the targeted DLR loss: APGD-T of AutoAttack.

        (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2)   for t the second, third, ... likeliest class at x

    It is called with the true labels and succeeds where the prediction is not y any more. The model has 4 classes or
    more, and ``objective`` stays as it is.

    Args:
        targets: how many classes are tried, each with ``restarts`` attempts of the samples not fooled yet; at most
            K - 1.

    All else as :class:`APGD`. Defaults of the paper: 9 targets of 100 steps.

    Passes: as APGD's, with R times ``targets`` attempts.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5))
    >>> attack = TargetedAPGD(eps=0.1, steps=5, targets=2)
    >>> attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 2])).shape, attack.passes().forward
    (torch.Size([2, 1, 2, 2]), 13)
    """

    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.targets, "targets")
        if self.targeted:
            raise ValueError(
                "TargetedAPGD is given the true labels and picks its targets; to reach labels of yours take "
                "APGD(targeted=True), got targeted=True"
            )
        if self.objective != "ce":
            raise ValueError(f'TargetedAPGD has a loss of its own: leave objective at "ce", got {self.objective!r}')

    def oracle(self, model: Model) -> Towards:
        return Towards(self, model, dlr_towards)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if not isinstance(oracle, Towards):
            raise TypeError(f"TargetedAPGD needs its own oracle, attack.oracle(model), got {type(oracle).__name__}")
        oracle.target = None
        attempts = Attempts(self, oracle, x, y)
        count = attempts.clean.shape[1]
        if self.targets > count - 1 or count < 4:
            raise ValueError(
                f"TargetedAPGD has {self.targets} targets and needs K > targets and K >= 4, got K = {count}"
            )
        order = attempts.clean.sort(1).indices
        for number, rows in attempts.rounds(self.targets * self.restarts):
            target = order[:, -2 - number // self.restarts]
            self._attempt(oracle, x, y, rows, attempts, target[rows])
        return attempts.x_adv

    def _attempts(self) -> int:
        return self.restarts * self.targets


class _Path(Rows):
    """Where the samples of an attempt are.

    best, best_g, best_loss: at the point of the greatest loss. last_loss: at the point before. rises: steps that raised
    the loss since the last checkpoint; checked_loss, halved: best_loss and whether s was halved at that checkpoint.
    fooled, hit: whether a point fooled the model, and that point.
    """

    g: Tensor
    best: Tensor
    best_g: Tensor
    best_loss: Tensor
    checked_loss: Tensor

    def __init__(self, x: Tensor, y: Tensor, eps: float | Tensor, rows: Tensor, target: Tensor | None):
        self.x, self.y, self.eps, self.rows, self.target = x, y, eps, rows, target
        self.x_adv = self.before = self.hit = x
        self.step_size = 2 * torch.as_tensor(eps, dtype=x.dtype, device=x.device).expand(len(x))
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.halved = ~self.fooled
        self.rises = torch.zeros(len(x), device=x.device)
        self.last_loss = torch.zeros(len(x), device=x.device)  # the authors compare the first loss with 0

    def note(self, k: int, loss: Tensor, g: Tensor, fooled: Tensor, first: bool) -> None:
        """The pass after k steps; first: the first point that fools is kept, and not the last."""
        self.g = g
        if k == 0:
            self.best, self.best_g, self.best_loss, self.checked_loss = self.x_adv, g, loss, loss
        else:
            self.rises = self.rises + (loss > self.last_loss)
            self.last_loss = loss
            better = loss > self.best_loss
            self.best = torch.where(as_column(better, self.x), self.x_adv, self.best)
            self.best_g = torch.where(as_column(better, self.x), g, self.best_g)
            self.best_loss = torch.where(better, loss, self.best_loss)
        new = fooled & ~self.fooled if first else fooled
        self.hit = torch.where(as_column(new, self.x), self.x_adv, self.hit)
        self.fooled = self.fooled | fooled

    def check(self, least: float) -> None:
        """A checkpoint: half the step, from the best point, where the loss rose in at most this number of steps."""
        stands = ~self.halved & (self.checked_loss >= self.best_loss)
        self.halved = (self.rises <= least) | stands
        back = as_column(self.halved, self.x)
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.x_adv, self.g = torch.where(back, self.best, self.x_adv), torch.where(back, self.best_g, self.g)
        self.checked_loss, self.rises = self.best_loss, torch.zeros_like(self.rises)

    def found(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(rows, examples, losses, fooled) of the samples."""
        return self.rows, torch.where(as_column(self.fooled, self.x), self.hit, self.best), self.best_loss, self.fooled


def _checkpoints(steps: int) -> Iterator[int]:
    """After how many steps the step sizes are looked at.

    >>> list(_checkpoints(100))
    [22, 41, 57, 70, 80, 87, 93, 99]
    """
    distance, least, shorter = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
    k = distance
    while k <= steps:
        yield k
        distance = max(distance - shorter, least)
        k += distance
