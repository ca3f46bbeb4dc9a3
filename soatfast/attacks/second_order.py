"""What attacks on the Hessian share: passes in full precision, also for a half-precision model."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks.base import Attack
from soatfast.gradients.engine import parse
from soatfast.gradients.full_precision import without_tf32
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.precision import is_half, round_towards
from soatfast.memory.visit import Visit


@dataclass(frozen=True, kw_only=True, eq=False)
class SecondOrderAttack(Attack):
    """An attack that differences gradients over a tiny step: noise of a pass is divided by that step.

    Args:
        full_precision: run the passes in float32 (float64 for a float64 batch), whatever autocast, TF32 or the
            model's dtype say: bfloat16 noise over a step of 1e-3 drowns the Hessian. A half-precision model is called
            with float32 copies of its parameters, and a warning says so. An engine of reduced precision is an error
            then. False takes the passes as they come.
    """

    full_precision: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.full_precision and parse(self.engine).precision is not None:
            raise ValueError(
                f"differences over a tiny step need full precision, got engine {self.engine!r} "
                f"(full_precision=False takes it, with its noise)"
            )

    def run(
        self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None = None, visit: Visit | None = None
    ) -> Tensor:
        if not self.full_precision:
            return super().run(oracle, x, y, g0, visit)
        with _full_precision(self, oracle, x.device.type):
            if not is_half(x):
                return super().run(oracle, x, y, g0, visit)
            x_adv = super().run(oracle, x.float(), y, None, visit)  # a half-precision g0 is no base of a difference
        return round_towards(x_adv, x.detach())


@contextlib.contextmanager
def _full_precision(attack: Attack, oracle: InputGradient, device: str) -> Iterator[None]:
    """No autocast, no TF32, and the model in float32 at least."""
    model = oracle.model
    if isinstance(model, nn.Module) and any(is_half(t) for t in (*model.parameters(), *model.buffers())):
        warnings.warn(
            "finite differences need float32: the attack runs a float32 copy of the half-precision model "
            "(full_precision=False runs it as it is)",
            stacklevel=4,
        )
        oracle.model = _Float32(model)
    oracle.expect_full_precision(f"{type(attack).__name__} with full_precision=True")
    try:
        with oracle.state.without_autocast_inside(), without_tf32(), torch.autocast(device, enabled=False):
            yield
    finally:
        oracle.model = model


class _Float32:
    """A module called with float32 copies of its parameters and buffers; the module itself is left alone."""

    def __init__(self, model: nn.Module):
        self.model = model
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.state = {name: t.detach().float() if is_half(t) else t for name, t in named.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self.model, self.state, args, kwargs)
