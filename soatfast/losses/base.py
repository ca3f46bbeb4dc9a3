"""What every training loss has in common, and the plain one."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from soatfast.attacks.base import Attack, AttackType, Model
from soatfast.attacks.region import check_bounds
from soatfast.gradients import outputs
from soatfast.gradients.checks import check_batch, check_labels
from soatfast.gradients.kernels import has_recurrent, without_cudnn
from soatfast.gradients.objectives import Named, Objective, check_values, resolve
from soatfast.gradients.outputs import Forward, Output
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import wide
from soatfast.memory.store import PerturbationMemory
from soatfast.ops.arguments import check_fields
from soatfast.ops.fields import ByValue

LossType = TypeVar("LossType", bound="Loss")
Step = tuple[Tensor, Tensor]
"""The scalar loss of a training step, and the logits of its training forward at the adversarial example."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss(ByValue):
    """``loss(model, x, y)`` returns the scalar to call ``.backward()`` on.

    A loss with a memory needs the samples' numbers as well, ``loss(model, x, y, index)``, and where the data set
    augments, ``loss(model, x, y, index, moves)``.

    The training forwards run in the mode and through the wrapper (DistributedDataParallel, autocast) that the caller
    gives; an attack inside runs in its own mode and leaves the model as it was.

    Args:
        objective: the l_i of the formulas, in training and in the attack: "ce" (cross-entropy), or a callable
            (logits, y) -> (B,), which gets the model's output as it is, of any shape, and y of any dtype and shape
            (B, ...): soft labels, mixup, label smoothing, class weights, segmentation, regression.
        output: which part of what the model returns, as an attack's; None: recognised.
        forward: (model, x) -> output, as an attack's; None: model(x).
        return_output: return ``(loss, output)``: output (B, K) are the logits that the training forward gave at the
            adversarial example x', or at the point that is trained on where a loss has no x'. Detached, in float32 or
            wider, as the objective takes them; no pass more. For train accuracy: ``(output.argmax(1) == y).sum()``.
    """

    objective: Named | Objective = "ce"
    output: Output = None
    forward: Forward | None = None
    return_output: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        outputs.check(self.output, self.forward)
        resolve(self.objective)
        if hasattr(self, "bounds"):
            object.__setattr__(self, "bounds", check_bounds(self.bounds))

    @property
    def _labels(self) -> bool:
        """Whether y must be labels."""
        return isinstance(self.objective, str)

    @property
    def _asked(self) -> dict[str, Any]:
        """How the model is asked, for the attack inside."""
        return {"objective": self.objective, "output": self.output, "forward": self.forward}

    def _logits(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """The output of a training forward, in float32 or wider: logits (B, K), or as the objective takes it."""
        own = isinstance(model, nn.Module) and not model.training and has_recurrent(model.modules())
        with without_cudnn() if own else contextlib.nullcontext():
            returned = model(x) if self.forward is None else self.forward(model, x)  # type: ignore[arg-type]
        if not isinstance(self.objective, str):
            return wide(outputs.read(returned, len(x), self.output))
        logits = outputs.logits_of(returned, len(x), self.output)
        check_labels(y, logits.shape[1])
        return wide(logits)

    def _values(self, logits: Tensor, y: Tensor) -> Tensor:
        """l (B,) of an output."""
        values = resolve(self.objective)[0](logits, y)
        check_values(values, len(logits))
        return values

    def _sample_losses(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """l (B,) of a training forward, in float32 or wider."""
        return self._values(self._logits(model, x, y), y)

    def _trained(self, model: Model, x: Tensor, y: Tensor) -> Step:
        """The mean of l over the batch, and the logits, of a training forward."""
        logits = self._logits(model, x, y)
        return mean(self._values(logits, y)), logits

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return self._answer(self._step_of(model, x, y))

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        raise NotImplementedError

    def _answer(self, step: Step) -> Tensor:
        """What a call returns; typed as the loss alone, so that a type checker knows its ``backward()``."""
        value, output = step
        return (value, output.detach()) if self.return_output else value  # type: ignore[return-value]

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


@dataclass(frozen=True, kw_only=True, eq=False)
class MemoryLoss(Loss):
    """A loss that takes a memory: also ``loss(model, x, y, index)``, or ``loss(model, x, y, index, moves)``."""

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None, moves: Tensor | None = None
    ) -> Tensor:
        return self._answer(self._step_of(model, x, y, index, moves))

    def _step_of(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None, moves: Tensor | None = None
    ) -> Step:
        raise NotImplementedError


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


def attack_passes(attack: Attack, memory: PerturbationMemory | None, batch: int) -> Passes:
    """Passes of :func:`attacked`."""
    return attack.passes(batch) if memory is None else attack.replay_passes(batch)


def training_logits(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """Logits (B, K) of a training forward, in float32 or wider."""
    return Loss()._logits(model, x, y)


def mean(losses: Tensor) -> Tensor:
    """Mean over the batch; 0 for an empty one, still attached to the model."""
    return losses.sum() / max(len(losses), 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossEntropy(Loss):
    """Standard training: mean_i l_i(x), l the cross-entropy or ``objective``.

    Passes: 1 forward, 1 backward to the parameters.

    >>> import torch
    >>> CrossEntropy()(torch.nn.Identity(), torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    tensor(0.6931)
    """

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_batch(x, y, (-float("inf"), float("inf")), self._labels)
        return self._trained(model, x, y)

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=1, backward_parameters=1)

    def with_eps(self, eps: float | Tensor) -> CrossEntropy:
        return self
