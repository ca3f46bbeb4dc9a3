"""Batch norm folded into the layer before it, for the passes of one attack."""

from __future__ import annotations

import contextlib
import functools
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from soatfast.gradients.folding import LAYERS, NORMS, has_hooks, is_patched, normalises_first, plan
from soatfast.gradients.state import Mode, ModelState

_said: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
_ENTRIES = 8192  # of float64 that stay in the cache
_given_up: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # layers whose output went another way than was traced


@dataclass(frozen=True)
class Folding:
    """How many of a model's batch norms are folded, and of the others why not: by name."""

    folded: int
    total: int
    kept: dict[str, str]

    def __str__(self) -> str:
        text = f"{self.folded} of {self.total} batch norms are folded"
        reasons = Counter(self.kept.values()).most_common()
        return text + "".join(f"; {count} not: {reason}" for reason, count in reasons)


def foldable(model: nn.Module, mode: Mode = "eval") -> Folding:
    """What engine "folded" does with a model in an attack's mode.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    >>> print(foldable(net))
    1 of 2 batch norms are folded; 1 not: it follows ReLU
    """
    with ModelState(model, mode) as state:
        return Fold(model, state).folding


class Fold:
    """The folded weights of a model in an entered state, and :meth:`in_use` the passes that use them.

    A batch norm in eval mode is y = s z + t with s = gamma / sqrt(var + eps), t = beta - s mean. Where it alone reads
    the output z = W x + b of a layer, the layer with the weights s W and s b + t gives y. They are computed in float64
    and stored in the weights' dtype. The model is called as ever: for the time of a pass the layer's forward takes
    these weights, and the batch norm's returns what it gets. Weights that change in place are folded again.

    Args:
        model: called with the input alone, unless plainly is False.
        state: entered, and the layouts of the weights set.
        lower: autocast's precision, in which the folded weights are kept as well.
    """

    def __init__(self, model: nn.Module, state: ModelState, plainly: bool = True, lower: torch.dtype | None = None):
        self._lower = lower
        self._depth = 0
        norms: list[nn.Module] = [module for module in state.modules if isinstance(module, _BatchNorm)]
        why = dict.fromkeys(norms, "it is not called in the forward that was traced")
        self._pairs: list[_Pair] = []
        if _no_model_folds(state):
            why = dict.fromkeys(norms, str(_no_model_folds(state)))
        elif norms and any(not norm.training for norm in norms):
            found = plan(model, plainly)
            why.update({norm: reason for norm, reason in found.why.items() if norm in why})
            for layer, norm in found.pairs:
                reason = _unfit(layer, norm) or _unknown(norm)
                if layer in _given_up:
                    reason = "its layer's output has gone elsewhere too"
                pair = None if reason else _Pair(layer, norm, lower)
                if pair is not None and pair.fits():
                    self._pairs.append(pair)
                else:
                    why[norm] = reason or "its folded weights leave the range of their dtype"
        self.layers = {pair.layer for pair in self._pairs}
        self._waiting: dict[nn.Module, list[Tensor]] = {pair.norm: [] for pair in self._pairs}
        why.update({norm: "it uses the statistics of the batch" for norm in norms if _of_batch(norm)})
        names = {module: name for name, module in model.named_modules()}
        kept = {names.get(n, f"batch norm {i}"): why[n] for i, n in enumerate(norms) if n not in self._waiting}
        self.folding = Folding(len(norms) - len(kept), len(norms), kept)
        scripted = [module for module in state.modules if isinstance(module, torch.jit.ScriptModule)]
        if not self._pairs and (norms or scripted):
            reason = str(self.folding) if norms else "it is scripted"
            self._say((norms or scripted)[0], f'engine "folded" runs {type(model).__name__} as "eager": {reason}')

    @staticmethod
    def _say(about: nn.Module, text: str) -> None:
        """Once."""
        said = _said.setdefault(about, set())
        if text not in said:
            said.add(text)
            warnings.warn(text, stacklevel=2)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For the passes in the block; blocks may lie in each other."""
        self._depth += 1
        try:
            if self._depth == 1:
                for pair in self._pairs:  # made anew, so that no cycle keeps the weights beyond the attack
                    vars(pair.layer)["forward"] = functools.partial(self._layer_forward, pair)
                for norm in self._waiting:
                    vars(norm)["forward"] = functools.partial(self._norm_forward, norm)
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.forget()
                for module in (*self.layers, *self._waiting):
                    vars(module).pop("forward", None)

    def forget(self) -> None:
        """Let go what a forward left."""
        for waiting in self._waiting.values():
            waiting.clear()

    def strayed(self) -> bool:
        """Whether an output of the forward that has just ended never came to its batch norm: then it is not right."""
        astray = {norm for norm, waiting in self._waiting.items() if waiting}
        self.forget()
        if not astray:
            return False
        for pair in self._pairs:
            if pair.norm in astray:
                pair.folded = None
                _given_up.add(pair.layer)
                text = f'engine "folded" keeps {pair.layer} as it is: its output did not go to its batch norm alone'
                self._say(pair.norm, text)
        return True

    def _layer_forward(self, pair: _Pair, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer, forward = pair.layer, type(pair.layer).forward
        if input.dim() != pair.dims or not pair.is_current():
            return forward(layer, input, *args, **kwargs)
        taken = layer._parameters
        own = taken["weight"], taken["bias"]
        taken["weight"], taken["bias"] = pair.weights(input.device.type)  # type: ignore[assignment]
        try:
            out = forward(layer, input, *args, **kwargs)
        finally:
            taken["weight"], taken["bias"] = own
        self._waiting[pair.norm].append(out)
        return out

    def _norm_forward(self, norm: nn.Module, input: Tensor) -> Tensor:
        waiting = self._waiting[norm]
        for i, out in enumerate(waiting):
            if out is input:
                del waiting[i]
                if type(norm) in NORMS:
                    norm._check_input_dim(input)  # type: ignore[operator]
                    return input
                with _Without(input):
                    return type(norm).forward(norm, input)
        return type(norm).forward(norm, input)


class _Pair:
    """A layer and its batch norm."""

    def __init__(self, layer: Any, norm: Any, lower: torch.dtype | None):
        self.layer, self.norm, self.lower = layer, norm, lower
        self.dims = 2 if isinstance(layer, nn.Linear) else layer.weight.dim()  # of a batch
        self.key = _key(layer, norm)
        self.folded: tuple[Tensor, Tensor] | None = _folded(layer, norm)
        self.lowered: tuple[Tensor, Tensor] | None = None

    def fits(self) -> bool:
        """Whether the folded weights are finite in float16, where they are kept in it."""
        if torch.float16 not in (self.lower, self.layer.weight.dtype):
            return True
        assert self.folded is not None
        return all(bool(t.to(torch.float16).isfinite().all()) for t in self.folded)

    def is_current(self) -> bool:
        """Whether the layer may be folded now; folds again where a weight has changed."""
        if self.folded is None or has_hooks(self.layer) or has_hooks(self.norm) or _of_batch(self.norm):
            return False
        tensors, versions = self.key
        now = _tensors(self.layer, self.norm)
        if any(t is not None and t.requires_grad for t in now):
            return False
        same = all(a is b for a, b in zip(now, tensors, strict=True))
        if same and versions == [None if t is None else t._version for t in now]:
            return True
        if _unfit(self.layer, self.norm, patched=True) is not None:
            return False
        self.key, self.folded, self.lowered = _key(self.layer, self.norm), _folded(self.layer, self.norm), None
        return True

    def weights(self, device: str) -> tuple[Tensor, Tensor]:
        assert self.folded is not None
        lower = self.lower
        if lower is None or not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != lower:
            return self.folded
        if self.lowered is None:
            weight, bias = self.folded
            self.lowered = weight.to(lower), bias.to(lower)
        return self.lowered


class _Without(TorchFunctionMode):
    """``F.batch_norm`` of one tensor gives it back as it is."""

    def __init__(self, input: Tensor):
        super().__init__()
        self._input = input

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.batch_norm and args and args[0] is self._input:
            return self._input
        return func(*args, **(kwargs or {}))


# ---------------------------------------------------------------------------------------------- what is folded


def _no_model_folds(state: ModelState) -> str | None:
    if state.sharded:
        return "the model is sharded"
    if state.attached:
        return "the parameters need gradients"
    if global_hooks._global_forward_hooks or global_hooks._global_forward_pre_hooks:
        return "there are hooks on all modules"
    return None


def _of_batch(norm: nn.Module) -> bool:
    return norm.training or norm._buffers.get("running_mean") is None or norm._buffers.get("running_var") is None


def _unfit(layer: nn.Module, norm: Any, patched: bool = False) -> str | None:
    """Why a pair is not folded, by the state of its two modules now; None: it is."""
    kept = has_hooks if patched else is_patched
    if type(layer) not in LAYERS or "weight" not in layer._parameters or "bias" not in layer._parameters:
        return f"it follows {type(layer).__name__}"
    if _of_batch(norm):
        return "it uses the statistics of the batch"
    if kept(norm) or kept(layer):
        return "it or its layer has hooks"
    weight = layer._parameters["weight"]
    if weight is None or norm.num_features != _outputs(layer):
        return "its layer has another number of channels"
    for t in _tensors(layer, norm):
        if t is None:
            continue
        if type(t) not in (Tensor, nn.Parameter) or t.is_inference() or t.is_meta or not t.is_leaf:
            return "its weights are no plain tensors"
        if t.dtype != weight.dtype or t.device != weight.device or not t.is_floating_point():
            return "its weights and its layer's differ in dtype or device"
    return None


def _unknown(norm: nn.Module) -> str | None:
    if type(norm) in NORMS or normalises_first(norm):
        return None
    return f"{type(norm).__name__} does more than a batch norm"


def _outputs(layer: Any) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def _tensors(layer: nn.Module, norm: nn.Module) -> tuple[Tensor | None, ...]:
    own, parameters, buffers = layer._parameters, norm._parameters, norm._buffers
    return (
        *(own["weight"], own["bias"], parameters.get("weight"), parameters.get("bias")),
        *(buffers["running_mean"], buffers["running_var"]),
    )


def _key(layer: nn.Module, norm: nn.Module) -> tuple[tuple[Tensor | None, ...], list[int | None]]:
    tensors = _tensors(layer, norm)
    return tensors, [None if t is None else t._version for t in tensors]


def _folded(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """(weight, bias) of the layer and the batch norm as one layer."""
    with torch.inference_mode(False), torch.no_grad():
        weight, *rest = (None if t is None else t.detach() for t in _tensors(layer, norm))
        bias, gamma, beta, mean, var = (None if t is None else t.double() for t in rest)
        assert weight is not None and mean is not None and var is not None
        scale = (var + norm.eps).rsqrt()  # (O,)
        scale = scale if gamma is None else scale * gamma
        shift = -mean * scale if bias is None else (bias - mean) * scale
        shift = shift if beta is None else shift + beta
        if not getattr(layer, "transposed", False):
            scaled = _scaled(weight, scale)
        else:  # (I, O / groups, ...)
            inner = weight.double().reshape(layer.groups, -1, *weight.shape[1:])
            scale = scale.view(layer.groups, 1, -1, *(1,) * (weight.dim() - 2))
            scaled = (inner * scale).reshape(weight.shape).to(weight.dtype)
        return scaled, shift.to(weight.dtype)


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """weight (O, ...) times scale (O,) of float64, in the weight's dtype and layout; the product is of float64."""
    found = torch.empty_like(weight)
    count, size = len(weight), weight[0].numel()
    if weight.stride() != found.stride() or weight.stride(0) != size or weight.device.type != "cpu":
        return found.copy_(weight.double() * scale.view(-1, *(1,) * (weight.dim() - 1)))
    rows = max(1, _ENTRIES // size)  # at a time: pages of new memory cost more than the product
    work = torch.empty(min(rows, count), size, dtype=torch.float64)
    source, target = (t.as_strided((count, size), (size, 1)) for t in (weight, found))
    for i in range(0, count, rows):
        part = work[: min(rows, count - i)].copy_(source[i : i + rows])
        target[i : i + rows] = part.mul_(scale[i : i + rows, None])
    return found
