"""The model as an evaluation calls and reads it: from inputs to logits (B, K), by ``output=`` and ``forward=``."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from soatfast.attacks import Attack
from soatfast.gradients import outputs
from soatfast.gradients.fixed_batch import FixedBatch, any_batch


class Reading(nn.Module):
    """x -> logits (B, K) of `model`, called by ``forward=`` and read by ``output=``."""

    def __init__(self, model: nn.Module, output: outputs.Output, call: outputs.Forward | None) -> None:
        super().__init__()
        self.model, self.output, self.call = model, output, call

    def forward(self, x: Tensor) -> Tensor:
        return outputs.predict(self.model, x, self.output, self.call)


def as_read(model: nn.Module, output: outputs.Output = None, forward: outputs.Forward | None = None) -> nn.Module:
    """What the evaluation's attacks are given: the model itself where it needs neither reading nor whole batches."""
    outputs.check(output, forward)
    model = any_batch(model)
    return model if output is None and forward is None else Reading(model, output, forward)


def parts(model: nn.Module) -> tuple[nn.Module, outputs.Output, outputs.Forward | None]:
    """(the model inside, output, forward) of what :func:`as_read` returned."""
    return (model.model, model.output, model.call) if isinstance(model, Reading) else (model, None, None)


def network(model: nn.Module) -> nn.Module:
    """The caller's module, whose passes are counted."""
    inner = parts(model)[0]
    return inner.model if isinstance(inner, FixedBatch) else inner


def takes_whole_batches(model: nn.Module) -> bool:
    return isinstance(parts(model)[0], FixedBatch)


def check_attack(name: str, attack: Any, forward: outputs.Forward | None) -> None:
    """Raise ValueError where an attack calls the model in a way that the evaluation does not."""
    if isinstance(attack, Attack) and outputs.within(attack.forward) not in (None, forward):
        raise ValueError(
            f"{name}: the attack calls the model by a forward= that is not the evaluation's, which could not judge "
            "its points: give the evaluation the same forward="
        )


def prepared(attack: Any, model: nn.Module) -> tuple[Any, nn.Module]:
    """The attack and what it is called with: with an output= or forward= of its own the model inside."""
    if not isinstance(attack, Attack) or (attack.output is None and attack.forward is None):
        return attack, model
    inner, output, forward = parts(model)
    own: dict[str, Any] = {
        "output": output if attack.output is None else attack.output,
        "forward": forward if attack.forward is None else attack.forward,
    }
    return dataclasses.replace(attack, **own), inner
