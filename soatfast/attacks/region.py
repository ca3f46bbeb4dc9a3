"""A radius and bounds a channel (p = inf), and a mask of the entries that may change.

The kernels know one radius a sample and one pair of bounds. So an attack with a radius for each entry runs in units of
it, u = x / eps, where the ball has radius 1; the model is asked at x, and gradients are by u. Bounds that are tensors
are applied behind the kernels, by :mod:`soatfast.ops`. At the end x_adv is put into ball, box and mask once more.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from soatfast.gradients.checks import per_entry
from soatfast.ops.arguments import Bounds, check
from soatfast.solvers.hessian import unit_step

_SAME = 1e-5  # relative: rounding in what was meant as one number


def has_entries(value: object) -> bool:
    """Whether a radius or a step is a tensor of one number an entry, such as (C, 1, 1)."""
    return isinstance(value, Tensor) and value.dim() > 1


def is_needed(attack: Any) -> bool:
    return attack.mask is not None or has_entries(attack.eps) or any(isinstance(b, Tensor) for b in attack.bounds)


def asks_about_parts(attack: Any) -> bool:
    """Whether an attack asks the model about parts of the batch: those of its samples that are not done yet."""
    return getattr(attack, "compact", False) or getattr(attack, "tol", None) is not None


def check_entries(value: Tensor, name: str) -> None:
    """Raise unless value is a floating tensor of finite numbers >= 0."""
    if not value.is_floating_point():
        raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")
    check((value >= 0).all() & value.isfinite().all(), lambda: f"{name} must be finite and >= 0, got {value}")


def check_bounds(bounds: Any) -> Bounds:
    """bounds as a tuple (lower, upper); ValueError unless lower < upper everywhere.

    >>> check_bounds([0, 1])
    (0, 1)
    """
    try:
        lower, upper = bounds
        below = lower < upper
        sound = bool(below.all() if isinstance(below, Tensor) else below)
    except (TypeError, ValueError, RuntimeError):
        sound = False
    if not sound or isinstance(bounds, (str, Tensor)):
        raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {bounds!r}")
    return lower, upper


def check_numbers(eps: object, bounds: Bounds, name: str) -> None:
    """Raise ValueError where a loss is given a radius or bounds for each channel, and its formula has one number."""
    if has_entries(eps) or any(isinstance(b, Tensor) for b in bounds):
        raise ValueError(
            f"{name} takes one eps a sample, and bounds that are numbers: eps and bounds a channel "
            "are for attacks, AdversarialTraining, TRADES, MART and SCORPIO"
        )


def check_region(attack: Any) -> None:
    """Raise unless p and engine go with what the attack has for each entry."""
    mask = attack.mask
    if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.dim()):
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, True where x may change, got {came}")
    if is_needed(attack):
        if attack.p != math.inf and (has_entries(attack.eps) or any(isinstance(b, Tensor) for b in attack.bounds)):
            raise ValueError(f"eps and bounds a channel need p = math.inf, got p = {attack.p!r}")
        if "graph" in attack.engine.split("+"):
            raise ValueError(f"engine {attack.engine!r} takes neither a mask nor eps or bounds a channel")


class Region:
    """Where the batch x of an attack may go, and the attack as it runs there."""

    def __init__(self, attack: Any, x: Tensor):
        self._x, self._bounds = x, attack.bounds
        self._unit: Tensor | None = None
        self._origin: Tensor | float = 0.0
        self.mask = None if attack.mask is None else per_entry(attack.mask, x, "mask", samples=True)
        if self.mask is not None and len(self.mask) > 1 and asks_about_parts(attack):
            raise ValueError(
                "a mask for each sample needs an attack that asks about whole batches: compact=False, tol=None"
            )
        self.attack = copy.copy(attack)
        if has_entries(attack.eps):
            self._take_units(attack)
        elif any(isinstance(b, Tensor) for b in attack.bounds):
            self._set(bounds=tuple(per_entry(b, x, "bounds") for b in attack.bounds))
        self._set(mask=self.mask)

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self.attack, name, value)

    def _take_units(self, attack: Any) -> None:
        x = self._x
        eps = per_entry(attack.eps, x, "eps")
        if not eps.all():
            self.mask = (eps > 0) if self.mask is None else self.mask & (eps > 0)
        unit = torch.where(eps > 0, eps, 1.0)
        self._eps, self._unit = eps, unit
        lower, upper = (per_entry(torch.as_tensor(b, dtype=x.dtype), x, "bounds") for b in attack.bounds)
        self._origin = torch.where(lower.isfinite(), lower, 0.0)
        box = [(b - self._origin) / unit for b in (lower, upper)]
        one = all(map(_is_one_number, box))  # as for images that were normalised outside the model
        values: dict[str, Any] = {"eps": 1.0, "bounds": tuple(b.flatten()[0].item() if one else b for b in box)}
        if getattr(attack, "step_size", None) is not None:
            values["step_size"] = self._ratio(attack.step_size, unit)
        for name in ("noise", "sigma"):
            if getattr(attack, name, None) is not None:
                values[name] = getattr(attack, name) / unit
        if hasattr(attack, "full_precision"):
            h = attack.h or unit_step(x.dtype, x[0].numel())
            values["h"] = h / unit.mean().item()
        self._set(**values)

    def _ratio(self, step: float | Tensor, unit: Tensor) -> float:
        ratio = per_entry(torch.as_tensor(step, dtype=self._x.dtype), self._x, "step_size") / unit
        ratio = ratio[(self._eps > 0).expand_as(ratio)]
        if not _is_one_number(ratio):
            raise ValueError("step_size must have one ratio to an eps a channel, or be None")
        return ratio[0].item() if len(ratio) else 0.0

    def inward(self, x: Tensor) -> Tensor:
        """Points of the input's space in the attack's coordinates."""
        return x if self._unit is None else (x - self._origin) / self._unit

    def gradient(self, g: Tensor) -> Tensor:
        """A gradient by x as one by the attack's coordinates."""
        g = g if self._unit is None else g * self._unit
        return g if self.mask is None else g * self.mask

    def chart(self, u: Tensor) -> Tensor:
        """The input at u, without a gradient outside the mask."""
        if self.mask is not None:
            mask = self.mask
            if len(mask) not in (1, len(u)):  # a stacked batch
                mask = mask.repeat(len(u) // len(mask), *(1,) * (u.dim() - 1))
            u = torch.where(mask, u, u.detach())
        return u if self._unit is None else u * self._unit + self._origin

    def outward(self, u: Tensor) -> Tensor:
        """u in the input's space: in the ball, in the box, and x outside the mask, exactly."""
        x, x_adv = self._x, u
        if self._unit is not None:
            x_adv = u * self._unit + self._origin
            x_adv = torch.minimum(torch.maximum(x_adv, x - self._eps), x + self._eps)
            lower, upper = (torch.as_tensor(b, dtype=x.dtype, device=x.device) for b in self._bounds)
            x_adv = torch.minimum(torch.maximum(x_adv, lower), upper)
        return x_adv if self.mask is None else torch.where(self.mask, x_adv, x)


def _is_one_number(t: Tensor) -> bool:
    if not t.numel():
        return True
    low, high = t.aminmax()
    return bool(low == high) or bool((high - low).abs() <= _SAME * high.abs())
