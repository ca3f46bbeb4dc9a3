"""Fast Adaptive Boundary attack (Croce and Hein 2020b): steps to the linearised boundary, drawn towards x."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.attempts import Attempts, Rows, Towards, chosen
from soatfast.attacks.base import Attack, Model
from soatfast.gradients.engine import parse
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import Bounds, as_column, check_between, check_number, check_steps, to_multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class FAB(Attack):
    r"""The nearest point beyond the boundary to any other class, by linearising it again and again (algorithm 1).

        t = argmin_{k != y} |z_k - z_y| / ||grad(z_k - z_y)||_q;   h(u) = z_t - z_y linearised at x_k
        has the plane P = {u: h(x_k) + <g, u - x_k> = 0}
        d = proj_{P, box}(x_k) - x_k;   d_0 = proj_{P, box}(x) - x;   a = min(||d|| / (||d|| + ||d_0||), alpha_max)
        x_{k+1} = clamp((1 - a)(x_k + eta d) + a (x + eta d_0));   where it fools the model: x + beta (x_{k+1} - x)

    1/p + 1/q = 1. The projections are exact in the p-norm. The example is the nearest point found that fools the model,
    if it is in the ball; x where there is none.

    Args:
        steps: of each attempt.
        restarts: attempts, of the samples that are not fooled yet; all but the first start at random, at half the
            radius.
        alpha_max, eta, beta: the paper's: bias towards x in [0, 1], overshoot > 0, step back in [0, 1].
        early_stop: a sample leaves once a point in the ball fools the model; one host read a step. False: it goes on to
            nearer ones, as the authors' code has it.
        generator: random numbers of the starts; on x's device.

    p is 1, 2 or inf. It has a loss of its own: ``objective`` stays as it is.

    Defaults of the paper: 100 steps, alpha_max 0.1, eta 1.05, beta 0.9.

    Passes: 1 forward at x; at most 2 R S forwards and R S (K - 1) backwards to the input, of S steps and K classes.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x = torch.rand(3, 1, 2, 2)
    >>> x_adv = FAB(eps=0.3, steps=5)(model, x, torch.tensor([0, 1, 0]))
    >>> bool((x_adv - x).abs().max() <= 0.3 + 1e-6)
    True
    """

    steps: int = 100
    restarts: int = 1
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    early_stop: bool = True
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        if self.p not in (1, 2, math.inf):
            raise ValueError(f"p must be 1, 2 or math.inf for {name}, got {self.p!r}")
        check_steps(self.steps)
        check_steps(self.restarts, "restarts")
        check_between(self.alpha_max, "alpha_max", 0, 1)
        check_between(self.beta, "beta", 0, 1)
        check_number(self.eta, "eta")
        if self.targeted:
            raise ValueError(f"{name} is given the true labels and picks its targets, got targeted=True")
        if self.objective != "ce":
            raise ValueError(f'{name} has a loss of its own: leave objective at "ce", got {self.objective!r}')
        if parse(self.engine).graph:
            raise ValueError(
                f'{name} takes no engine with "graph", whose recordings are of whole batches, got {self.engine!r}'
            )

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        attempts = Attempts(self, oracle, x, y)
        for restart, rows in attempts.rounds(self.restarts):
            self._attempt(oracle, x, y, rows, attempts, None, restart > 0)
        return attempts.x_adv

    def _attempt(
        self,
        oracle: InputGradient,
        x: Tensor,
        y: Tensor,
        rows: Tensor,
        attempts: Attempts,
        target: Tensor | None,
        at_random: bool,
    ) -> None:
        near = _Nearest(x[rows], y[rows], chosen(self.eps, rows), rows, target)
        if at_random:
            near.x_adv = self._start(near)
        for _ in range(self.steps):
            gap, g = self._boundary(oracle, near)
            moved = self._step(near, gap.to(x.dtype), g)
            oracle.loss(moved, near.y)
            near.note(moved, oracle.fooled(near.y), self.p, self.beta)
            if self.early_stop and not oracle.state.sharded:
                stay = (~near.inside()).nonzero().squeeze(1)
                if len(stay) == 0:
                    break
                if attempts.in_parts and len(stay) < len(near.x):
                    attempts.offer(*near.found())
                    near.keep(stay)
        attempts.offer(*near.found())

    def _boundary(self, oracle: InputGradient, near: _Nearest) -> tuple[Tensor, Tensor]:
        """(h (n,), its gradient) of the class whose linearised boundary is nearest."""
        logits, last = oracle.jacobian(near.x_adv, near.y)  # of z_k - z_{K-1}
        slopes = torch.cat((last, torch.zeros_like(last[:, :1])), 1)
        n, label = torch.arange(len(logits), device=logits.device), near.y.long()
        slopes = slopes - slopes[n, label].unsqueeze(1)
        if self.mask is not None:
            slopes = torch.stack([self._free(part, near.rows) for part in slopes.unbind(1)], 1)
        gaps = logits - logits.gather(1, label.unsqueeze(1))
        q = {1: math.inf, 2: 2.0, math.inf: 1.0}[self.p]
        distance = gaps.abs() / (torch.linalg.vector_norm(slopes.flatten(2), q, dim=2) + 1e-12)
        best = distance.scatter(1, label.unsqueeze(1), math.inf).argmin(1)
        return gaps[n, best], slopes[n, best]

    def _step(self, near: _Nearest, gap: Tensor, g: Tensor) -> Tensor:
        offset = (g * near.x_adv).flatten(1).sum(1) - gap  # the plane is <g, u> = offset
        d, d0 = (to_plane(u, g, offset, self.p, self.bounds) for u in (near.x_adv, near.x))
        length, length0 = (ops.lp_norm(v, self.p).to(g.dtype).clamp_min(1e-8) for v in (d, d0))
        a = as_column((length / (length + length0)).clamp_max(self.alpha_max), g)
        moved = (near.x_adv + self.eta * d) * (1 - a) + (near.x + self.eta * d0) * a
        return moved.clamp(*self.bounds)  # type: ignore[arg-type]

    def _start(self, near: _Nearest) -> Tensor:
        """A random point at distance eps / 2, clamped to the box."""
        x = near.x
        if self.p == math.inf:
            t = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=self.generator).mul_(2).sub_(1)
        else:
            t = torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=self.generator)
        t = self._free(t, near.rows)
        length = as_column(ops.lp_norm(t, self.p).to(x.dtype).clamp_min(torch.finfo(x.dtype).tiny), x)
        return (x + to_multiply(near.eps, "eps", x) * t / length * 0.5).clamp(*self.bounds)  # type: ignore[arg-type]

    def passes(self, batch: int = 1, classes: int = 10) -> Passes:
        """Passes of one call, at most, for a model of this number of classes."""
        steps = self.restarts * self.steps
        return passes_of(batch, forward=1 + 2 * steps, backward_input=steps * (classes - 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetedFAB(FAB):
    r"""FAB towards each of the likeliest wrong classes in turn: FAB-T of AutoAttack.

    t is the second, third, ... likeliest class at x, so that a step costs one backward whatever K is. It is called with
    the true labels and succeeds where the prediction is not y any more.

    Args:
        targets: how many classes are tried, each with ``restarts`` attempts of the samples not fooled yet; at most
            K - 1.

    All else as :class:`FAB`. Default of AutoAttack: 9 targets.

    Passes: 1 forward at x; at most 2 R T S forwards and R T S backwards to the input, of T targets and S steps.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x = torch.rand(3, 1, 2, 2)
    >>> attack = TargetedFAB(eps=0.3, steps=5, targets=2)
    >>> x_adv = attack(model, x, torch.tensor([0, 1, 0]))
    >>> bool((x_adv - x).abs().max() <= 0.3 + 1e-6), attack.passes().forward
    (True, 21)
    """

    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.targets, "targets")

    def oracle(self, model: Model) -> Towards:
        return Towards(self, model, _gap)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if not isinstance(oracle, Towards):
            raise TypeError(f"TargetedFAB needs its own oracle, attack.oracle(model), got {type(oracle).__name__}")
        oracle.target = None
        attempts = Attempts(self, oracle, x, y)
        count = attempts.clean.shape[1]
        if self.targets > count - 1:
            raise ValueError(f"TargetedFAB has {self.targets} targets, and the model {count - 1} wrong classes")
        order = attempts.clean.sort(1).indices
        for number, rows in attempts.rounds(self.targets * self.restarts):
            target, restart = order[rows, -2 - number // self.restarts], number % self.restarts
            self._attempt(oracle, x, y, rows, attempts, target, restart > 0)
        return attempts.x_adv

    def _boundary(self, oracle: InputGradient, near: _Nearest) -> tuple[Tensor, Tensor]:
        assert isinstance(oracle, Towards)
        oracle.target = near.target
        gap, g = oracle(near.x_adv, near.y)
        return gap, self._free(g, near.rows)

    def passes(self, batch: int = 1, classes: int = 10) -> Passes:
        """Passes of one call, at most; the number of classes does not matter."""
        steps = self.restarts * self.targets * self.steps
        return passes_of(batch, forward=1 + 2 * steps, backward_input=steps)


def _gap(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    difference = logits.gather(1, target.unsqueeze(1)) - logits.gather(1, y.long().unsqueeze(1))
    return difference.squeeze(1)


class _Nearest(Rows):
    """The nearest points that fool the model, and how far they are: (n,), infinite where there is none yet."""

    def __init__(self, x: Tensor, y: Tensor, eps: float | Tensor, rows: Tensor, target: Tensor | None):
        self.x, self.y, self.eps, self.rows, self.target = x, y, eps, rows, target
        self.x_adv = self.nearest = x
        self.distance = torch.full((len(x),), math.inf, dtype=x.dtype, device=x.device)

    def note(self, moved: Tensor, fooled: Tensor, p: float, beta: float) -> None:
        distance = ops.lp_norm(moved - self.x, p).to(self.distance)
        nearer = fooled & (distance < self.distance)
        self.nearest = torch.where(as_column(nearer, self.x), moved, self.nearest)
        self.distance = torch.where(nearer, distance, self.distance)
        self.x_adv = torch.where(as_column(fooled, self.x), self.x + beta * (moved - self.x), moved)

    def inside(self) -> Tensor:
        """(n,) bool: whether the nearest point is in the ball."""
        eps = torch.as_tensor(self.eps, dtype=self.distance.dtype, device=self.distance.device)
        return self.distance <= eps

    def found(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(rows, examples, losses, fooled) of the samples."""
        inside = self.inside()
        examples = torch.where(as_column(inside, self.x), self.nearest, self.x)
        return self.rows, examples, -self.distance, inside


def to_plane(x: Tensor, w: Tensor, offset: Tensor, p: float, bounds: Bounds) -> Tensor:
    r"""The shortest d in the p-norm with <w, x + d> = offset and x + d in the box; x (B, ...), offset (B,).

    Each |d_i| is min(t s_i, room_i), room_i the way to the box's end, s_i = 1 for p = inf and |w_i| for p = 2, with the
    one t that reaches the plane: sum_i |w_i| min(t s_i, room_i) = |<w, x> - offset|, piecewise linear in t. For p = 1
    the largest |w_i| go all their way first. Where the box does not reach the plane, d goes to its nearest corner.

    >>> import torch
    >>> x, w = torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 1.0]])
    >>> to_plane(x, w, torch.tensor([1.8]), 2, (0.0, 1.0))
    tensor([[0.3000, 0.1000]])
    """
    lower, upper = bounds
    flat = w.flatten(1)
    excess = (w * x).flatten(1).sum(1) - offset
    direction = -w.sign() * as_column(torch.where(excess >= 0, 1.0, -1.0).to(w.dtype), w)
    room = torch.where(direction > 0, upper - x, x - lower).clamp(0, 1e15).flatten(1)
    room, size, need = room * (flat != 0), flat.abs(), excess.abs().unsqueeze(1)
    if p == 1:
        order = size.argsort(1, descending=True)
        whole = (size * room).gather(1, order)
        part = (need - (whole.cumsum(1) - whole)).clamp_min(0).minimum(whole)
        length = torch.zeros_like(size).scatter(1, order, part) / torch.where(size > 0, size, 1.0)
        return direction * length.minimum(room).view_as(w)
    speed = size if p == 2 else (size > 0).to(size.dtype)
    end = torch.where(size > 0, room / torch.where(size > 0, speed, 1.0), 0.0)  # the t at which an entry stops
    end, order = end.sort(1)
    rate, whole = (size * speed).gather(1, order), (size * room).gather(1, order)
    filled = whole.cumsum(1)
    going = rate.flip(1).cumsum(1).flip(1)  # of this entry and those that stop later
    reached = filled - whole + going * end
    stopped = (reached < need).sum(1, keepdim=True)
    last = stopped.clamp_max(size.shape[1] - 1)
    t = (need - (filled - whole).gather(1, last)) / going.gather(1, last)
    t = torch.where((stopped == size.shape[1]) | t.isnan(), math.inf, t)
    moving = torch.where(speed > 0, t * speed, 0.0)
    return direction * moving.minimum(room).view_as(w)
