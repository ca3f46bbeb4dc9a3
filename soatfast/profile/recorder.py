"""Watching a script's passes: global hooks find the outermost modules, time each pass and end each step."""

from __future__ import annotations

import functools
import os
import threading
import time
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from soatfast.gradients.counting import PassCounter, Traversal, tensors
from soatfast.profile.looks import fingerprint, formats, mark, place, read_out, seconds, without
from soatfast.profile.reads import HostReads
from soatfast.profile.steps import Backward, Event, Forward, Step, attack_places, fold

_OF_COMPILE = r"Using `torch.compile\(module\)` when there are global hooks"
_SENTINELS = 8  # parameters whose grad is looked at


class Enough(BaseException):
    """Ends the block after its last step. No Exception: a script's ``except Exception`` is not for it."""

    def __init__(self, recorder: Recorder):
        super().__init__("the last step to be profiled is done")
        self.recorder = recorder


@dataclass(eq=False)
class Call:
    """A call of the model that an estimate can repeat with another input."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    x: Tensor
    training: bool
    autocast: torch.dtype | None

    def __call__(self, model: Any, x: Tensor) -> Any:
        """What the model returns where x stands in the place of the recorded input."""
        args = tuple(x if value is self.x else value for value in self.args)
        return model(*args, **{name: x if value is self.x else value for name, value in self.kwargs.items()})


class Watched(PassCounter):
    """The counter of one outermost module; it tells the recorder when each pass began and ended."""

    def __init__(self, recorder: Recorder, module: nn.Module, number: int):
        super().__init__()
        self.recorder, self.number = recorder, number
        self.module = weakref.ref(module)
        self.name = type(module).__name__
        self.device = next(module.parameters()).device
        inner = list(module.modules())
        self.norms = [m for m in inner if isinstance(m, _NormBase)]
        self.dropouts = [m for m in inner if isinstance(m, _DropoutNd)]
        self.formats = ""
        self._begin: Any = None
        self._pending: list[Backward] = []  # their gradients lie in the parameters' grad
        self._open: dict[Traversal, Backward] = {}
        self._sentinels: list[Any] = []
        self._count = -1
        self._before: list[tuple[int, int] | None] = []
        self._after: list[tuple[int, int] | None] = []

    # ------------------------------------------------------------------------------------------ forwards

    def on_begin(self, module: nn.Module, args: tuple) -> None:
        super().on_begin(module, args)
        self._begin = mark(self.device)

    def on_forward(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: object) -> None:
        end, before = mark(self.device), self.forward
        super().on_forward(module, args, kwargs, output)
        if self.forward == before:
            return
        event = Forward(self._begin, end, self.number, self.forward)
        event.moves = any(m.training and m.track_running_stats for m in self.norms)
        if not self._wrapped and not any(m.training and m.p > 0 for m in self.dropouts):
            event.key = (self.number, module.training, event.moves, fingerprint((args, kwargs)))
        event.where = place()
        if not self.formats:
            self.formats = formats(module, next(tensors((args, kwargs)), None))
        self.recorder.forwards.append(event)
        self.recorder.remember(self, module, args, kwargs)

    # ------------------------------------------------------------------------------------------ backwards

    def begun(self, traversal: Traversal) -> None:
        event = Backward(mark(self.device), None, self.number, traversal)
        self._open[traversal] = event
        self.find_cleared()
        self._before = self._grads()

    def ended(self, traversal: Traversal) -> None:
        event = self._open.pop(traversal, None)
        if event is None:
            return
        event.end = mark(self.device)
        self._after = self._grads()
        if traversal.reached_parameters and self._after != self._before:
            event.added = True
            self._pending.append(event)
        self.recorder.backwards.append(event)

    def _grads(self) -> list[tuple[int, int] | None]:
        """What tells one state of the sentinels' grad from another, without reading it."""
        if len(self.parameters) != self._count:
            self._count = len(self.parameters)
            found = list(self.parameters.keys())
            self._sentinels = [weakref.ref(p) for p in found[:: max(1, len(found) // _SENTINELS)]]
        grads = [p.grad if (p := ref()) is not None else None for ref in self._sentinels]
        return [None if g is None else (id(g), g._version) for g in grads]

    def find_cleared(self) -> None:
        """Mark the gradients that were set to None or to zero since they were computed: no optimizer has seen them."""
        if not self._pending:
            return
        held = [(ref(), old, new) for ref, old, new in zip(self._sentinels, self._after, self._grads(), strict=False)]
        held = [(p, old, new) for p, old, new in held if p is not None and old is not None]
        dropped = any(new is None for _, _, new in held)
        if dropped or (held and all(old != new and not p.grad.any() for p, old, new in held)):
            self._decide("unused")

    def use(self, optimized: set[int]) -> bool:
        """An optimizer with these parameters steps: whether they are the module's."""
        if not any(id(p) in optimized for p in self.parameters):
            return False
        self._decide("used")
        return True

    def give_up(self) -> None:
        """The script ends without any optimizer."""
        self._decide("unused")

    def _decide(self, fate: str) -> None:
        for event in self._pending:
            event.fate = fate
        self._pending = []


class Recorder:
    """A block in which every pass of every outermost module with parameters is counted and timed, step by step."""

    def __init__(self, steps: int | None = None):
        self.limit = steps
        self.steps: list[Step] = []
        self.rest = Step()
        self.models: dict[int, Watched] = {}
        self.forwards: list[Forward] = []
        self.backwards: list[Backward] = []
        self.places: list[str] = []
        self.unseen: set[str] = set()
        self.call: Call | None = None
        self._of_module: weakref.WeakKeyDictionary[nn.Module, Watched] = weakref.WeakKeyDictionary()
        self._local = threading.local()
        self._ends: list[Callable[[], None]] = []
        self._pid = os.getpid()
        self._stepping = False
        self._reads = 0
        self._start: tuple[float, Any] = (0.0, None)
        self.active = False

    def __enter__(self) -> Recorder:
        hooks = (
            register_module_forward_pre_hook(self._before),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        )
        reads = HostReads(self._read).__enter__()
        warnings.filterwarnings("ignore", _OF_COMPILE, UserWarning)
        quiet = functools.partial(without, warnings.filters[0])
        self._ends += [*(hook.remove for hook in hooks), reads.__exit__, quiet]
        self.active = True
        self._start = self._now()
        return self

    def __exit__(self, *error: object) -> None:
        self._finish()
        for end in self._ends:
            end()
        self._ends = []

    def _finish(self) -> None:
        """Nothing is counted from here on."""
        if self.active:
            for watched in self.models.values():
                watched.find_cleared()
                if not self.steps:
                    watched.give_up()
            self.places = attack_places(self.forwards, self.backwards) or self.places
            self.rest = self._folded()
            self.active = False
            for watched in self.models.values():
                watched.close()

    # ------------------------------------------------------------------------------------------ hooks

    def _before(self, module: nn.Module, args: tuple) -> None:
        if torch.compiler.is_compiling() or not self.active:
            return
        local = self._local.__dict__
        current = local.get("module")
        if current is not None:
            local["depth"] += module is current
            return
        if torch._C._current_graph_task_id() != -1:  # a checkpoint computes its forward again, inside a backward
            return
        watched = self._of_module.get(module) or self._watch(module)
        if watched is not None:
            local["module"], local["depth"] = module, 1
            watched.on_begin(module, args)

    def _after(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling() or not self.active:
            return
        local = self._local.__dict__
        if local.get("module") is not module:
            return
        local["depth"] -= 1
        if not local["depth"]:
            local["module"] = None
            self._of_module[module].on_forward(module, args, kwargs, output)

    def _watch(self, module: nn.Module) -> Watched | None:
        """Its new counter; None for a loss, an activation and another module without parameters."""
        if getattr(module, "_is_replica", False) or next(module.parameters(), None) is None:
            return None
        if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
            self.unseen.add(f"the passes of {type(module).__name__} are not known: it is scripted")
            return None
        watched = Watched(self, module, len(self.models))
        self.models[watched.number] = self._of_module[module] = watched
        watched.watch_parameters(module)
        # Not a global hook: with keyword arguments those of torch are neither called rightly nor wholly removed.
        self._ends.append(module.register_forward_hook(self._after, with_kwargs=True, always_call=True).remove)
        return watched

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._stepping = True
        for watched in self.models.values() if self.active else ():
            watched.find_cleared()

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._stepping = False
        if os.getpid() != self._pid:  # a process that the script has forked
            return
        if not self.active:
            if self.limit is not None:
                raise Enough(self)
            return
        optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if not any([watched.use(optimized) for watched in self.models.values()]):
            return  # an attack's own optimizer
        self._local.__dict__["module"] = None
        self.places = attack_places(self.forwards, self.backwards) or self.places
        self.steps.append(self._folded())
        if self.limit is not None and len(self.steps) >= self.limit:
            self._finish()
            raise Enough(self)

    def _read(self, tensor: Tensor) -> None:
        if self.active and not self._stepping and self._local.__dict__.get("module") is None and self.models:
            inside = torch._C._current_graph_task_id() != -1
            self._reads += not inside and any(w.device == tensor.device for w in self.models.values())

    # ------------------------------------------------------------------------------------------ folding

    def remember(self, watched: Watched, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Keep the first call with an input that needs a gradient, else the first call, for the estimate."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        asked = next((t for t in given if t.requires_grad and t.is_floating_point()), None)
        if asked is None or (self.call is not None and self.call.module is module):
            return
        plain = {id(t): t.detach() for t in given}
        dtype = torch.get_autocast_dtype(asked.device.type) if torch.is_autocast_enabled(asked.device.type) else None
        self.call = Call(
            module,
            tuple(plain.get(id(value), value) for value in args),
            {name: plain.get(id(value), value) for name, value in kwargs.items()},
            plain[id(asked)],
            module.training,
            dtype,
        )

    def _now(self) -> tuple[float, Any]:
        """The time, and the same as an event of the GPU where one is in use."""
        if not any(w.device.type == "cuda" for w in self.models.values()):
            return time.perf_counter(), None
        torch.cuda.synchronize()
        return time.perf_counter(), mark(torch.device("cuda"))

    def _folded(self) -> Step:
        reads = self._reads  # folding reads numbers, too
        start, end = self._start, self._now()
        base = end if start[1] is None else start
        events: list[Event] = [*self.forwards, *self.backwards]
        for event in events:
            event.begin, event.end = seconds(event.begin, base), seconds(event.end, base)
        for f in self.forwards:
            f.given = None if f.key is None or f.key[-1] is None else (*f.key[:-1], *read_out(f.key[-1]))
        step = fold(self.forwards, self.backwards, end[0] - start[0], reads)
        self.forwards, self.backwards, self._reads = [], [], 0
        self._start = self._now()
        return step
