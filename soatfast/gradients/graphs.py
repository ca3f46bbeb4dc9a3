"""CUDA graphs of gradients and whole attacks: recorded once, then launched as one.

A recording keeps addresses, not values. It stays right while the model's parameters and buffers are updated in place
(optimizer steps, load_state_dict), while batches of one shape come and go, and while radii and steps change: all of
them are read anew whenever it is run. What is structural (shapes, modes, options, precision, where the parameters lie)
is part of the key, and another key is another recording. Each run draws new random numbers, from the generator's own
state. A model keeps its last 8 recordings; :func:`release_graphs` frees their memory.

No Python runs when a recording does, so hooks on the model, and with them ``count_passes``, see the recording only.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.gradients.full_precision import float32_precision

KEPT = 8  # recordings of one model: each holds the memory of its passes
_WARM_UP = 3  # runs before a recording, which make what is made lazily: handles, plans, autograd's threads

_state = threading.local()
_pools: dict[tuple[int, int], Any] = {}
_recordings: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Any]] = weakref.WeakKeyDictionary()


class Recording:
    """run(*inputs) as a CUDA graph; calling it with other inputs of the same shapes gives fresh outputs.

    Its work memory comes from the pool that all recordings of a device and stream share. So an output is copied before
    anything else can run there.
    """

    def __init__(
        self, run: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], generator: torch.Generator | None = None
    ):
        self._inputs = [t.detach().clone() for t in inputs]
        device = inputs[0].device
        with torch.cuda.device(device):
            current, used = torch.cuda.current_stream(device), generator or torch.cuda.default_generators[device.index]
            stream = torch.cuda.Stream(device)  # of the tensors' device, for the first runs and the recording alike
            state = used.get_state()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UP):
                    run(*self._inputs)
            current.wait_stream(stream)
            used.set_state(state)
            self._graph = torch.cuda.CUDAGraph()
            if generator is not None:
                self._graph.register_generator_state(generator)
            # "thread_local": a loader's thread that pins memory meanwhile is no error.
            with torch.cuda.graph(
                self._graph, pool=_pool(device, current), stream=stream, capture_error_mode="thread_local"
            ):
                self._outputs = run(*self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return tuple(t.clone() for t in self._outputs)


def _pool(device: torch.device, stream: torch.cuda.Stream) -> Any:
    key = (device.index, stream.cuda_stream)
    if key not in _pools:
        _pools[key] = torch.cuda.graph_pool_handle()
    return _pools[key]


def recording() -> bool:
    """Whether this thread runs inside a recording: what is recorded there records nothing itself."""
    return getattr(_state, "recording", False)


def check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f'engine "graph" needs tensors on a CUDA device, got {device}')


def release_graphs(model: nn.Module | None = None) -> None:
    """Free the recordings of a model, or of all models: each holds the memory of its passes.

    >>> import soatfast as sf
    >>> sf.release_graphs()
    """
    if model is None:
        _recordings.clear()
        _pools.clear()
    else:
        _recordings.pop(model, None)


def run_recorded(
    model: nn.Module,
    modules: Sequence[nn.Module],
    key: Hashable,
    run: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, ...]:
    """run(*inputs) by the model's recording for this key, which is made where there is none.

    modules: all of the model's. key: everything that run depends on besides the inputs' values, the model's parameters
    and torch's settings of precision.
    """
    device = inputs[0].device
    check_device(device)
    shapes = tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs)
    own = _recordings.setdefault(model, OrderedDict())
    key = (key, shapes, _addresses(modules), _settings(device), generator if generator is None else id(generator))
    _state.recording = True
    try:
        with _plain():
            if key not in own:
                own[key] = (Recording(run, inputs, generator), generator)  # the generator's id is in the key: keep it
                while len(own) > KEPT:
                    own.popitem(last=False)
            own.move_to_end(key)
            return own[key][0](inputs)
    finally:
        _state.recording = False


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """Buffers outlive the caller's inference mode, inputs bring no graph, and no cast of a weight is kept from before.

    What runs inside turns gradients on where it needs them.
    """
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cached)


def _settings(device: torch.device) -> tuple[Any, ...]:
    """What the caller has set that a recording keeps: autocast, TF32, and which kernels may serve."""
    cast = torch.is_autocast_enabled(device.type)
    cudnn = torch.backends.cudnn
    return (
        torch.get_autocast_dtype(device.type) if cast else None,
        float32_precision(),
        (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, torch.are_deterministic_algorithms_enabled()),
    )


def _addresses(modules: Sequence[nn.Module]) -> tuple[Any, ...]:
    """Where the modules' numbers lie and how, and the state of each module."""
    found: list[Any] = []
    for module in modules:
        found.append(module.training)
        for t in (*module._parameters.values(), *module._buffers.values()):
            if t is not None:
                found += (t.data_ptr(), t.dtype, t.stride())
    return tuple(found)
