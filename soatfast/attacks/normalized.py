"""Inputs that a script normalises outside the model: radii and bounds in pixels, turned into the script's units."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from soatfast.attacks.asod import noise_sigma
from soatfast.ops.arguments import check_number, finite_number

Method = TypeVar("Method")


@dataclass(frozen=True)
class Normalized:
    r"""The inputs are (pixels - mean) / std, a channel, pixels in [0, 1]: what that makes of eps and bounds (p = inf).

        eps -> eps / std,    bounds -> (-mean / std, (1 - mean) / std),    of shape (C, 1, 1)

    Called with an attack, or a loss with eps and bounds, it returns the same one in the script's units: eps, step_size
    and the noise of a start are divided by std, bounds are as above. The perturbation is then, in pixels, what the
    attack makes of a model that normalises inside.

    Where the model may be changed, normalise inside instead; its ``state_dict`` keeps its keys, and attacks take pixels
    with every p: ``model.register_forward_pre_hook(sf.Normalized(mean, std).pre_hook)``.

    Args:
        mean, std: one number a channel; std > 0.

    >>> import torch
    >>> norm = Normalized([0.5, 0.4, 0.3], [0.25, 0.2, 0.2])
    >>> norm.eps(8 / 255).flatten()
    tensor([0.1255, 0.1569, 0.1569])
    >>> from soatfast.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
    >>> pixels = torch.rand(5, 3, 2, 2)
    >>> x_adv = norm(PGD(eps=8 / 255))(model, norm.inputs(pixels), torch.tensor([0, 1, 0, 1, 0]))
    >>> round(float((norm.pixels(x_adv) - pixels).abs().max()), 4)
    0.0314
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            numbers = value.tolist() if hasattr(value, "tolist") else value
            if not isinstance(numbers, (list, tuple)) or not numbers:
                raise TypeError(f"{name} must be a list of one number a channel, got {value!r}")
            for number in numbers:
                finite_number(number, name) if name == "mean" else check_number(number, name)
            object.__setattr__(self, name, tuple(map(float, numbers)))
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std must be of one length, got {len(self.mean)} and {len(self.std)}")

    def _columns(self, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dtype, device = (torch.float32, None) if like is None else (like.dtype, like.device)
        mean, std = (torch.tensor(t, dtype=dtype, device=device).view(-1, 1, 1) for t in (self.mean, self.std))
        return mean, std

    def eps(self, eps: float) -> Tensor:
        """A radius or a step in pixels as (C, 1, 1) in the script's units."""
        check_number(eps, "eps", above=False)
        return eps / self._columns()[1]

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """The box [0, 1] of the pixels in the script's units."""
        mean, std = self._columns()
        return -mean / std, (1 - mean) / std

    def inputs(self, pixels: Tensor) -> Tensor:
        """(pixels - mean) / std."""
        mean, std = self._columns(pixels)
        return (pixels - mean) / std

    def pixels(self, x: Tensor) -> Tensor:
        """x std + mean."""
        mean, std = self._columns(x)
        return x * std + mean

    def pre_hook(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """For ``model.register_forward_pre_hook``: the model takes pixels from now on."""
        return self.inputs(args[0]), *args[1:]

    def __call__(self, method: Method) -> Method:
        """An attack or a loss that is written for pixels, in the script's units; ValueError for p other than inf."""
        inner = getattr(method, "attack", None)
        names = {f.name for f in dataclasses.fields(method)}  # type: ignore[arg-type]
        if "attack" in names:
            return dataclasses.replace(method, attack=self(inner))  # type: ignore[type-var]
        if not {"eps", "bounds"} <= names:
            raise TypeError(f"{type(method).__name__} has no eps and bounds that could be put into other units")
        if getattr(method, "p", math.inf) != math.inf:
            raise ValueError(
                f"eps a channel needs p = math.inf, got p = {method.p!r}: normalise inside the model, "  # type: ignore[attr-defined]
                "model.register_forward_pre_hook(norm.pre_hook)"
            )
        if tuple(method.bounds) != (0, 1):  # type: ignore[attr-defined]
            raise ValueError(f"bounds must be the pixels', (0, 1), got {method.bounds!r}")  # type: ignore[attr-defined]
        given = {name: getattr(method, name) for name in ("eps", "step_size", "noise", "sigma") if name in names}
        if given.get("sigma", 0.0) is None:
            given["sigma"] = noise_sigma((len(self.mean), 1, 1))
        scaled = {name: self.eps(value) for name, value in given.items() if isinstance(value, (int, float))}
        return dataclasses.replace(method, bounds=self.bounds, **scaled)  # type: ignore[type-var]
