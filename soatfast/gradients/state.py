"""What a pass may change in a model, and puts back: one way for attacks, losses, evaluation and the drop-ins."""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from soatfast.gradients import behind

Mode = Literal["eval", "train", "keep"]

_locks: weakref.WeakKeyDictionary[nn.Module, threading.RLock] = weakref.WeakKeyDictionary()  # type: ignore[valid-type]
_making = threading.Lock()


class ModelState:
    """A block in which a model is in a mode and, with freeze, its parameters need no gradient.

    On leaving, also by an exception, these are as they were: every module's train/eval flag, every ``requires_grad``,
    every buffer (its values, and the tensor object where a forward puts another in its place), and the parameters of
    layers that change them on a change of mode (adapters that are folded into the weight). Modes are changed by a
    class's own ``train(flag)`` where it has one. A model that cannot change its mode (``torch.export``) keeps it.

    While the block lasts a DistributedDataParallel wrapper anywhere in the model is passed by, so that ranks may take
    different numbers of passes. Weights made under ``torch.inference_mode`` are replaced by copies that autograd can
    use. Weights that are no leaves (the clones of meta-learning) and those of FSDP keep their ``requires_grad``; no
    gradient of theirs is computed either way. Blocks of other threads on the same model wait for this one.

    Args:
        model: a module, or a callable behind which modules are sought (:mod:`soatfast.gradients.behind`).
        mode: "eval", "train" or "keep".
        freeze: parameters need no gradient in the block.
    """

    def __init__(self, model: Any, mode: Mode = "eval", freeze: bool = True):
        self._model, self._mode, self._freeze = model, mode, freeze
        self.modules: list[nn.Module] = []
        self.frozen: list[Tensor] = []  # leaves that need gradients outside the block only
        self.attached: list[Tensor] = []  # parameters that need gradients in the block as well
        self.sharded = False  # by FSDP: its parameters get their gradients in its own backward only
        self.switched = False  # the mode of some module was changed
        self._clear()

    def _clear(self) -> None:
        self._undo: list[Callable[[], None]] = []
        self._buffers: list[tuple[nn.Module, str, Tensor | None, Tensor | None]] = []
        self.modules, self.frozen, self.attached, self.sharded, self.switched = [], [], [], False, False

    def __enter__(self) -> ModelState:
        roots, modules = behind.found(self._model)
        if not roots and self._mode != "keep":
            behind.warn_without_modules(self._model, self._mode)
        lock = _lock_of(modules)
        if lock is not None:
            lock.acquire()
            self._undo.append(lock.release)
        try:
            self.modules = modules
            self._enter(roots)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _enter(self, roots: list[nn.Module]) -> None:
        special = []
        for module in self.modules:
            kind = _kind(module)
            if kind is not None or "train" in module.__dict__:
                special.append((module, kind))
                self._prepare(module, kind)
        if parametrize._cache_enabled:  # what is cached in the block must not serve outside, and the other way round
            self._undo.append(functools.partial(_put_back_cache, dict(parametrize._cache)))
            parametrize._cache.clear()
        self.save_buffers()
        self._undo.append(self._put_back_buffers)
        wanted = self._mode == "train"
        flags = [(module, getattr(module, "training", wanted)) for module in self.modules]
        own = [module for module, kind in special if kind is None or kind.trains]
        needing = self._needing()
        if self._freeze or own:
            self._undo.append(functools.partial(self._unfreeze, needing))
        self._undo.append(functools.partial(_put_back_modes, flags, own))
        for module in own:
            self._undo.insert(-1, functools.partial(_put_back_parameters, module, _copies(module)))
        if self._mode != "keep" and any(flag != wanted for _, flag in flags):
            self.switched = True
            _set_mode(roots, flags, own, wanted)
            if own:
                needing = self._needing()
        if self._freeze:
            self._freeze_all(needing)
        else:
            self.attached = needing

    def _needing(self) -> list[Tensor]:
        """The parameters that need gradients, each once."""
        found = {}
        for module in self.modules:
            for p in module._parameters.values():
                if p is not None and p.requires_grad:
                    found[id(p)] = p
        return list(found.values())

    def _prepare(self, module: nn.Module, kind: _Kind | None) -> None:
        if kind is None:
            return
        if self._freeze and kind.lazy and module.has_uninitialized_params():  # type: ignore[operator]
            raise ValueError(
                f"{type(module).__name__} has no weights before its first forward: run model(x) once, then the attack"
            )
        self.sharded = self.sharded or kind.sharded
        inner = module._modules.get("_orig_mod") if kind.compiled else module
        if isinstance(inner, nn.parallel.DistributedDataParallel):
            self._undo.append(_pass_by(module, inner.module))

    @contextlib.contextmanager
    def without_autocast_inside(self) -> Iterator[None]:
        """Wrappers that put autocast around a forward (Accelerate, Lightning Fabric) are passed by in this block."""
        with contextlib.ExitStack() as stack:
            for module in self.modules:
                kind = _kind(module)
                inner = module.__dict__.get("_original_forward")  # Accelerate's name for the forward it has wrapped
                if kind is not None and kind.fabric:
                    inner = module._modules.get("_forward_module")
                if inner is not None:
                    stack.callback(_pass_by(module, inner))
            yield

    # ------------------------------------------------------------------------------------------ parameters

    def _freeze_all(self, needing: Sequence[Tensor]) -> None:
        for p in needing:
            if self.sharded or not p.is_leaf:
                self.attached.append(p)
            elif not p.is_inference():
                p.requires_grad_(False)
                self.frozen.append(p)
        for module in self.modules:
            for name, own in module._parameters.items():
                if own is not None and own.is_inference():
                    self._undo.append(functools.partial(_put_parameter, module, name, own))
                    _put_parameter(module, name, nn.Parameter(usable(own.detach()), requires_grad=False))
        for module, name, buffer, _ in self._buffers:
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = usable(buffer)

    def _unfreeze(self, needing: Sequence[Tensor]) -> None:
        for p in needing:
            if not p.requires_grad and not p.is_inference():
                p.requires_grad_(True)

    def thaw(self) -> bool:
        """Let the parameters need gradients again, for a forward that differentiates by them; whether any did not."""
        thawed, self.frozen = self.frozen, []
        for p in thawed:
            p.requires_grad_(True)
        self.attached.extend(thawed)
        return bool(thawed)

    @contextlib.contextmanager
    def thawed(self) -> Iterator[list[Tensor]]:
        """All parameters that need gradients outside the block, needing them: for the length of an inner block."""
        try:
            for p in self.frozen:
                p.requires_grad_(True)
            yield [*self.frozen, *self.attached]
        finally:
            for p in self.frozen:
                p.requires_grad_(False)

    # ------------------------------------------------------------------------------------------ buffers

    def save_buffers(self) -> None:
        """What they hold now is what they get back. In eval mode as well: quantisation observers count there too."""
        self._buffers = [
            (module, name, buffer, None if buffer is None else buffer.detach().clone())
            for module in self.modules
            for name, buffer in module._buffers.items()
            if not isinstance(buffer, nn.parameter.UninitializedBuffer)  # of a lazy module before its first forward
        ]

    @contextlib.contextmanager
    def buffers_apart(self) -> Iterator[None]:
        """Forwards in this block see copies of the buffers, so that a graph that outlives it keeps their values.

        Batch norm in eval mode saves its running statistics themselves for the backward, and a training forward changes
        them in place without a trace.
        """
        swapped = [
            (module, name, buffer)
            for module in self.modules
            if module._buffers and not isinstance(module, torch.jit.ScriptModule)
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        for module, name, buffer in swapped:
            module._buffers[name] = buffer.detach().clone()
        try:
            yield
        finally:
            for module, name, buffer in swapped:
                module._buffers[name] = buffer

    def _put_back_buffers(self) -> None:
        for module, name, buffer, saved in self._buffers:
            if buffer is None or saved is None:
                if not isinstance(module, torch.jit.ScriptModule):
                    module._buffers[name] = None
                continue
            if buffer.is_inference():  # which a forward outside inference mode cannot change in place
                with torch.inference_mode():
                    buffer.copy_(saved)
            else:  # .data: a graph that the caller still holds has saved this version of the buffer
                buffer.data.copy_(saved)
            _put_buffer(module, name, buffer)

    def __exit__(self, *exception: object) -> None:
        try:
            _run_backwards(self._undo)
        finally:
            self._clear()


def _run_backwards(steps: list[Callable[[], None]]) -> None:
    """All steps, the last one first, also where one raises."""
    while steps:
        try:
            steps.pop()()
        except BaseException:
            _run_backwards(steps)
            raise


def usable(t: Tensor) -> Tensor:
    """t, or where it was made under ``torch.inference_mode`` a copy that autograd can save."""
    if not t.is_inference():
        return t
    with torch.inference_mode(False):
        return t.clone()


# ---------------------------------------------------------------------------------------------- kinds of modules


class _Kind(NamedTuple):
    trains: bool  # has its own train(), or its own children, which train() reaches
    parallel: bool  # DistributedDataParallel
    sharded: bool  # FSDP, of either generation
    lazy: bool
    fabric: bool  # Lightning Fabric's wrapper
    compiled: bool  # torch.compile's wrapper
    sets: bool  # sets attributes in its own way


def _kind(module: nn.Module) -> _Kind | None:
    """What is special about a module's class; None for nearly all."""
    cls: Any = type(module)
    return _kind_of(cls)


@functools.lru_cache(maxsize=1024)
def _kind_of(cls: Any) -> _Kind | None:
    names = {base.__name__ for base in cls.__mro__}
    kind = _Kind(
        trains=getattr(cls, "train", None) not in (nn.Module.train, torch.jit.ScriptModule.train)
        or (cls.children, cls.named_children) != (nn.Module.children, nn.Module.named_children),
        parallel=issubclass(cls, nn.parallel.DistributedDataParallel),
        sharded=bool(names & {"FSDPModule", "FullyShardedDataParallel"}),
        lazy=issubclass(cls, nn.modules.lazy.LazyModuleMixin),
        fabric="_FabricModule" in names,
        compiled="OptimizedModule" in names,
        sets=cls.__setattr__ is not nn.Module.__setattr__ or hasattr(cls, "training"),
    )
    return kind if any(kind) else None


def is_sharded(model: Any) -> bool:
    """Whether FSDP, of either generation, holds parameters of the model."""
    kinds = (_kind(module) for module in behind.found(model)[1])
    return any(kind is not None and kind.sharded for kind in kinds)


def check_second_derivative(name: str, model: Any) -> None:
    """Raise TypeError where FSDP frees the weights after the first backward, or loses what a second one finds."""
    if is_sharded(model):
        raise TypeError(
            f"{name} goes twice through the model's backward, which FSDP does not support: use "
            "DistributedDataParallel, or a method of differences"
        )


def is_exported(model: nn.Module) -> bool:
    """Whether part of the model is a module of ``torch.export``, which may take batches of one size only."""
    return any("train" in m.__dict__ and isinstance(m, torch.fx.GraphModule) for m in behind.modules([model]))


def _pass_by(module: nn.Module, inner: Callable[..., Any]) -> Callable[[], None]:
    """Let the module's forward be another one; returns what undoes it."""
    undo = functools.partial(_put_back_forward, module, module.__dict__.get("forward"))
    module.__dict__["forward"] = inner
    return undo


def _lock_of(modules: list[nn.Module]) -> threading.RLock | None:  # type: ignore[valid-type]
    """One lock a model, however it is wrapped: that of the first module with parameters."""
    if not modules:
        return None
    key = next((module for module in modules if module._parameters), modules[0])
    lock = _locks.get(key)
    if lock is None:
        with _making:
            lock = _locks.setdefault(key, threading.RLock())
    return lock


# ---------------------------------------------------------------------------------------------- setting and restoring


def _set_mode(roots: list[nn.Module], flags: list[tuple[nn.Module, bool]], own: list[nn.Module], wanted: bool) -> None:
    if not own:
        _put_back_modes([(module, wanted) for module, _ in flags], own)
        return
    try:
        for root in roots:
            root.train(wanted)
    except NotImplementedError:  # torch.export's modules have the mode of their export: the others change
        _put_back_modes([(module, wanted) for module, _ in flags], own)


def _put_back_modes(flags: list[tuple[nn.Module, bool]], own: list[nn.Module]) -> None:
    """Each module's flag, by its class's own train() where it has one; parents come before their children."""
    wanted = dict(flags) if own else {}
    fixed = set()
    for module in own:
        if getattr(module, "training", wanted[module]) != wanted[module]:
            try:
                module.train(wanted[module])
            except NotImplementedError:
                fixed.add(module)
    for module, flag in flags:
        if getattr(module, "training", flag) != flag and module not in fixed:
            if _kind(module) is None:  # nn.Module.__setattr__ would do the same at ten times the cost
                module.__dict__["training"] = flag
            else:
                module.training = flag


def _put_back_forward(module: nn.Module, forward: Any) -> None:
    if forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = forward


def _put_back_cache(cache: dict[Any, Any]) -> None:
    parametrize._cache.clear()
    parametrize._cache.update(cache)


def _copies(module: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """The module's own parameters and copies of their values: folding an adapter in and out again rounds them."""
    return [(name, p, p.detach().clone()) for name, p in module._parameters.items() if p is not None]


def _put_back_parameters(module: nn.Module, copies: list[tuple[str, Tensor, Tensor]]) -> None:
    for name, p, saved in copies:
        if not p.is_inference():
            p.data.copy_(saved)
        if module._parameters.get(name) is not p:
            _put_parameter(module, name, p)


def _put_parameter(module: nn.Module, name: str, p: Tensor) -> None:
    module._parameters[name] = p  # type: ignore[assignment]


def _put_buffer(module: nn.Module, name: str, buffer: Tensor) -> None:
    if not isinstance(module, torch.jit.ScriptModule):
        module._buffers[name] = buffer
    elif getattr(module, name).data_ptr() != buffer.data_ptr():
        setattr(module, name, buffer)
