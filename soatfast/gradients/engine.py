"""How the network passes of an attack are run: their precision, memory format and compilation, by one argument."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FLAGS = ("channels_last", "folded", "compile", "graph")
PARTS = (*_PRECISIONS, *_FLAGS)
"""What an engine's name is made of; "eager" is the engine without any of them."""


Name = Literal[
    "eager",
    "graph",
    "compile",
    "compile+graph",
    "folded",
    "channels_last",
    "channels_last+folded",
    "channels_last+graph",
    "channels_last+compile",
    "channels_last+compile+graph",
    "bf16",
    "bf16+graph",
    "bf16+compile",
    "bf16+compile+graph",
    "bf16+folded",
    "bf16+channels_last",
    "bf16+channels_last+folded",
    "bf16+channels_last+graph",
    "bf16+channels_last+compile",
    "bf16+channels_last+compile+graph",
    "fp16",
    "fp16+graph",
    "fp16+compile",
    "fp16+compile+graph",
    "fp16+folded",
    "fp16+channels_last",
    "fp16+channels_last+folded",
    "fp16+channels_last+graph",
    "fp16+channels_last+compile",
    "fp16+channels_last+compile+graph",
]
"""Every engine's name, for type checkers: the parts in the order of :data:`PARTS`."""


@dataclass(frozen=True)
class Engine:
    """How passes are run, as :func:`parse` reads it from a name. x, the gradient and every result keep x's dtype."""

    precision: torch.dtype | None = None
    """Autocast to it. Without "compile" and "graph" the weights are cast once an attack."""
    channels_last: bool = False
    """Images lie in memory channels last, and for the time of the attack the convolutions' weights too."""
    folded: bool = False
    """Batch norms are folded into the layers before them (:mod:`soatfast.gradients.folded`), anew in every attack."""
    compile: bool = False
    """The model's forward goes through torch.compile, which does not see a hook added to an inner module later."""
    graph: bool = False
    """Gradients and whole attacks are CUDA graphs (:mod:`soatfast.gradients.graphs`): objectives given by name."""

    @functools.cached_property
    def name(self) -> str:
        held = [name for name, dtype in _PRECISIONS.items() if dtype == self.precision]
        return "+".join([*held, *(flag for flag in _FLAGS if getattr(self, flag))]) or "eager"

    @functools.cached_property
    def is_structural(self) -> bool:
        """Whether it needs a module, and not any callable."""
        return self.channels_last or self.folded or self.compile or self.graph

    @functools.cached_property
    def is_eager(self) -> bool:
        return self == Engine()


@functools.cache
def parse(name: str) -> Engine:
    """The engine of a name: "eager", or parts joined by "+", as in "bf16+channels_last".

    Raises:
        TypeError: name is no string.
        ValueError: an unknown or repeated part, two precisions, or "folded" beside "compile" or "graph".

    >>> parse("bf16+compile")
    Engine(precision=torch.bfloat16, channels_last=False, folded=False, compile=True, graph=False)
    """
    if not isinstance(name, str):
        raise TypeError(f"engine must be a string, got {type(name).__name__}")
    parts = [] if name == "eager" else name.split("+")
    precisions = [part for part in parts if part in _PRECISIONS]
    if len(set(parts)) < len(parts) or len(precisions) > 1 or not set(parts) <= set(PARTS):
        raise ValueError(f'engine must be "eager", or some of {", ".join(PARTS)} joined by "+", got {name!r}')
    ordered = "+".join(part for part in PARTS if part in parts)
    if parts and ordered != name:
        raise ValueError(f"engine {name!r} is written {ordered!r}")
    if "folded" in parts and ("compile" in parts or "graph" in parts):
        raise ValueError(
            f'engine "folded" changes weights between attacks: it takes no "compile" or "graph", got {name!r}'
        )
    precision = _PRECISIONS[precisions[0]] if precisions else None
    return Engine(precision, **{flag: flag in parts for flag in _FLAGS})


def images_channels_last(x: Tensor) -> Tensor:
    """x (B, C, H, W) with its channels last in memory; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


def weights_channels_last(model: nn.Module, before: list[tuple[nn.Parameter, Tensor]], copy: bool = True) -> None:
    """Give the model's 4-d parameters channels-last copies of their data, and put what they had into ``before``.

    A model that is channels_last already, ``model.to(memory_format=torch.channels_last)``, is left alone; with
    copy=False any other is a ValueError.
    """
    with torch.inference_mode(False):
        for p in model.parameters():
            if p.dim() == 4 and not p.is_contiguous(memory_format=torch.channels_last):
                if not copy:
                    raise ValueError(
                        'engine "channels_last+graph" needs a model whose weights are channels last: '
                        "model.to(memory_format=torch.channels_last)"
                    )
                before.append((p, p.data))
                p.data = p.data.contiguous(memory_format=torch.channels_last)


def put_back(before: list[tuple[nn.Parameter, Tensor]]) -> None:
    for p, data in before:
        p.data = data


@functools.cache
def _compiled(forward: Callable[..., Any]) -> Callable[..., Any]:
    """torch.compile of a class's forward: the models of a class share it, and it keeps none of them alive."""
    return torch.compile(forward)


def is_compiled(model: nn.Module) -> bool:
    """Whether the caller has put the model through torch.compile, or compiled it in place by ``model.compile()``."""
    return "_orig_mod" in model._modules or model.__dict__.get("_compiled_call_impl") is not None


@contextlib.contextmanager
def compiled_forward(model: nn.Module) -> Iterator[None]:
    """While the block lasts model(x) runs the compiled forward; its hooks (and so pass counters) run as ever."""
    own = vars(model).get("forward")  # of an instance that was patched
    forward = _compiled(type(model).forward) if own is None else torch.compile(own)
    model.forward = functools.partial(forward, model) if own is None else forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del model.forward
        else:
            model.forward = own
