"""One batch's rows of a PerturbationMemory, in place or copied to where the batch is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from . import ops
from .ops.quantise import remember

if TYPE_CHECKING:
    from .memory import PerturbationMemory


class Visit:
    """The perturbations of one batch: :meth:`start` gives the point for the gradient, :meth:`step` moves it.

    Works in place on the memory's rows. The public way to it is :meth:`PerturbationMemory.visit`.
    """

    def __init__(self, values: Tensor, scale: Tensor | None, rows: Tensor):
        self._values, self._scale, self._index = values, scale, rows

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def start(self, x: Tensor, eps: float | Tensor, bounds: tuple[float, float]) -> Tensor:
        """clamp(x + eps u); :func:`soatfast.ops.replay_start`."""
        return ops.replay_start(self._values, self._index, x, eps, scale=self._scale, bounds=bounds)

    def step(
        self,
        g: Tensor,
        x: Tensor,
        p: float,
        eps: float | Tensor,
        gamma: float,
        bounds: tuple[float, float],
        in_box: bool = False,
    ) -> Tensor:
        """u' in the memory, clamp(x + v') returned; :func:`soatfast.ops.replay_step`."""
        return ops.replay_step(
            self._values, self._index, g, x, p, eps, gamma, scale=self._scale, bounds=bounds, in_box=in_box
        )

    def put(self, delta: Tensor, p: float, eps: float | Tensor) -> None:
        """Remember delta (B, ...), of norm <= eps, as the batch's perturbation."""
        radius = eps if isinstance(eps, Tensor) else torch.full((), eps, dtype=delta.dtype, device=delta.device)
        radius = radius.to(delta.dtype).reshape(-1, *(1,) * (delta.dim() - 1))
        u = torch.where(radius > 0, delta / radius, 0.0).clamp(-1, 1)
        _store(self._values, self._scale, self._index, u, p)


class Staged(Visit):
    """A visit whose rows are copied: to another device, or into the frame of an augmented batch, and back."""

    def __init__(self, memory: PerturbationMemory, rows: Tensor, device: torch.device, moves: Tensor | None):
        u = memory._read(rows).to(device)
        if moves is not None and memory.augment is not None:
            moves = moves.to(device)
            u = memory.augment.apply(u, moves)
        super().__init__(u.contiguous(), None, torch.arange(len(u), device=device))
        self._memory, self._rows, self._moves = memory, rows, moves
        self._p = math.inf

    def step(self, g, x, p, eps, gamma, bounds, in_box=False):  # type: ignore[no-untyped-def]
        self._p = p
        return super().step(g, x, p, eps, gamma, bounds, in_box)

    def put(self, delta: Tensor, p: float, eps: float | Tensor) -> None:
        self._p = p
        super().put(delta, p, eps)

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            return
        memory, u = self._memory, self._values
        if self._moves is not None and memory.augment is not None:
            u, seen = memory.augment.undo(u, self._moves)
            # What a crop hides keeps its old value; the two parts together stay in an Linf ball, and other balls are
            # kept by shrinking.
            old = memory._read(self._rows).to(u.device)
            u = torch.where(seen, u, old)
            if self._p != math.inf:
                norm = ops.lp_norm(u, self._p).view(-1, *(1,) * (u.dim() - 1))
                u = u / norm.clamp_min(1)
        _store(memory.values, memory.scale, self._rows, u.to(memory.device), self._p)


def _store(values: Tensor, scale: Tensor | None, rows: Tensor, u: Tensor, p: float) -> None:
    """u (B, ...) of norm <= 1 into the rows."""
    remember(values.flatten(1), scale, rows, u.flatten(1), p)
