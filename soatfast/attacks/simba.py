"""SimBA, the simple black-box attack (Guo et al. 2019): coordinates of an orthonormal basis, one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.attempts import chosen
from soatfast.attacks.base import Attack, Model, check_step_size
from soatfast.attacks.region import is_needed
from soatfast.gradients.checks import check_batch
from soatfast.gradients.objectives import Named, Objective
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import is_half, round_towards, widened
from soatfast.ops.arguments import as_column, check_steps, to_multiply

_STEPS = 200  # by default


@dataclass(frozen=True)
class SimBAResult:
    """What :meth:`SimBA.search` found.

    x_adv: as a call returns it. queries (B,) int64: questions put to the model for each sample, the one at x included.
    fooled (B,) bool: the model's answer at x_adv is wrong (targeted: is the target), before rounding to a half dtype.
    """

    x_adv: Tensor
    queries: Tensor
    fooled: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class SimBA(Attack):
    r"""Hill climbing without gradients: for q in a random order of an orthonormal basis, a step of -q or +q that helps.

        x' = project(x_k - step_size q), taken if l(x') > l(x_k);   if not, x'' = project(x_k + step_size q), likewise

    Algorithm 1 of Guo et al. 2019, with the projection on ball and box in place of the clamp to the box. Each sample
    has its own permutation of the basis, without replacement (the public code has one for the batch).

    Args:
        steps: directions q that are tried, at most as many as the basis has; None: 200, or all where it has fewer.
        step_size: length of a step along the unit vector q, in input units.
        basis: "pixel", the entries of the input, or "dct", the two-dimensional cosine basis (orthonormal DCT-II) of
            each channel's whole image, x being (B, ..., H, W).
        freq_dims: with "dct", only the freq_dims x freq_dims lowest frequencies; None means all. The paper takes 28
            for images of 224.
        objective: what is climbed. The paper compares p_y, which is "ce" but for rounding; the margin goes on changing
            where p_y is 1 in float32.
        early_stop: a sample is done when the model is fooled, as in the paper; False goes on, as the study of gradient
            masking needs it.
        compact: put only the questions that count: samples that are done are left out, and +q is asked only where -q
            failed, so that the samples of all passes are exactly the queries. One synchronisation with the device a
            pass. False masks them instead: no synchronisation, every pass with the whole batch, the same result.
        generator: random numbers of the permutations; on x's device.

    p is 1, 2 or inf. The paper has no ball: one with eps = 0.2 holds all that steps of 0.2 along pixels reach, and one
    with p = 2 and eps = step_size sqrt(steps) all that any basis reaches.

    Defaults: 200 steps of 0.2 (SCORPIO's study of gradient masking; the paper's step size).

    Passes: at most 2 steps + 1 forwards, exactly that with ``compact=False``; no backward.

    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> x = torch.full((3, 1, 2, 2), 0.5)
    >>> y = model(x).argmax(1)
    >>> found = SimBA(eps=0.2, steps=4).search(model, x, y)
    >>> round(float((found.x_adv - x).abs().max()), 4), bool((found.queries <= 9).all())
    (0.2, True)
    """

    eps: float | Tensor = 0.2
    objective: Named | Objective = "margin"
    steps: int | None = None
    step_size: float | Tensor = 0.2
    basis: Literal["pixel", "dct"] = "pixel"
    freq_dims: int | None = None
    early_stop: bool = True
    compact: bool = True
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2, math.inf):
            raise ValueError(f"p must be 1, 2 or math.inf for SimBA, got {self.p!r}")
        if self.steps is not None:
            check_steps(self.steps)
        check_step_size(self)
        if self.basis not in ("pixel", "dct"):
            raise ValueError(f'basis must be "pixel" or "dct", got {self.basis!r}')
        if self.freq_dims is not None:
            check_steps(self.freq_dims, "freq_dims")
            if self.basis != "dct":
                raise ValueError(f'freq_dims needs basis="dct", got basis={self.basis!r}')

    def search(self, model: Model, x: Tensor, y: Tensor) -> SimBAResult:
        """As a call, with the number of queries of each sample. Raises as a call."""
        check_batch(x, y, self.bounds, self._labels)
        if len(x) == 0:
            return SimBAResult(x.detach().clone(), y.new_zeros(0, dtype=torch.int64), y.new_zeros(0, dtype=torch.bool))
        with self.oracle(model) as oracle, widened(oracle, x) as wide:
            if is_needed(self):
                with self._placed(oracle, wide) as region:
                    assert isinstance(region.attack, SimBA)
                    found = region.attack._search(oracle, region.inward(wide), y)
                    found = SimBAResult(region.outward(found.x_adv), found.queries, found.fooled)
            else:
                found = self._search(oracle, wide, y)
        if not is_half(x):
            return found
        return SimBAResult(round_towards(found.x_adv, x.detach()), found.queries, found.fooled)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        return self._search(oracle, x, y).x_adv

    def _search(self, oracle: InputGradient, x: Tensor, y: Tensor) -> SimBAResult:
        basis = _Basis(x, self.basis, self.freq_dims)
        steps = min(_STEPS, basis.size) if self.steps is None else self.steps
        if steps > basis.size:
            raise ValueError(f"steps must be at most the {basis.size} directions of the basis, got {steps}")
        to_multiply(self.eps, "eps", x)  # the shapes of eps and step_size are checked before any pass
        to_multiply(self.step_size, "step_size", x)
        order = torch.rand(len(x), basis.size, device=x.device, generator=self.generator).argsort(1)
        x_adv = x.clamp(*self.bounds)  # type: ignore[arg-type]
        best = oracle.loss(x_adv, y)
        fooled = oracle.fooled(y)
        queries = torch.ones(len(x), dtype=torch.int64, device=x.device)
        every = torch.ones_like(fooled)
        for step in range(steps):
            pending = ~fooled if self.early_stop else every
            if self.compact and not pending.any():
                break
            for sign in (-1.0, 1.0):
                rows = pending.nonzero().squeeze(1) if self.compact else torch.arange(len(x), device=x.device)
                if len(rows) == 0:
                    break
                q = self._free(basis.vectors(order[rows, step]), rows)
                candidate = self._move(x_adv[rows], x[rows], sign * q, rows)
                loss = oracle.loss(candidate, y[rows])
                better = pending[rows] & (loss > best[rows])
                x_adv[rows] = torch.where(as_column(better, x), candidate, x_adv[rows])
                best[rows] = torch.where(better, loss, best[rows])
                fooled[rows] = torch.where(better, oracle.fooled(y[rows]), fooled[rows])
                queries += pending
                pending = pending.index_put((rows,), pending[rows] & ~better)
        return SimBAResult(x_adv, queries, fooled)

    def _move(self, x_adv: Tensor, x: Tensor, q: Tensor, rows: Tensor) -> Tensor:
        moved = x_adv + to_multiply(chosen(self.step_size, rows), "step_size", x) * q
        return ops.project(moved, x, self.p, chosen(self.eps, rows), bounds=self.bounds, exact=self.p == 1)

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=2 * (_STEPS if self.steps is None else self.steps) + 1)


class _Basis:
    """The orthonormal basis of one sample's space, its vectors made when they are asked for."""

    def __init__(self, x: Tensor, name: str, freq_dims: int | None):
        self.like = x
        self.dct: tuple[Tensor, Tensor] | None = None
        self.size = x[0].numel()
        if name == "pixel":
            return
        if x.dim() < 3:
            raise ValueError(f'basis="dct" needs images x (B, ..., H, W), got shape {tuple(x.shape)}')
        height, width = x.shape[-2:]
        if freq_dims is not None and freq_dims > min(height, width):
            raise ValueError(f"freq_dims must be at most the image's {height} x {width}, got {freq_dims}")
        rows, columns = dct_matrix(height, x), dct_matrix(width, x)
        self.dct = rows[:freq_dims], columns[:freq_dims]
        self.size = x[0].numel() // (height * width) * len(self.dct[0]) * len(self.dct[1])

    def vectors(self, index: Tensor) -> Tensor:
        """(n, ...): for each of n samples the basis vector of its number."""
        if self.dct is None:
            flat = torch.zeros(len(index), self.size, dtype=self.like.dtype, device=self.like.device)
            return flat.scatter_(1, index.unsqueeze(1), 1.0).view(-1, *self.like.shape[1:])
        rows, columns = self.dct
        waves = rows[index // len(columns) % len(rows)].unsqueeze(2) * columns[index % len(columns)].unsqueeze(1)
        channels = self.like[0].numel() // waves[0].numel()
        own = index // (len(rows) * len(columns))
        channel = own.view(-1, 1, 1, 1) == torch.arange(channels, device=index.device).view(1, -1, 1, 1)
        return (channel * waves.unsqueeze(1)).view(-1, *self.like.shape[1:])


def dct_matrix(n: int, like: Tensor) -> Tensor:
    r"""(n, n) orthonormal DCT-II: C[k, i] = sqrt(2/n) cos(pi (i + 1/2) k / n), row 0 divided by sqrt(2).

    C a is the transform of a (n,), C A C^T of A (n, n), and the rows are the basis vectors. In like's dtype and device.

    >>> dct_matrix(2, torch.empty(0))
    tensor([[ 0.7071,  0.7071],
            [ 0.7071, -0.7071]])
    """
    i = torch.arange(n, dtype=torch.float64, device=like.device)
    matrix = math.sqrt(2 / n) * torch.cos(math.pi / n * (i + 0.5) * i.unsqueeze(1))
    matrix[0] /= math.sqrt(2)
    return matrix.to(like)
