"""Samples that are done once the model is fooled: they take no further step, and leave the passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soatfast.gradients.engine import parse
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.parts import takes_parts
from soatfast.ops.arguments import as_column, check_steps


def check_early_stop(attack: Any) -> None:
    """Raise unless stop_after is a whole number >= 0 and goes with early_stop, and the engine goes with both."""
    check_steps(attack.stop_after, "stop_after", least=0)
    if attack.stop_after and not attack.early_stop:
        raise ValueError(f"stop_after needs early_stop=True, got stop_after={attack.stop_after}")
    if attack.early_stop and parse(attack.engine).graph:
        raise ValueError(
            f'early_stop takes no engine with "graph", whose recordings are of whole batches, got {attack.engine!r}'
        )


class EarlyStop:
    """One attack on one batch: who still takes steps, and passes of these alone where the model allows it.

    A pass at x_adv says who is fooled there. Such a sample stays at that point, or takes one of its ``stop_after``
    further steps. Where the rows of a batch cannot be asked alone (:func:`takes_parts`) every pass is of the whole
    batch, and a sample stands still in each step that finds it fooled.

    moving (B,) bool: takes the next step. loss, fooled (B,): at the point of the sample's last pass.
    """

    def __init__(self, attack: Any, oracle: InputGradient, x: Tensor, y: Tensor):
        if y.dim() != 1 or y.is_floating_point():
            raise ValueError(f"early_stop needs labels y (B,), got {y.dtype} of shape {tuple(y.shape)}")
        self._oracle, self._y = oracle, y
        own_masks = attack.mask is not None and len(attack.mask) > 1
        self._in_parts = takes_parts(oracle) and not own_masks
        self._further: int = attack.stop_after
        self.fooled = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.loss = torch.full((len(x),), -torch.inf, dtype=dtype, device=x.device)
        self.begin(self.fooled)

    def begin(self, done: Tensor) -> None:
        """A new attempt, of those that are not done (B,) yet."""
        self.moving, self._retired = ~done, done
        self._left = torch.full_like(self.moving, self._further, dtype=torch.int64)

    def stopped(self) -> bool:
        """Whether no sample takes the next step. A host read; under FSDP never, as other ranks may go on."""
        return not self._oracle.state.sharded and not bool(self.moving.any())

    def gradient(self, x_adv: Tensor, with_loss: bool = False) -> Tensor:
        """g (B, ...) at x_adv, 0 for those that have left; ``moving`` without those that stay there from now on."""
        rows = self._rows()
        if rows is None:
            loss, g = self._oracle(x_adv, self._y) if with_loss else (None, self._oracle.gradient(x_adv, self._y))
        else:
            part, labels = x_adv[rows], self._y[rows]
            loss, some = self._oracle(part, labels) if with_loss else (None, self._oracle.gradient(part, labels))
            g = torch.zeros_like(x_adv).index_copy_(0, rows, some.to(x_adv.dtype))
        self._note(rows, loss)
        done = self.fooled & (self._left == 0)
        self._left = torch.where(self.fooled, (self._left - 1).clamp_min(0), self._left)
        self.moving = ~(done | self._retired)
        if self._in_parts:
            self._retired = ~self.moving
        return g

    def retire(self, rows: Tensor) -> None:
        """These (B,) bool take no further step, fooled or not."""
        self._retired = self._retired | rows
        self.moving = self.moving & ~rows

    def score(self, x_adv: Tensor) -> None:
        """Note the loss at x_adv of those that took the last step."""
        rows = self._rows()
        if rows is None:
            self._note(None, self._oracle.loss(x_adv, self._y))
        elif len(rows):
            self._note(rows, self._oracle.loss(x_adv[rows], self._y[rows]))

    def moved(self, before: Tensor, after: Tensor) -> Tensor:
        """after for those that move, before for the others."""
        return torch.where(as_column(self.moving, before), after, before)

    def _rows(self) -> Tensor | None:
        """Which samples are asked; None: all."""
        if not self._in_parts or bool(self.moving.all()):
            return None
        return self.moving.nonzero().squeeze(1)

    def _note(self, rows: Tensor | None, loss: Tensor | None) -> None:
        logits = self._oracle.logits
        assert logits is not None
        if logits.dim() != 2 or logits.shape[1] < 2:
            raise ValueError(f"early_stop needs logits (B, K), got a model's output of shape {tuple(logits.shape)}")
        if rows is None:
            self.fooled = self._oracle.fooled(self._y)
            self.loss = self.loss if loss is None else loss.to(self.loss)
            return
        self.fooled = self.fooled.index_copy(0, rows, self._oracle.fooled(self._y[rows]))
        if loss is not None:
            self.loss = self.loss.index_copy(0, rows, loss.to(self.loss))
