"""CUDA graphs of gradients and whole attacks: recorded once, then launched as one.

A recording keeps addresses, not values. It stays right while the model's parameters and buffers are updated in place
(optimizer steps, load_state_dict), while batches of one shape come and go, and while radii given as tensors change: all
of them are read anew whenever it is run. What is structural (shapes, modes, options, where the parameters lie) is part
of the key, and another key is another recording. Each run draws new random numbers, from the generator's own state.

No Python runs when a recording does, so hooks on the model, and with them ``count_passes``, see the recording only.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

KEPT = 8  # recordings of one model: each holds the memory of its passes
_WARM_UP = 3  # runs before a recording, which make what is made lazily: handles, plans, autograd's threads

_state = threading.local()
_recordings: weakref.WeakKeyDictionary[nn.Module, OrderedDict[Hashable, Any]] = weakref.WeakKeyDictionary()


class Recording:
    """run(*inputs) as a CUDA graph; calling it with other inputs of the same shapes gives fresh outputs."""

    def __init__(
        self, run: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], generator: torch.Generator | None = None
    ):
        self._inputs = [t.detach().clone() for t in inputs]
        device = inputs[0].device
        used = torch.cuda.default_generators[device.index] if generator is None else generator
        state = used.get_state()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                run(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        used.set_state(state)
        self._graph = torch.cuda.CUDAGraph()
        if generator is not None:
            self._graph.register_generator_state(generator)
        with torch.cuda.device(device), torch.cuda.graph(self._graph):
            self._outputs = run(*self._inputs)

    def __call__(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return tuple(t.clone() for t in self._outputs)


def recording() -> bool:
    """Whether this thread runs inside a recording: what is recorded there records nothing itself."""
    return getattr(_state, "recording", False)


def check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f'engine "graph" needs tensors on a CUDA device, got {device}')


def run_recorded(
    model: nn.Module,
    key: Hashable,
    run: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, ...]:
    """run(*inputs) by the model's recording for this key, which is made where there is none.

    key: everything that run depends on besides the inputs' values and the model's parameters.
    """
    check_device(inputs[0].device)
    shapes = tuple((t.shape, t.stride(), t.dtype, t.device) for t in inputs)
    own = _recordings.setdefault(model, OrderedDict())
    key = (key, shapes, _addresses(model), generator if generator is None else id(generator))
    _state.recording = True
    try:
        if key not in own:
            own[key] = (Recording(run, inputs, generator), generator)  # the generator's id is in the key: keep it
            while len(own) > KEPT:
                own.popitem(last=False)
        own.move_to_end(key)
        return own[key][0](inputs)
    finally:
        _state.recording = False


def _addresses(model: nn.Module) -> tuple[Any, ...]:
    """Where the model's numbers lie, and the state of its modules."""
    tensors = (*model.parameters(), *model.buffers())
    modes = tuple(module.training for module in model.modules())
    return (*((t.data_ptr(), t.dtype, t.stride()) for t in tensors), modes)
