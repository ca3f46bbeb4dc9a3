"""Counting forward and backward passes of a model by hooks, whoever runs them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor, nn


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


@dataclass
class _Traversal:
    """One run of the autograd engine through the model."""

    samples: int = 0
    outputs: set[int] = field(default_factory=set)
    reached_input: bool = False
    reached_parameters: bool = False


class PassCounter:
    """What :func:`count_passes` yields: live counts, readable at any time, also after the block."""

    def __init__(self) -> None:
        self.forward = 0
        self.forward_samples = 0
        self._active = True
        self._traversals: dict[int, _Traversal] = {}

    def _select(self, parameters: bool) -> list[_Traversal]:
        return [
            t
            for t in self._traversals.values()
            if t.reached_parameters == parameters and (parameters or t.reached_input)
        ]

    @property
    def backward_input(self) -> int:
        return len(self._select(False))

    @property
    def backward_parameters(self) -> int:
        return len(self._select(True))

    @property
    def backward_input_samples(self) -> int:
        return sum(t.samples for t in self._select(False))

    @property
    def backward_parameters_samples(self) -> int:
        return sum(t.samples for t in self._select(True))

    def total(self) -> Passes:
        """The counts so far, as a value that compares with ``attack.passes(batch)``."""
        return Passes(*(getattr(self, field.name) for field in fields(Passes)))

    def __repr__(self) -> str:
        return repr(self.total()).replace("Passes", "PassCounter")

    def _traversal(self) -> _Traversal:
        task = torch._C._current_graph_task_id()  # one number a run of the autograd engine
        return self._traversals.setdefault(task, _Traversal())

    def _on_forward(self, module: nn.Module, args: tuple, output: object) -> None:
        if not self._active:
            return
        logits = _first_tensor(output)
        source = _first_tensor(args)
        samples = 0
        for t in (source, logits):
            if t is not None and t.dim():
                samples = t.shape[0]
                break
        self.forward += 1
        self.forward_samples += samples
        call = self.forward
        if logits is not None and logits.requires_grad:
            logits.register_hook(lambda _: self._on_output(call, samples))
        if source is not None and source.requires_grad:
            source.register_hook(lambda _: self._on_input())

    def _on_output(self, call: int, samples: int) -> None:
        if self._active:
            traversal = self._traversal()
            if call not in traversal.outputs:
                traversal.outputs.add(call)
                traversal.samples += samples

    def _on_input(self) -> None:
        if self._active:
            self._traversal().reached_input = True

    def _on_parameter(self, _: Tensor) -> None:
        if self._active:
            self._traversal().reached_parameters = True


def _first_tensor(value: object) -> Tensor | None:
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((t for t in map(_first_tensor, values) if t is not None), None)


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside a DistributedDataParallel wrapper: an attack must not synchronise ranks."""
    compiled = getattr(model, "_orig_mod", None)  # torch.compile of the wrapper
    if isinstance(compiled, nn.parallel.DistributedDataParallel):
        model = compiled
    while isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    return model


@contextlib.contextmanager
def count_passes(model: nn.Module) -> Iterator[PassCounter]:
    """Count the forward calls, backward traversals to the input and to the parameters, and the samples in them.

    Counts by hooks on the module, so it sees any code that calls it: a training script, another library's attack.
    A traversal is one run of the autograd engine (one ``backward()`` or ``autograd.grad``), however many forward calls
    it goes back through. Nothing is counted after the block, and all hooks on the model are removed.

    >>> import torch
    >>> from soatfast.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    >>> with count_passes(model) as passes:
    ...     x_adv = PGD(eps=0.1, steps=7)(model, x, y)
    >>> passes.forward, passes.backward_input, passes.backward_parameters, passes.forward_samples
    (7, 7, 0, 35)
    """
    counter = PassCounter()
    module = unwrap(model)
    handles = [module.register_forward_hook(counter._on_forward)]
    handles += [p.register_hook(counter._on_parameter) for p in module.parameters() if p.requires_grad]
    try:
        yield counter
    finally:
        counter._active = False
        for handle in handles:
            handle.remove()
