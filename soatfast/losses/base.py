"""What every training loss has in common, and the plain one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from soatfast.attacks.base import Attack, AttackType, Model
from soatfast.gradients.checks import check_batch, check_labels, check_logits
from soatfast.gradients.objectives import cross_entropy
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import wide
from soatfast.memory.store import PerturbationMemory
from soatfast.ops.arguments import check_fields

LossType = TypeVar("LossType", bound="Loss")


@dataclass(frozen=True, kw_only=True)
class Loss:
    """``loss(model, x, y)`` returns the scalar to call ``.backward()`` on.

    A loss with a memory needs the samples' numbers as well, ``loss(model, x, y, index)``, and where the data set
    augments, ``loss(model, x, y, index, moves)``.

    The training forwards run in the mode and through the wrapper (DistributedDataParallel, autocast) that the caller
    gives; an attack inside runs in its own mode and leaves the model as it was.
    """

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def passes(self, batch: int = 1) -> Passes:
        """Passes of one training step (this loss and its backward), as ``count_passes`` counts them."""
        raise NotImplementedError

    def with_eps(self: LossType, eps: float | Tensor) -> LossType:
        """The same loss with another radius, for an eps ramp."""
        if not hasattr(self, "eps"):
            raise NotImplementedError(f"{type(self).__name__} has no radius")
        return dataclasses.replace(self, eps=eps)  # type: ignore[call-arg]

    def with_steps(self: LossType, steps: int) -> LossType:
        """The same loss with another number of attack steps."""
        if not hasattr(self, "steps"):
            raise NotImplementedError(f"{type(self).__name__} has no attack steps")
        return dataclasses.replace(self, steps=steps)  # type: ignore[call-arg]

    def with_h(self: LossType, h: float) -> LossType:
        """The same loss with another finite-difference step, for an h ramp."""
        if not hasattr(self, "h"):
            raise NotImplementedError(f"{type(self).__name__} has no finite-difference step")
        return dataclasses.replace(self, h=h)  # type: ignore[call-arg]


def fields_of(attack: type[AttackType], loss: Loss, **changed: Any) -> AttackType:
    """The attack inside a loss: each of its fields that the loss has too is the loss's, but for those ``changed``."""
    shared = {field.name for field in dataclasses.fields(attack)} & {field.name for field in dataclasses.fields(loss)}
    return attack(**{name: getattr(loss, name) for name in shared} | changed)


def check_memory(memory: object, attack: Attack) -> None:
    """Raise unless the memory is one, or None, and the attack can go on from it."""
    if memory is None:
        return
    if not isinstance(memory, PerturbationMemory):
        raise TypeError(f"memory must be a PerturbationMemory or None, got {type(memory).__name__}")
    attack.check_replay()


def attacked(
    attack: Attack,
    memory: PerturbationMemory | None,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    index: Tensor | None,
    moves: Tensor | None,
) -> Tensor:
    """The attacked batch, from scratch or from the memory."""
    return attack(model, x, y) if memory is None else attack.replay(model, x, y, memory, index, moves)


def training_logits(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Logits (B, K) of a training forward, in float32 or wider."""
    logits = model(x)
    check_logits(logits, len(x))
    check_labels(y, logits.shape[1])
    return wide(logits)


def sample_losses(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy (B,) of a training forward, in float32 or wider."""
    return cross_entropy(training_logits(model, x, y), y)


def mean(losses: Tensor) -> Tensor:
    """Mean over the batch; 0 for an empty one, still attached to the model."""
    return losses.sum() / max(len(losses), 1)


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Loss):
    """Standard training: mean_i l_i(x). Passes: 1 forward, 1 backward to the parameters.

    >>> import torch
    >>> CrossEntropy()(torch.nn.Identity(), torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    tensor(0.6931)
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        check_batch(x, y, (-float("inf"), float("inf")))
        return mean(sample_losses(model, x, y))

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=1, backward_parameters=1)

    def with_eps(self, eps: float | Tensor) -> CrossEntropy:
        return self
