"""Which batch norms may be folded into the convolution or linear layer before them: found by torch.fx, never run."""

from __future__ import annotations

import contextlib
import inspect
import random
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from soatfast.gradients import behind
from soatfast.gradients.engine import is_compiled

LAYERS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Layers that a batch norm is folded into; subclasses may treat their weights in ways of their own."""
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Batch norms that are nothing else. A subclass is one that does more: its forward is traced."""

_SHAPE = ("shape", "ndim", "dtype", "device", "is_cuda", "layout")  # what may be read of a value that is folded
_SHAPE_METHODS = ("size", "dim", "ndimension", "is_floating_point")
_NOT_TRACED = (torch.jit.ScriptModule, nn.DataParallel)  # no Python to trace, and replicas
_SIMPLE = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_PLAIN = frozenset(vars(nn.Module()))

_tracing = threading.Lock()  # fx patches nn.Module for the time of a trace
_traces: weakref.WeakKeyDictionary[nn.Module, tuple[Any, _Trace]] = weakref.WeakKeyDictionary()


@dataclass
class _Trace:
    """What is known of one module's forward; modules are numbers in the order of :func:`behind.modules`."""

    failed: str | None = None
    calls: list[tuple[int, int | None]] = field(default_factory=list)  # (layer, the norm that alone reads it)
    why: dict[int, str] = field(default_factory=dict)  # of a norm that is not folded
    opaque: list[int] = field(default_factory=list)  # modules that were called and not seen into


@dataclass(frozen=True)
class Plan:
    """pairs: (layer, norm), of which the norm reads the layer's output and nothing else does. why: of other norms."""

    pairs: tuple[tuple[nn.Module, nn.Module], ...]
    why: dict[nn.Module, str]


def plan(model: nn.Module, plainly: bool) -> Plan:
    """The pairs of a model in the state that it is in now. plainly: its forward is called with the input alone.

    The whole forward is traced; where that fails, or a module has hooks, the modules inside one by one. A trace is
    kept until the modules, their hooks or their attributes change.
    """
    readers: dict[nn.Module, set[nn.Module | None]] = {}
    why: dict[nn.Module, str] = {}
    left: list[tuple[nn.Module, str]] = [(model, "")]
    seen = set()
    while left:
        root, outer = left.pop()
        if root in seen or isinstance(root, (*LAYERS, _BatchNorm)):
            if isinstance(root, _BatchNorm) and outer:
                why.setdefault(root, outer)
            continue
        seen.add(root)
        if isinstance(root, _NOT_TRACED) or is_compiled(root):
            inside = f"it is inside {type(root).__name__}"
            why.update({module: inside for module in behind.modules([root]) if isinstance(module, _BatchNorm)})
            continue
        trace, tree = _traced(root, plainly and root is model)
        if trace.failed is not None:
            outer = f"{type(root).__name__} cannot be traced: {trace.failed}"
            left.extend((module, outer) for module in root._modules.values() if module is not None)
        for layer, norm in trace.calls:
            readers.setdefault(tree[layer], set()).add(None if norm is None else tree[norm])
        why.update({tree[norm]: reason for norm, reason in trace.why.items()})
        left.extend((tree[module], "") for module in trace.opaque)
    pairs = tuple(
        (layer, norm) for layer, norms in readers.items() if len(norms) == 1 for norm in norms if norm is not None
    )
    for norms in readers.values():
        if len(norms) > 1:
            why.update({norm: "its layer's output has other readers too" for norm in norms if norm is not None})
    return Plan(pairs, why)


def has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def is_patched(module: nn.Module) -> bool:
    """Whether a call of the module does more, or other things, than its class's forward."""
    return "forward" in module.__dict__ or has_hooks(module)


# ---------------------------------------------------------------------------------------------- one trace


def _traced(root: nn.Module, plainly: bool) -> tuple[_Trace, list[nn.Module]]:
    tree = behind.modules([root])
    signature = (plainly, _signature(tree))
    kept = _traces.get(root)
    if kept is not None and kept[0] == signature:
        return kept[1], tree
    trace = _make(root, tree, plainly)
    _traces[root] = signature, trace
    return trace, tree


def _make(root: nn.Module, tree: list[nn.Module], plainly: bool) -> _Trace:
    if "forward" in root.__dict__:
        return _Trace("its forward was replaced")
    try:
        parameters = list(inspect.signature(root.forward).parameters.values())
    except (TypeError, ValueError):
        return _Trace("its forward has no signature")
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    if defaults and not plainly:
        return _Trace(f"its forward takes {', '.join(defaults)}, of unknown values")
    with _tracing, _untouched(tree):
        tracer = _Tracer(root)
        try:
            graph = tracer.trace(root, defaults)
        except Exception as error:  # whatever a forward does with a symbol in place of a tensor
            return _Trace(" ".join(str(error).split())[:100] or type(error).__name__)
        kept = {node for node, proxy in tracer.made if proxy() is not None}
    return _read(graph, dict(root.named_modules()), {module: i for i, module in enumerate(tree)}, kept)


class _Tracer(fx.Tracer):
    """Sees into all modules but torch's own, batch norms and those with hooks, which must not meet a symbol."""

    proxy_buffer_attributes = True

    def __init__(self, root: nn.Module):
        super().__init__()
        self._thread, self._top, self._call = threading.get_ident(), root, nn.Module.__call__
        self.made: list[tuple[fx.Node, weakref.ref[fx.Proxy]]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        special = isinstance(m, (_BatchNorm, *_NOT_TRACED)) or is_compiled(m) or is_patched(m)
        return special or "__call__" in _names_of(type(m)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:  # another thread's model
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = super().proxy(node)
        self.made.append((node, weakref.ref(made)))
        return made


def _names_of(cls: type) -> set[str]:
    """What a class and its bases below nn.Module define."""
    return {name for base in cls.__mro__ if base not in nn.Module.__mro__ for name in vars(base)}


def _read(graph: fx.Graph, named: dict[str, nn.Module], number: dict[nn.Module, int], kept: set[fx.Node]) -> _Trace:
    trace = _Trace()
    for node in graph.nodes:
        if node.op != "call_module":
            continue
        module = named[str(node.target)]
        if isinstance(module, _BatchNorm):
            reason = _why_not(node, named, kept)
            if reason is not None:
                trace.why[number[module]] = reason
        elif type(module) in LAYERS:
            trace.calls.append((number[module], _reader(node, named, number, kept)))
        elif module._modules:
            trace.opaque.append(number[module])
    return trace


def _reader(node: fx.Node, named: dict[str, nn.Module], number: dict[nn.Module, int], kept: set[fx.Node]) -> int | None:
    """The batch norm that alone reads the value of the node, and reads it as its one argument."""
    users = [user for user in node.users if not _reads_shape(user)]
    if len(users) != 1 or node in kept or users[0].op != "call_module" or users[0].args != (node,) or users[0].kwargs:
        return None
    norm = named[str(users[0].target)]
    return number[norm] if isinstance(norm, _BatchNorm) else None


def _reads_shape(user: fx.Node) -> bool:
    if user.op == "call_function" and user.target is getattr:
        return user.args[1] in _SHAPE
    return user.op == "call_method" and user.target in _SHAPE_METHODS


def _why_not(node: fx.Node, named: dict[str, nn.Module], kept: set[fx.Node]) -> str | None:
    before = node.args[0] if len(node.args) == 1 else None
    if not isinstance(before, fx.Node) or node.kwargs:
        return "it is called in an unusual way"
    if before.op != "call_module":
        return "it follows the input" if before.op == "placeholder" else f"it follows {_title(before)}"
    layer = named[str(before.target)]
    if type(layer) not in LAYERS:
        return f"it follows {type(layer).__name__}"
    if before in kept or len([user for user in before.users if not _reads_shape(user)]) > 1:
        return "its layer's output has other readers too"
    return None


def _title(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


_firsts: weakref.WeakKeyDictionary[nn.Module, tuple[Any, bool]] = weakref.WeakKeyDictionary()


def normalises_first(norm: nn.Module) -> bool:
    """Whether a subclass of batch norm reads its input for ``F.batch_norm`` alone, and then does more."""
    tree = behind.modules([norm])
    signature = _signature(tree)
    known = _firsts.get(norm)
    if known is None or known[0] != signature:
        known = _firsts[norm] = signature, _normalises_first(norm, tree)
    return known[1]


def _normalises_first(norm: Any, tree: list[nn.Module]) -> bool:
    with _tracing, _untouched(tree):
        tracer = _Tracer(norm)
        try:
            graph = tracer.trace(norm)
        except Exception:  # as above
            return False
        kept = {node for node, proxy in tracer.made if proxy() is not None}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    users = [user for user in inputs[0].users if not _reads_shape(user)] if len(inputs) == 1 else []
    if len(users) != 1 or inputs[0] in kept or users[0].target is not nn.functional.batch_norm:
        return False
    call = inspect.signature(nn.functional.batch_norm).bind(*users[0].args, **users[0].kwargs)
    call.apply_defaults()
    given = call.arguments
    names = ("running_mean", "running_var", *(("weight", "bias") if norm.affine else ()))
    read = all(isinstance(given[name], fx.Node) and given[name].target == name for name in names)
    affine = norm.affine or given["weight"] is given["bias"] is None
    return read and affine and (given["input"], given["training"], given["eps"]) == (inputs[0], False, norm.eps)


# ---------------------------------------------------------------------------------------------- what a trace may change


@contextlib.contextmanager
def _untouched(tree: list[nn.Module]) -> Iterator[None]:
    """A forward that is traced sets attributes, fills lists, draws random numbers: all are put back."""
    attributes = [(vars(module), dict(vars(module))) for module in tree]
    held = [value for _, values in attributes for value in values.values()]
    lists = [(value, list(value)) for value in held if isinstance(value, list)]
    dicts: list[Any] = [(value, value.copy()) for value in held if isinstance(value, (dict, set))]
    tensors = [(t, t._version, t.clone()) for t in held if isinstance(t, Tensor) and not t.is_inference()]
    state = random.getstate()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        random.setstate(state)
        for now, before in (*dicts, *attributes):
            if isinstance(now, set) or _differs(now, before):
                now.clear()
                now.update(before)
        for values, items in lists:
            if len(values) != len(items) or any(a is not b for a, b in zip(values, items, strict=True)):
                values[:] = items
        for t, version, copy in tensors:
            if t._version != version:
                t.data.copy_(copy)


def _differs(now: dict[Any, Any], before: dict[Any, Any]) -> bool:
    return now.keys() != before.keys() or any(now[key] is not value for key, value in before.items())


def _signature(tree: list[nn.Module]) -> tuple[Any, ...]:
    """What decides how these modules' forwards run, as far as it is seen: classes, places, flags and attributes."""
    number = {module: i for i, module in enumerate(tree)}
    found: list[Any] = []
    for module in tree:
        inner = [(name, None if child is None else number[child]) for name, child in module._modules.items()]
        found += (type(module), module.__dict__.get("training"), is_patched(module), is_compiled(module), inner)
        if type(module) not in (*LAYERS, *NORMS):
            found.append([(k, _value(v, 3)) for k, v in module.__dict__.items() if k not in _PLAIN])
    return tuple(found)


def _value(value: Any, depth: int) -> Any:
    if isinstance(value, _SIMPLE):
        return value
    if isinstance(value, (Tensor, nn.Module)):
        return type(value)
    if depth and isinstance(value, (list, tuple)) and len(value) < 100:
        return [_value(v, depth - 1) for v in value]
    if depth and isinstance(value, dict) and len(value) < 100:
        return [(k if isinstance(k, _SIMPLE) else id(k), _value(v, depth - 1)) for k, v in value.items()]
    if depth and not callable(value) and hasattr(value, "__dict__"):  # a configuration
        return [type(value), _value(vars(value), depth - 1)]
    return id(value)
