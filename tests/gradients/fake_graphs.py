"""torch.cuda's streams and graphs on a CPU: what is recorded is run again, operation by operation, at its addresses.

As with CUDA, no Python of the recorded function runs in a replay, each operation reads and writes the memory that it
had, and the graphs of a pool share it: one that is replayed spoils what the others wrote there.
"""

import contextlib
import types
import typing

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class FakeStream:
    cuda_stream = 0

    def __init__(self, device=None):
        self.device, self.waited = device, []

    def wait_stream(self, other):
        self.waited.append(other)


class FakeGraph:
    """One graph, with the stream it was recorded on and what ran there before."""

    made: typing.ClassVar[list["FakeGraph"]] = []

    def __init__(self):
        self.calls, self.generators = [], []
        FakeGraph.made.append(self)

    def register_generator_state(self, generator):
        self.generators.append(generator)

    def replay(self):
        assert not torch.is_inference_mode_enabled(), "its buffers are no inference tensors"
        for other in FakeGraph.made:
            if other is not self and other.pool == self.pool:
                other.spoil()
        for function, args, kwargs, outputs in self.calls:
            for kept, new in zip(tree_leaves(outputs), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(kept, torch.Tensor) and kept.data_ptr() != new.data_ptr():  # else a view, or in place
                    kept.copy_(new)

    def spoil(self):
        given = {t.untyped_storage().data_ptr() for t in self.given()}
        for _, _, _, outputs in self.calls:
            for t in tree_leaves(outputs):
                if (
                    isinstance(t, torch.Tensor)
                    and t.is_floating_point()
                    and t.untyped_storage().data_ptr() not in given
                ):
                    t.fill_(float("nan"))

    def given(self):
        """Tensors that were there before the recording: inputs, parameters, buffers."""
        made = set()
        for _, args, kwargs, outputs in self.calls:
            for t in tree_leaves((args, kwargs)):
                if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in made:
                    yield t
            made |= {t.untyped_storage().data_ptr() for t in tree_leaves(outputs) if isinstance(t, torch.Tensor)}


class _Record(TorchDispatchMode):
    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        self.graph.calls.append((function, args, kwargs or {}, outputs))
        return outputs


@contextlib.contextmanager
def _capture(graph, pool=None, stream=None, capture_error_mode="global"):
    graph.pool, graph.stream, graph.mode = pool, stream, capture_error_mode
    graph.cached_casts = torch.is_autocast_cache_enabled()
    with _Record(graph):
        yield


def install(monkeypatch):
    """Put them in torch.cuda's place; the list of graphs made."""
    current = FakeStream()
    handles = iter(range(1000))
    for name, value in {
        "Stream": FakeStream,
        "CUDAGraph": FakeGraph,
        "graph": _capture,
        "graph_pool_handle": lambda: next(handles),
        "current_stream": lambda device=None: current,
        "stream": lambda stream: contextlib.nullcontext(),
        "device": lambda device: contextlib.nullcontext(),
        "default_generators": {None: torch.default_generator},
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(FakeGraph, "made", [])
    return types.SimpleNamespace(graphs=FakeGraph.made, current=current)
