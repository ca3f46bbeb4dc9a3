"""Several attempts on a batch, each of those samples alone that no attempt before it has fooled."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from soatfast.gradients.objectives import margin
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.parts import takes_parts
from soatfast.ops.arguments import as_column


class Attempts:
    """The strongest example of each sample so far, and who is attacked in the next attempt.

    One forward at x: a sample that is fooled there keeps x. Where the rows of a batch cannot be asked alone
    (:func:`takes_parts`) every attempt is of the whole batch. One host read an attempt.

    x_adv (B, ...): the point that fooled the model, else that of the greatest loss; x before any attempt.
    clean (B, ...): what the model returned at x.
    """

    def __init__(self, attack: Any, oracle: InputGradient, x: Tensor, y: Tensor):
        loss = oracle.loss(x, y)
        assert oracle.logits is not None
        self.x_adv, self.clean, self.fooled = x, oracle.logits, oracle.fooled(y)
        self._loss = torch.where(self.fooled, math.inf, -math.inf).to(loss)
        own_masks = attack.mask is not None and len(attack.mask) > 1
        self.in_parts = takes_parts(oracle) and not own_masks
        self._sharded = oracle.state.sharded

    def rounds(self, count: int) -> Iterator[tuple[int, Tensor]]:
        """(number of the attempt, rows (n,) of the batch that it is of), until all are fooled."""
        for number in range(count):
            left = (~self.fooled).nonzero().squeeze(1)
            if len(left) == 0 and not self._sharded:  # under FSDP other ranks may go on
                return
            yield number, left if self.in_parts else torch.arange(len(self.fooled), device=left.device)

    def offer(self, rows: Tensor, x_adv: Tensor, loss: Tensor, fooled: Tensor) -> None:
        """Keep what is stronger for these rows: x_adv (n, ...), loss (n,), fooled (n,) bool."""
        before = self.fooled[rows]
        better = (fooled & ~before) | ((fooled == before) & (loss > self._loss[rows]))
        self.x_adv = self.x_adv.index_copy(0, rows, torch.where(as_column(better, x_adv), x_adv, self.x_adv[rows]))
        self._loss = self._loss.index_copy(0, rows, torch.where(better, loss, self._loss[rows]))
        self.fooled = self.fooled.index_copy(0, rows, before | fooled)


class Towards(InputGradient):
    """The gradient of a loss (logits, y, target) -> (B,), target (B,) being set before a pass; the margin without."""

    def __init__(self, attack: Any, model: Any, loss: Callable[[Tensor, Tensor, Tensor], Tensor]):
        super().__init__(
            model, self._value, attack.mode, attack.engine, output=attack.output, forward=attack.forward, classes=True
        )
        self._towards = loss
        self.target: Tensor | None = None

    def _value(self, logits: Tensor, y: Tensor) -> Tensor:
        return margin(logits, y) if self.target is None else self._towards(logits, y, self.target)


class Rows:
    """Tensors as attributes, each with one row for every sample of an attempt that is still attacked."""

    def keep(self, index: Tensor) -> None:
        """Go on with these samples alone."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.dim():
                setattr(self, name, value[index])


def chosen(per_sample: float | Tensor, rows: Tensor) -> float | Tensor:
    """A number, or the rows of a tensor that has one number a sample."""
    return per_sample[rows] if isinstance(per_sample, Tensor) and per_sample.numel() > 1 else per_sample
