"""Square Attack (Andriushchenko et al. 2020): random search by square patches, without gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.attempts import Attempts, Rows, chosen
from soatfast.attacks.base import Attack
from soatfast.gradients.engine import parse
from soatfast.gradients.objectives import Named, Objective
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import as_column, check_between, check_steps, to_multiply

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10 000 queries


@dataclass(frozen=True, kw_only=True, eq=False)
class Square(Attack):
    r"""Random search: a square patch of a new perturbation is kept where it raises the loss (algorithm 1).

        p = inf:  x' = project(x_k + 2 eps r on a random square, x),   r = -1 or +1 for each channel
        p = 2:    one window's budget, and what is left of eps, go into another window of a bump and its negative

    x_{k+1} = x' where l(x') > l(x_k) or x' fools the model, else x_k. The square covers the share ``share`` of the
    image at first, which is halved after 10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 of 10 000 queries, and at
    the same fractions of ``steps``. The start is vertical stripes of -eps and +eps (p = inf) or a grid of bumps (p =
    2). One place and, for p = inf, one sign a channel are drawn for the whole batch, as in AutoAttack's code, whose
    squares never reach the last row and column either. A sample that is fooled leaves.

    Args:
        steps: queries of each attempt after its first.
        restarts: attempts; the second is made of the samples that the first has not fooled, and so on.
        share: of the image that the first square covers, in (0, 1]; the paper's p.
        objective: what is raised; the paper's is the margin.
        generator: random numbers; on x's device.

    p is 2 or inf. Images (B, C, H, W).

    Defaults of AutoAttack: 5000 queries, share 0.8. One host read a query.

    Passes: 1 forward at x; at most R (steps + 1) forwards of R restarts; no backward.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> x = torch.full((3, 1, 4, 4), 0.5)
    >>> attack = Square(eps=0.1, steps=20)
    >>> x_adv = attack(model, x, model(x).argmax(1))
    >>> round(float((x_adv - x).abs().max()), 4), attack.passes().forward
    (0.1, 22)
    """

    objective: Named | Objective = "margin"
    steps: int = 5000
    restarts: int = 1
    share: float = 0.8
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (2, math.inf):
            raise ValueError(f"p must be 2 or math.inf for Square, got {self.p!r}")
        check_steps(self.steps)
        check_steps(self.restarts, "restarts")
        check_between(self.share, "share", 0, 1)
        if self.share == 0:
            raise ValueError("share must be above 0, got 0")
        if parse(self.engine).graph:
            raise ValueError(
                f'Square takes no engine with "graph", whose recordings are of whole batches, got {self.engine!r}'
            )

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if x.dim() != 4:
            raise ValueError(f"Square takes images (B, C, H, W), got shape {tuple(x.shape)}")
        if self.mask is not None and len(self.mask) > 1:
            raise ValueError("Square takes one mask for all samples, got a mask for each sample")
        attempts = Attempts(self, oracle, x, y)
        for _, rows in attempts.rounds(self.restarts):
            self._attempt(oracle, x, y, rows, attempts)
        return attempts.x_adv

    def _attempt(self, oracle: InputGradient, x: Tensor, y: Tensor, rows: Tensor, attempts: Attempts) -> None:
        found = _Found(x[rows], y[rows], chosen(self.eps, rows), rows)
        squares = _Stripes(self, x) if self.p == math.inf else _Bumps(self, x)
        found.x_adv = squares.start(found)
        found.loss, found.fooled = oracle.loss(found.x_adv, found.y), oracle.fooled(found.y)
        for step in range(self.steps):
            if not oracle.state.sharded:
                stay = (~found.fooled).nonzero().squeeze(1)
                if len(stay) == 0:
                    break
                if attempts.in_parts and len(stay) < len(found.fooled):
                    attempts.offer(found.rows, found.x_adv, found.loss, found.fooled)
                    found.keep(stay)
            candidate = squares.candidate(found, self._area(step))
            loss = oracle.loss(candidate, found.y)
            fooled = oracle.fooled(found.y)
            better = ((loss > found.loss) | fooled) & ~found.fooled
            found.x_adv = torch.where(as_column(better, x), candidate, found.x_adv)
            found.loss = torch.where(better, loss, found.loss)
            found.fooled = found.fooled | fooled
        attempts.offer(found.rows, found.x_adv, found.loss, found.fooled)

    def _area(self, step: int) -> float:
        """The share of the image that the square of this query covers."""
        at = int(step / self.steps * 10000)
        return self.share / 2 ** sum(at > end for end in _HALVED_AFTER)

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=1 + self.restarts * (self.steps + 1))


class _Found(Rows):
    """The best points of an attempt."""

    x_adv: Tensor
    loss: Tensor
    fooled: Tensor

    def __init__(self, x: Tensor, y: Tensor, eps: float | Tensor, rows: Tensor):
        self.x, self.y, self.eps, self.rows = x, y, eps, rows


class _Squares:
    """Random numbers for an attack on images like x (B, C, H, W)."""

    def __init__(self, attack: Square, x: Tensor):
        self.attack, self.like = attack, x
        self.channels, self.height, self.width = x.shape[1:]

    def _uniform(self, *shape: int) -> Tensor:
        like = self.like
        return torch.rand(shape, dtype=like.dtype, device=like.device, generator=self.attack.generator)

    def _signs(self, *shape: int) -> Tensor:
        return (2 * self._uniform(*shape) - 1).sign()

    def _side(self, area: float) -> int:
        side = round(math.sqrt(area * self.height * self.width))
        return min(max(side, 1), self.height, self.width)

    def _corners(self, count: int, side: int) -> list[int]:
        """(row, column) of the upper left corners of this number of squares, one after the other."""
        room = [self.height - side, self.width - side] * count
        free = torch.tensor(room, dtype=self.like.dtype, device=self.like.device)
        return (free * self._uniform(len(room))).long().tolist()  # type: ignore[no-any-return]


class _Stripes(_Squares):
    """p = inf."""

    def start(self, found: _Found) -> Tensor:
        signs = self._signs(len(found.x), self.channels, 1, self.width).expand_as(found.x)
        delta = self.attack._free(to_multiply(found.eps, "eps", found.x) * signs)
        return (found.x + delta).clamp(*self.attack.bounds)  # type: ignore[arg-type]

    def candidate(self, found: _Found, area: float) -> Tensor:
        side = self._side(area)
        row, column = self._corners(1, side)
        place = (slice(None), slice(None), slice(row, row + side), slice(column, column + side))
        patch = 2 * to_multiply(found.eps, "eps", found.x) * self._signs(self.channels, 1, 1)
        moved = found.x_adv.clone()
        moved[place] += patch
        if self.attack.mask is not None:
            moved = torch.where(self.attack.mask, moved, found.x)
        return ops.project(moved, found.x, math.inf, found.eps, bounds=self.attack.bounds)


class _Bumps(_Squares):
    """p = 2."""

    def __init__(self, attack: Square, x: Tensor):
        super().__init__(attack, x)
        self._made: dict[int, Tensor] = {}

    def start(self, found: _Found) -> Tensor:
        side = max(self.height // 5, 1)
        delta = torch.zeros_like(found.x)
        first = max(self.height - 5 * side, 0) // 2
        for row in range(first, first + self.height // side * side, side):
            for column in range(first, first + self.width // side * side, side):
                bump = self._bump(side) * self._signs(len(found.x), self.channels, 1, 1)
                delta[..., row : row + side, column : column + side] += bump[
                    ..., : max(self.height - row, 0), : max(self.width - column, 0)
                ]
        return self._placed(found, delta)

    def candidate(self, found: _Found, area: float) -> Tensor:
        side = max(self._side(area), 3) | 1
        side = min(side, (min(self.height, self.width) - 1) | 1)
        row, column, row2, column2 = self._corners(2, side)
        window = (..., slice(row, row + side), slice(column, column + side))
        emptied = (..., slice(row2, row2 + side), slice(column2, column2 + side))
        eps = to_multiply(found.eps, "eps", found.x)
        delta = found.x_adv - found.x
        spent, old = _squared(delta), delta[window]
        outside = delta.clone()
        outside[window] = 0
        inside = _squared(old) + _squared(outside[emptied])
        outside[emptied] = 0
        bump = self._bump(side) * self._signs(len(found.x), self.channels, 1, 1)
        new = bump + old / (_length(old) + 1e-12)
        unspent = (eps * eps - spent).clamp_min(0) / self.channels
        outside[window] = new / (_length(new) + 1e-12) * (unspent + inside).sqrt()
        return self._placed(found, outside)

    def _placed(self, found: _Found, delta: Tensor) -> Tensor:
        """x + eps delta / ||delta||, clamped to the box."""
        delta = self.attack._free(delta)
        length = as_column(ops.lp_norm(delta, 2).to(delta.dtype), delta) + 1e-12
        eps = to_multiply(found.eps, "eps", found.x)
        return (found.x + eps * (delta / length)).clamp(*self.attack.bounds)  # type: ignore[arg-type]

    def _bump(self, side: int) -> Tensor:
        """(side, side) of length 1: a bump above its negative, or beside it."""
        if side not in self._made:
            halves = torch.cat((_pyramid(side // 2, side), -_pyramid(side - side // 2, side)))
            self._made[side] = (halves / halves.norm()).to(self.like)
        bump = self._made[side]
        return torch.where(self._uniform(1) > 0.5, bump.T, bump)


def _squared(delta: Tensor) -> Tensor:
    """(n, 1, 1, 1)."""
    return delta.square().sum((1, 2, 3), keepdim=True)


def _length(delta: Tensor) -> Tensor:
    """(n, C, 1, 1), of each channel."""
    return delta.square().sum((-2, -1), keepdim=True).sqrt()


def _pyramid(height: int, width: int) -> Tensor:
    """Rectangles around the middle, the k-th weighing 1 / k^2, of length 1 in all."""
    delta = torch.zeros(height, width, dtype=torch.float64)
    row, column = height // 2, width // 2
    for k in range(max(height, width) // 2 + 1):
        delta[max(row - k, 0) : max(row + k + 1, 0), max(column - k, 0) : column + k + 1] += 1 / (k + 1) ** 2
    return delta / delta.norm() if height else delta
