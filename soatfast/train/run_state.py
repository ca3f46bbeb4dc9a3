"""How far a training is: what a checkpoint holds besides weights, optimiser, random states and memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.losses import FreeState, SORAState
from soatfast.train.averaging import AveragedModel
from soatfast.train.guard import OverfittingGuard

_COMMON = ("epoch", "batches", "seconds", "spent", "passes", "history")


@dataclass
class RunState:
    """What a checkpoint holds besides weights, optimiser, random states and memory."""

    epoch: int = 0
    batches: int = 0  # of the epoch under way that are done
    seconds: float = 0.0
    spent: tuple[float, float] = (0.0, 0.0)  # seconds and processor seconds of the epoch under way
    passes: dict[str, int] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    guard: OverfittingGuard | None = None
    average: AveragedModel | None = None
    # Of this process alone:
    total: Tensor | None = None  # () sum of the losses of the epoch under way
    generators: list[torch.Generator] = field(default_factory=list)
    loss: SORAState | FreeState | None = None
    model: nn.Module | None = None  # of several processes: batch-norm statistics are each one's own

    @property
    def buffers(self) -> dict[str, Tensor]:
        return {} if self.model is None else dict(self.model.named_buffers())

    def state_dict(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in _COMMON}
        guard = None if self.guard is None else self.guard.state_dict()
        average = None if self.average is None else self.average.state_dict()
        return {**values, "guard": guard, "average": average}

    def own_dict(self) -> dict[str, Any]:
        loss = None if self.loss is None else self.loss.state_dict()
        generators = [g.get_state() for g in self.generators]
        return {"total": self.total, "generators": generators, "loss": loss, "buffers": self.buffers}

    def load(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        for name in _COMMON:
            setattr(self, name, state[name])
        if self.guard is not None:
            self.guard.load_state_dict(state["guard"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.total = own["total"]
        if self.loss is not None:
            self.loss.load_state_dict(own["loss"])
        for generator, saved in zip(self.generators, own["generators"], strict=True):
            generator.set_state(saved)
        with torch.no_grad():
            for name, buffer in self.buffers.items():
                buffer.copy_(own["buffers"][name])
