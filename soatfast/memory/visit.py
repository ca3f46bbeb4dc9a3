"""One batch's rows of a PerturbationMemory: in place, copied to the batch's device, or moved into its frame."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from soatfast import ops
from soatfast.memory.crops import CropFlip
from soatfast.memory.rows import Rows
from soatfast.ops.arguments import Bounds, as_column
from soatfast.ops.quantise import remember


class Visit:
    """The perturbations of one batch: :meth:`start` gives the point for the gradient, :meth:`step` moves it.

    Works in place on the memory's rows. The public way to it is :meth:`PerturbationMemory.visit`. Leaving the block
    counts the visit; after an exception only where a step or put has changed the rows already.

    Two samples of a batch that share a row both begin at what it held before, and the later one is kept: `last` (B,)
    says for each sample where in the batch its row comes last; None where no row comes twice, as in place it must.
    """

    _in_place = True

    def __init__(self, memory: Rows, rows: Tensor):
        self._memory, self._rows, self._written = memory, rows, False
        self._values, self._scale, self._index = memory.values, memory.scale, rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        failed = exception[0] is not None
        if failed and not (self._in_place and self._written):
            return
        if self._written and not self._in_place:
            self._write_back()
        visits = self._memory.visits
        visits.index_add_(0, self._rows, torch.ones_like(self._rows, dtype=visits.dtype))

    def start(self, x: Tensor, eps: float | Tensor, bounds: Bounds) -> Tensor:
        """clamp(x + eps u); :func:`soatfast.ops.replay_start`."""
        return ops.replay_start(self._values, self._index, x, eps, scale=self._scale, bounds=bounds)

    def step(
        self,
        g: Tensor,
        x: Tensor,
        p: float,
        eps: float | Tensor,
        gamma: float,
        bounds: Bounds,
        in_box: bool = False,
    ) -> Tensor:
        """u' in the memory, clamp(x + v') returned; :func:`soatfast.ops.replay_step`. ValueError for another p."""
        order = self._memory.check_norm(p)
        if any(isinstance(b, Tensor) for b in bounds):  # the kernel cannot bring the old perturbation into such a box
            self.put(self.start(x, eps, bounds) - x, p, eps)
        x_adv = ops.replay_step(
            self._values, self._index, g, x, order, eps, gamma, scale=self._scale, bounds=bounds, in_box=in_box
        )
        self._memory.p, self._written = order, True
        return x_adv

    def put(self, delta: Tensor, p: float, eps: float | Tensor) -> None:
        """Remember delta (B, ...), of norm <= eps, as the batch's perturbation. ValueError for another p."""
        order = self._memory.check_norm(p)
        radius = eps if isinstance(eps, Tensor) else torch.full((), eps, dtype=delta.dtype, device=delta.device)
        radius = as_column(radius.to(delta.dtype), delta)
        u = torch.where(radius > 0, delta / radius, 0.0).clamp(-1, 1)
        remember(self._values.flatten(1), self._scale, self._index, u.flatten(1), order)
        self._memory.p, self._written = order, True

    def _write_back(self) -> None:
        raise NotImplementedError


class CopiedVisit(Visit):
    """The rows as they are stored, on another device, and back."""

    _in_place = False

    def __init__(self, memory: Rows, rows: Tensor, device: torch.device, last: Tensor | None = None):
        super().__init__(memory, rows)
        self._last = last
        self._values = memory.values[rows].to(device)
        self._scale = None if memory.scale is None else memory.scale[rows].to(device)
        self._index = torch.arange(len(rows), device=device)

    def _write_back(self) -> None:
        memory = self._memory
        memory.values[self._rows] = _kept(self._values, self._last).to(memory.device)
        if memory.scale is not None and self._scale is not None:
            memory.scale[self._rows] = _kept(self._scale, self._last).to(memory.device)


class MovedVisit(Visit):
    """The rows in float32 in the frame of an augmented batch, on its device, and back."""

    _in_place = False

    def __init__(
        self,
        memory: Rows,
        rows: Tensor,
        device: torch.device,
        augment: CropFlip,
        moves: Tensor,
        last: Tensor | None = None,
    ):
        super().__init__(memory, rows)
        self._last = last
        self._augment, self._moves, self._old = augment, moves.to(device), memory.recall(rows).to(device)
        self._values, self._scale = augment.apply(self._old, self._moves).contiguous(), None
        self._index = torch.arange(len(rows), device=device)

    def _write_back(self) -> None:
        memory, p = self._memory, self._memory.p
        assert p is not None, "a step or put says it"
        u, seen = self._augment.undo(self._values, self._moves)
        # What a crop hides keeps its old value. Old and new parts together stay in an Linf ball, and are shrunk into
        # the others; int8 then rounds all of them towards 0 again, in steps of the row's new scale.
        u = torch.where(seen, u, self._old)
        if p != math.inf:
            u = u / as_column(ops.lp_norm(u, p), u).clamp_min(1)
        u = _kept(u, self._last).flatten(1).to(memory.device)
        remember(memory.values.flatten(1), memory.scale, self._rows, u, p)


def _kept(t: Tensor, last: Tensor | None) -> Tensor:
    """t (B, ...) with the last sample of a row in the place of the others: rows written twice get one value."""
    return t if last is None else t[last.to(t.device)]


def last_of_its_row(index: Tensor) -> Tensor | None:
    """For each sample where in the batch its index (B,) comes last; None if no index is known to come twice.

    It is known on the CPU. Elsewhere the question would wait for the device, and the answer serves all batches.

    >>> last_of_its_row(torch.tensor([7, 3, 7, 1])), last_of_its_row(torch.tensor([7, 3, 1]))
    (tensor([2, 1, 2, 3]), None)
    """
    ordered, order = index.sort(stable=True)
    if not index.is_cuda and not bool((ordered[1:] == ordered[:-1]).any()):
        return None
    return order[torch.searchsorted(ordered, index, right=True) - 1]
