"""Weights cast to half precision once for all passes of an attack."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from soatfast.gradients.engine import Engine, is_compiled

_CAST = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # layers whose weights autocast casts in every pass


def casts_once(engine: Engine, modules: Iterable[nn.Module]) -> bool:
    """Whether :class:`CastWeights` may serve: what is compiled or recorded has the casts in it, and DataParallel's
    replicas have weights of their own.
    """
    return not (engine.compile or engine.graph) and not any(
        isinstance(module, nn.DataParallel) or is_compiled(module) for module in modules
    )


class CastWeights:
    """Layers that keep their weights in a lower precision from pass to pass, for as long as autocast to it is on.

    Autocast makes such copies in each pass, as it keeps only those of weights that need gradients. The numbers are the
    same. Measured on ResNet-18 with bf16 on a CPU: PGD-10 took 0.67 (batch 1), 0.95 (8) and 1.00 (32) of the time.

    The parameters are not touched: where the model reads them itself, or leaves autocast for a layer, it finds them as
    they are. Layers of another class (subclasses, parametrised ones) or with a forward of their own are left to
    autocast. A weight that was updated in place is copied again, unless through ``.data``, which leaves no trace.
    """

    def __init__(self, modules: Iterable[nn.Module], dtype: torch.dtype):
        self._dtype = dtype
        self._layers = [module for module in modules if type(module) in _CAST and "forward" not in vars(module)]
        self._copies: dict[nn.Parameter, tuple[int, Tensor]] = {}  # of a weight: its version, the copy

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """For one pass of the model."""
        try:
            for layer in self._layers:  # made anew, so that no cycle keeps the copies beyond the attack
                vars(layer)["forward"] = functools.partial(self._forward, layer)
            yield
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)

    def _forward(self, layer: nn.Module, input: Tensor) -> Tensor:
        weight, bias = (layer._parameters.get(name) for name in ("weight", "bias"))
        device = input.device.type
        lowered = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == self._dtype
        if weight is None or weight.requires_grad or not lowered:
            return type(layer).forward(layer, input)
        lower, lower_bias = self._copy(weight), None if bias is None else self._copy(bias)
        if isinstance(layer, nn.Linear):
            return linear(input, lower, lower_bias)
        return layer._conv_forward(input, lower, lower_bias)  # type: ignore[operator]

    def _copy(self, p: nn.Parameter) -> Tensor:
        if p.dtype != torch.float32 or p.is_inference():  # which has no version
            return p
        version, copy = self._copies.get(p, (None, None))
        if copy is None or version != p._version:
            with torch.inference_mode(False):
                copy = p.detach().to(self._dtype)
            self._copies[p] = p._version, copy
        return copy
