"""The quadratic attack: Frank-Wolfe on the second-order model of the loss (SCORPIO, Tsiligkaridis and Roberts 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import Attack
from soatfast.attacks.early_stop import EarlyStop, check_early_stop
from soatfast.gradients.engine import parse
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.memory.visit import Visit
from soatfast.ops import Init
from soatfast.ops.arguments import (
    as_column,
    boxed_order,
    check_between,
    check_flag,
    check_number,
    check_steps,
    norm_order,
    to_multiply,
)
from soatfast.solvers.hessian import Scheme

_PAPER_H = 1.05
_SHORTEST_HALF = 0.1  # of h in a half-precision engine: its rounding, 2^-8 of g, is divided by h
_REPLAY_GAMMA = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class FrankWolfe(Attack):
    r"""The quadratic attack: maximises a second-order model Q of the loss on the ball; returns clamp(x + v).

        Q(v) = <g0, v> + 1/2 <v, H v>,   ||v||_p <= eps
        v_0 = eps g0 / ||g0||_p;   G_k = g0 + H v_k;   s_k = lmo_p(G_k; eps);   v_{k+1} = v_k + 2/(k+2) (s_k - v_k)

    H v is a finite difference of gradients with g0 = g(x) recycled, so each step costs one gradient ("fe") or one of a
    stacked batch of 2B ("cd"). With h = 1, "fe" is Frank-Wolfe on the true loss: g0 + (g(x+v) - g0) = g(x + v).

    Frank-Wolfe does not solve the problem exactly: for a convex Q it is NP-hard at p = inf. Q never falls from step to
    step where H is positive semidefinite and v_0 feasible (piecewise-linear network, cross-entropy).

    Args:
        steps: Frank-Wolfe steps N.
        scheme: "fe" forward Euler, "cd" central differences, "exact" double backward.
        h: finite-difference step in units of v; the paper tunes it in 0.5..1.5. None: 1.05, its CIFAR-10 setting. An
            engine with "bf16" or "fp16" needs h >= 0.1: the rounding of its gradients is divided by h.
        gamma: step size in [0, 1], constant. None: 2/(k+2).
        in_box: maximise over the intersection of ball and box, where the result has to lie anyway (p = 1, 2 or inf):
            s_k = lmo_p(G_k; eps) at x (:func:`soatfast.ops.lmo`), for p = inf clip(eps sgn(G_k), lower - x, upper - x).
            None: True for p = 1 and 2, where clamping the ball's s_k loses much of eps (p = 1 has it on one entry);
            False else, as the paper. Worth it for p = inf where many inputs lie at a bound (digits).
        tol: > 0, in units of the loss: a sample whose Frank-Wolfe gap <G_k, s_k - v_k> is below it takes no further
            step, and leaves the passes; ``steps`` is then the most. None: all take ``steps``. Costs one host read a
            step, and gradients of a part of the batch, so neither mode "train" nor the engine "graph" takes it; "fe"
            only. Tried on digits only: 0.2 in training, 0.02 in evaluation (docs/fewer-passes.md).
        early_stop, stop_after: as of :class:`~soatfast.attacks.PGD`: a sample is done once the model is fooled. The
            steps are then Frank-Wolfe on the loss at points of ball and box, as with a memory: "fe" with h = 1 (None
            means it), the pass at clamp(x + v). So init is not "raw".
        init: "scaled" (the paper's text), "lmo", or "raw" (v_0 = g0, the paper's Algorithm 1; not feasible: where
            gamma < 1 keeps a part of it, the last v is shortened to norm eps).

    With a memory (``AdversarialTraining(attack, memory=memory)``) a sample's v starts where its last visit left it, and
    each step is Frank-Wolfe on the loss itself: v <- (1 - gamma) v + gamma lmo_p(g(x + v); eps), kept in the box. No
    pass at x; h is 1, ``init`` has no use, and gamma None means 0.5. That and no 2/(k+2) over the visits, because
    the model changes between them (docs/memory.md).

    Defaults: the paper's CIFAR-10 Linf setting FE(3).

    Passes: fe N+1 forwards and backwards to the input (with ``tol`` or ``early_stop`` at most); cd N+1 calls with 2N+1
    sample passes; exact 1 forward, N+1 backwards. With a memory N of each.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.full((1, 1, 2, 2), 0.5)
    >>> attack = FrankWolfe(eps=0.1, steps=3)
    >>> (attack(model, x, torch.tensor([1])) - x).abs().max(), attack.passes().forward
    (tensor(0.1000), 4)
    """

    steps: int = 3
    scheme: Scheme = "fe"
    h: float | None = None
    gamma: float | None = None
    init: Init = "scaled"
    in_box: bool | None = None
    tol: float | None = None
    early_stop: bool = False
    stop_after: int = 0

    watchable = True
    _recordable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)
        if self.scheme not in ("fe", "cd", "exact"):
            raise ValueError(f'scheme must be "fe", "cd" or "exact", got {self.scheme!r}')
        if self.init not in ("scaled", "lmo", "raw"):
            raise ValueError(f'init must be "scaled", "lmo" or "raw", got {self.init!r}')
        if self.in_box is not None:
            check_flag(self.in_box, "in_box")
        boxed_order(self.p, bool(self.in_box))
        if self.h is not None:
            check_number(self.h, "h", expected="a number or None")
        if self.gamma is not None:
            check_between(self.gamma, "gamma", 0, 1)
        if self.h is not None and self.h < _SHORTEST_HALF and parse(self.engine).precision is not None:
            raise ValueError(f"engine {self.engine!r} needs h >= {_SHORTEST_HALF}, got {self.h!r}: use full precision")
        if self.tol is not None:
            check_number(self.tol, "tol")
            if self.scheme != "fe" or self.mode == "train" or parse(self.engine).graph:
                raise ValueError(
                    f'tol takes scheme="fe", and neither mode="train" nor an engine with "graph", got {self.scheme!r}, '
                    f"{self.mode!r} and {self.engine!r}"
                )

        check_early_stop(self)
        if self.early_stop and (self.scheme != "fe" or self.h not in (None, 1) or self.init == "raw"):
            raise ValueError(
                f'early_stop takes scheme="fe", h=1 (or None) and init="scaled" or "lmo", got {self.scheme!r}, '
                f"{self.h!r} and {self.init!r}"
            )

    def check_replay(self) -> None:
        if self.early_stop:
            raise ValueError(
                "with a memory FrankWolfe takes early_stop=False: every sample has its steps at every visit"
            )
        if self.tol is not None:
            raise ValueError(f"with a memory FrankWolfe takes tol=None, got {self.tol!r}")
        if self.scheme != "fe" or self.h not in (None, 1):
            raise ValueError(
                f'with a memory FrankWolfe takes scheme="fe" and h=1 (or None), got {self.scheme!r} and {self.h!r}'
            )

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if self.early_stop:
            return self._until_fooled(oracle, x, y)
        central, exact = self.scheme == "cd", self.scheme == "exact"
        if exact:
            _, g0, hvp = oracle.differentiable(x, y)
        elif g0 is None:
            g0 = oracle.gradient(x, y)
        h = 1.0 if exact else _PAPER_H if self.h is None else self.h
        labels = torch.cat([y, y]) if central else y
        v, probe = ops.frank_wolfe_init(
            g0,
            x,
            self.p,
            self.eps,
            init=self.init,
            h=h,
            central=central,
            bounds=self.bounds,
            in_box=self._boxed,
        )
        if self.tol is not None:
            return self._until(self.tol, oracle, x, y, g0, v, probe, h)
        for k in range(self.steps):
            g1 = g0 + hvp(v) if exact else oracle.gradient(probe, labels)
            last = k == self.steps - 1
            v, probe, _ = self._step(k, g0, g1, v, x, self.eps, h=h, central=central, last=last)
            del g1  # or it would lie there during the next pass, where the memory peaks
        return self._shortened(v, x) if self._keeps_raw else probe

    @property
    def _boxed(self) -> bool:
        """Whether the maximiser is that of ball and box."""
        return norm_order(self.p) in (1, 2) if self.in_box is None else self.in_box

    @property
    def _keeps_raw(self) -> bool:
        """Whether a part of v_0 = g0, of any length, is left in the last v: a step of gamma = 1 forgets it."""
        return self.init == "raw" and self.gamma is not None and self.gamma < 1

    def _shortened(self, v: Tensor, x: Tensor) -> Tensor:
        """x + v, with v clamped to the box and then shortened to norm eps where it is longer."""
        v = (x + v).clamp(*self.bounds) - x  # type: ignore[arg-type]
        eps = to_multiply(self.eps, "eps", x)
        share = eps / as_column(ops.lp_norm(v, self.p).to(x.dtype), x)
        return (x + v * share.nan_to_num(nan=1.0).clamp_max(1)).clamp(*self.bounds)  # type: ignore[arg-type]

    def _step(
        self, k: int, g0: Tensor, g1: Tensor, v: Tensor, x: Tensor, eps: float | Tensor, **how: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Step k: (v', probe, gap)."""
        gamma = 2 / (k + 2) if self.gamma is None else self.gamma
        return ops.frank_wolfe_step(
            g0, g1, v, x, self.p, eps, gamma=gamma, bounds=self.bounds, in_box=self._boxed, **how
        )

    def _until(
        self, tol: float, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor, v: Tensor, probe: Tensor, h: float
    ) -> Tensor:
        """The steps, of those samples whose gap is not below tol yet."""
        active = torch.arange(len(x), device=x.device)
        own = isinstance(self.eps, Tensor) and self.eps.numel() > 1
        for k in range(self.steps):
            if len(active) == 0:  # the host read
                break
            g1, eps = oracle.gradient(probe[active], y[active]), self.eps[active] if own else self.eps  # type: ignore[index]
            v[active], probe[active], gap = self._step(k, g0[active], g1, v[active], x[active], eps, h=h)
            active = active[gap >= tol]
        return self._placed_at(x, v)

    def _until_fooled(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        stop = EarlyStop(self, oracle, x, y)
        how = {"init": self.init, "h": 1.0, "bounds": self.bounds, "in_box": self._boxed}
        first, _ = ops.frank_wolfe_init(stop.gradient(x), x, self.p, self.eps, **how)  # type: ignore[arg-type]
        v = stop.moved(torch.zeros_like(x), first)
        x_adv = stop.moved(x, self._placed_at(x, v))
        for k in range(self.steps):
            if stop.stopped():
                break
            g = stop.gradient(x_adv)
            after, _, gap = self._step(k, g, g, v, x, self.eps, h=1.0)
            v = stop.moved(v, after)
            x_adv = stop.moved(x_adv, self._placed_at(x, v))
            if self.tol is not None:
                stop.retire(gap < self.tol)
        return x_adv

    def _placed_at(self, x: Tensor, v: Tensor) -> Tensor:
        if self._keeps_raw:
            return self._shortened(v, x)
        return (x + v).clamp(*self.bounds)  # type: ignore[arg-type]

    def _replay(self, oracle: InputGradient, x: Tensor, y: Tensor, visit: Visit) -> Tensor:
        gamma = _REPLAY_GAMMA if self.gamma is None else self.gamma
        x_adv = visit.start(x, self.eps, self.bounds)
        for _ in range(self.steps):
            g = oracle.gradient(x_adv, y)
            x_adv = visit.step(g, x, self.p, self.eps, gamma, self.bounds, self._boxed)
        return x_adv

    def passes(self, batch: int = 1) -> Passes:
        if self.scheme == "exact":
            return passes_of(batch, forward=1, backward_input=1 + self.steps)
        probes = passes_of(batch * (2 if self.scheme == "cd" else 1), forward=self.steps, backward_input=self.steps)
        return passes_of(batch, forward=1, backward_input=1) + probes
