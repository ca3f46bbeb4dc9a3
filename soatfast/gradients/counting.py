"""Counting forward and backward passes of a model by hooks, whoever runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from soatfast.gradients import behind
from soatfast.gradients.passes import Passes, unwrap


@dataclass(eq=False)
class Traversal:
    """One run of the autograd engine through the model; ``outputs`` are the numbers of the forward calls it reached."""

    samples: int = 0
    outputs: set[int] = field(default_factory=set)
    reached_input: bool = False
    reached_parameters: bool = False


class PassCounter:
    """What :func:`count_passes` yields: live counts, readable at any time, also after the block."""

    def __init__(self) -> None:
        self.forward = 0
        self.forward_samples = 0
        self.traced = False  # Dynamo has compiled the hooks into its graph
        self._active = True
        self._depth = 0  # calls of the model that have begun and not ended
        self._wrapped = False  # tensors of vmap or torch.func were seen
        self._traversals: list[Traversal] = []
        self._of_task: dict[int, Traversal] = {}
        self._running: dict[int, list[Traversal]] = {}  # of a thread
        self.parameters = WeakTensorKeyDictionary()  # those that are watched, and what ends it

    def _select(self, parameters: bool) -> list[Traversal]:
        return [
            t
            for t in self._traversals
            if t.reached_parameters == parameters and (parameters or (t.reached_input and t.outputs))
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
        return Passes(*(getattr(self, f.name) for f in dataclasses.fields(Passes)))

    def __repr__(self) -> str:
        return repr(self.total()).replace("Passes", "PassCounter")

    # ------------------------------------------------------------------------------------------ hooks

    def on_begin(self, module: nn.Module, args: tuple) -> None:
        if not torch.compiler.is_compiling():
            self._depth += 1

    def on_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: object) -> None:
        if torch.compiler.is_compiling():
            self.traced = True
            return
        self._depth -= 1
        if not self._active or output is None:  # the hook is called where the forward raised, too
            return
        if torch._C._current_graph_task_id() == -1:
            self._running.pop(threading.get_ident(), None)  # of a backward that raised
        inputs, outputs = list(tensors((args, kwargs))), list(tensors(output))
        if any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in (*inputs, *outputs)):
            self._wrapped = True
        self.forward += 1
        call = self.forward
        samples = next((t.shape[0] for t in (*inputs, *outputs) if t.dim()), 0)
        self.forward_samples += samples

        def reach_output(_: Tensor) -> None:
            traversal = self._traversal()
            if traversal is not None and call not in traversal.outputs:
                traversal.outputs.add(call)
                traversal.samples += samples

        def reach_input(grad: Tensor) -> None:
            traversal = self._traversal()
            if traversal is not None:
                traversal.reached_input = True
            if grad is not None and grad.requires_grad:  # a backward through it goes through this call again
                grad.register_hook(reach_output)

        for t in outputs:
            if t.requires_grad:
                t.register_hook(reach_output)
        for t in inputs:
            if t.requires_grad:
                t.register_hook(reach_input)
        self.watch_parameters(module)

    def watch_parameters(self, module: nn.Module) -> None:
        """Those that need gradients now: under functional_call, or unfrozen in the block, they are others each time."""
        for inner in behind.modules([module]):
            for p in inner._parameters.values():
                if p is not None and p.requires_grad and p not in self.parameters:
                    self.parameters[p] = p.register_hook(self._on_parameter)

    def _on_parameter(self, _: Tensor) -> None:
        traversal = self._traversal()
        if traversal is not None:
            traversal.reached_parameters = True

    def _traversal(self) -> Traversal | None:
        """Of the run of the autograd engine that calls the hook.

        A run inside another (a checkpoint with use_reentrant=True) belongs to it. One inside a forward is the model's
        own affair.
        """
        task = torch._C._current_graph_task_id()  # one number a run
        if not self._active or self._depth > 0 or task == -1:
            return None
        found = self._of_task.get(task)
        if found is None:
            running = self._running.setdefault(threading.get_ident(), [])
            if running:
                found = running[-1]
            else:
                found = Traversal()
                self._traversals.append(found)
                running.append(found)
                self.begun(found)
                end = functools.partial(self._end, running, found)
                torch.autograd.Variable._execution_engine.queue_callback(end)  # type: ignore[attr-defined]
            self._of_task[task] = found
        return found

    def _end(self, running: list[Traversal], traversal: Traversal) -> None:
        running.clear()
        if self._active:
            self.ended(traversal)

    def begun(self, traversal: Traversal) -> None:
        """A run of the autograd engine has reached the model: for a subclass that times it."""

    def ended(self, traversal: Traversal) -> None:
        """It is over; one that raised has no end."""

    def doubt(self, module: nn.Module) -> str | None:
        """Why the counts are not known, or None."""
        if self.traced or (not self.forward and _compiled_elsewhere(module)):
            return "the model runs inside a graph of torch.compile; count the passes of what torch.compile returned"
        if self._wrapped:
            return "the model runs under vmap or another transform of torch.func"
        if any(t.reached_parameters and not t.outputs for t in self._traversals):
            return "a backward reached the parameters through no forward that was counted"
        if any(t.outputs and not (t.reached_input or t.reached_parameters) for t in self._traversals):
            return "a backward through the model reached neither an input nor a parameter"
        return None

    def close(self) -> None:
        self._active = False
        for handle in list(self.parameters.values()):
            handle.remove()
        self._of_task.clear()
        self._running.clear()


def tensors(value: object) -> Iterator[Tensor]:
    """All tensors in a value: in tuples, lists, dicts and dataclasses."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for held in value.values():
            yield from tensors(held)
    elif isinstance(value, (tuple, list)):
        for held in value:
            yield from tensors(held)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from tensors(getattr(value, f.name, None))


def _compiled_elsewhere(module: nn.Module) -> bool:
    """Whether something that torch.compile returned holds the module: it need not look at hooks of today."""
    if "torch._dynamo" not in sys.modules:
        return False
    return any(isinstance(held, dict) and held.get("_orig_mod") is module for held in gc.get_referrers(module))


def _listen(module: nn.Module, counter: PassCounter) -> list[Callable[[], None]]:
    """Let the counter see the module's calls; returns what ends that."""
    compiled = module.__dict__.get("_compiled_call_impl")  # by module.compile(), in place
    if compiled is None and not isinstance(module, torch.jit.ScriptModule):
        begin = module.register_forward_pre_hook(counter.on_begin)
        end = module.register_forward_hook(counter.on_forward, with_kwargs=True, always_call=True)
        return [begin.remove, end.remove]
    inner = module._call_impl if compiled is None else compiled

    def call(*args: Any, **kwargs: Any) -> Any:  # a scripted module takes no hooks, a compiled one runs them inside
        counter.on_begin(module, args)
        output = None
        try:
            output = inner(*args, **kwargs)
        finally:
            counter.on_forward(module, args, kwargs, output)
        return output

    module.__dict__["_compiled_call_impl"] = call

    def end_calls() -> None:
        if compiled is None:
            del module.__dict__["_compiled_call_impl"]
        else:
            module.__dict__["_compiled_call_impl"] = compiled

    return [end_calls]


@contextlib.contextmanager
def count_passes(model: nn.Module) -> Iterator[PassCounter]:
    """Count the forward calls, backward traversals to the input and to the parameters, and the samples in them.

    Counts by hooks on the module, so it sees any code that calls it: a training script, another library's attack.
    A traversal is one run of the autograd engine (one ``backward()`` or ``autograd.grad``), however many forward calls
    it goes back through; gradients that a forward takes itself are part of it. Inputs may be given by keyword, and
    outputs may lie in tuples, dicts and dataclasses. Nothing is counted after the block, and all hooks are removed.

    Where the counts are not known, a warning at the end of the block says so: the model ran inside a graph of
    torch.compile or under vmap, or a backward went through it whose forward was not seen.

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
    ends = _listen(module, counter)
    counter.watch_parameters(module)
    try:
        yield counter
    finally:
        counter.close()
        for end in ends:
            end()
        reason = counter.doubt(module)
        if reason is not None:
            warnings.warn(f"the numbers of passes are not known: {reason}", stacklevel=3)
