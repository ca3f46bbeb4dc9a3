"""Numbers of network passes, and the module that they are passes of."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import nn


@dataclass(frozen=True)
class Passes:
    """Numbers of network passes: calls, and samples that went through them.

    A backward traversal that reaches parameters counts as ``backward_parameters`` (it may reach the input as well); one
    that reaches only the input as ``backward_input``. A stacked batch of 2B is one call and 2B samples.
    """

    forward: int = 0
    backward_input: int = 0
    backward_parameters: int = 0
    forward_samples: int = 0
    backward_input_samples: int = 0
    backward_parameters_samples: int = 0

    def __add__(self, other: Passes) -> Passes:
        return Passes(*(a + b for a, b in zip(self._values(), other._values(), strict=True)))

    def __mul__(self, times: int) -> Passes:
        return Passes(*(times * a for a in self._values()))

    __rmul__ = __mul__

    def _values(self) -> tuple[int, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))


def passes_of(batch: int = 1, *, forward: int = 0, backward_input: int = 0, backward_parameters: int = 0) -> Passes:
    """Passes of whole batches, each of ``batch`` samples."""
    return Passes(
        forward,
        backward_input,
        backward_parameters,
        forward * batch,
        backward_input * batch,
        backward_parameters * batch,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a DistributedDataParallel wrapper: an attack must not synchronise ranks."""
    compiled = getattr(model, "_orig_mod", None)  # torch.compile of the wrapper
    if isinstance(compiled, nn.parallel.DistributedDataParallel):
        model = compiled
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model
