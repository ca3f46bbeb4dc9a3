"""Saliency maps: which pixels the loss depends on, from the gradient by the input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from soatfast.attacks.base import Model
from soatfast.gradients.checks import check_batch
from soatfast.gradients.objectives import Named, Objective
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.outputs import Forward, Output
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import widened
from soatfast.ops.arguments import check_fields, check_number, check_steps

Kind = Literal["signed", "absolute", "input"]
_KINDS = ("signed", "absolute", "input")


@dataclass(frozen=True, kw_only=True)
class _Map:
    objective: Named | Objective = "ce"
    targeted: bool = False
    bounds: tuple[float, float] = (0.0, 1.0)
    mode: Mode = "eval"
    engine: str = "eager"
    output: Output = None
    forward: Forward | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {self.bounds!r}")
        self.oracle(torch.nn.Identity())  # these have one place where they are checked

    def oracle(self, model: Model) -> InputGradient:
        return InputGradient(
            model, self.objective, self.mode, self.engine, self.targeted, output=self.output, forward=self.forward
        )

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """The map of x (B, ...) with labels y (B,): x's shape, dtype and device, no gradient.

        Raises:
            TypeError: x is no floating tensor, y no integer tensor.
            ValueError: lengths or devices differ, x has NaN or lies outside the bounds, labels are out of range,
                the model returns something else than (B, K). On CUDA the checks of values are device assertions.
        """
        check_batch(x, y, self.bounds)
        with self.oracle(model) as oracle, widened(oracle, x) as wide:
            return self._map(oracle, wide, y).to(x.dtype)

    def _map(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        raise NotImplementedError

    def passes(self, batch: int = 1) -> Passes:
        """Passes of one call on a batch of this size, as :func:`~soatfast.gradients.count_passes` counts them."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Saliency(_Map):
    r"""S = d l / d x of each sample (Simonyan et al. 2014); signed, as the SCORPIO paper shows it.

    Args:
        kind: "signed" S, "absolute" |S|, or "input": S times x.
        objective, targeted, bounds, mode, engine, output, forward: as of :class:`~soatfast.attacks.Attack`. With the
            objective "margin" S is the gradient of the strongest rival's logit minus the label's.

    Passes: one forward, one backward to the input.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    >>> Saliency(objective="margin")(model, torch.tensor([[0.1, 0.2]]), torch.tensor([0]))
    tensor([[-1.,  3.]])
    """

    kind: Kind = "signed"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")

    def _map(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        slope = self._slope(oracle, x, y)
        return slope.abs() if self.kind == "absolute" else slope * x if self.kind == "input" else slope

    def _slope(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        return oracle.gradient(x, y)

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=1, backward_input=1)


@dataclass(frozen=True, kw_only=True)
class SmoothGrad(Saliency):
    r"""The mean of the gradient at x + sigma N(0, I) (Smilkov et al. 2017): what one point's kinks do not decide.

    Args:
        samples: how many points; they may lie outside the bounds.
        sigma: standard deviation of the noise, in input units.
        generator: random numbers of the noise; on x's device.

    Defaults: the paper's 50 samples, and a noise of 15 % of the range (it names 10 to 20 %). All else as
    :class:`Saliency`. Passes: ``samples`` forwards and backwards to the input.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    >>> SmoothGrad(objective="margin", samples=4)(model, torch.tensor([[0.1, 0.2]]), torch.tensor([0]))
    tensor([[-1.,  3.]])
    """

    samples: int = 50
    sigma: float = 0.15
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.samples, "samples")
        check_number(self.sigma, "sigma", above=False)

    def _slope(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        total = torch.zeros_like(x)
        for _ in range(self.samples):
            noise = torch.empty_like(x).normal_(generator=self.generator)
            total += oracle.gradient(x + self.sigma * noise, y)
        return total / self.samples

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=self.samples, backward_input=self.samples)


@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(_Map):
    r"""(x - b) times the mean gradient on the way from b to x (Sundararajan et al. 2017).

    The integral by the midpoint rule, at b + (k - 1/2)/steps (x - b), k = 1..steps: exact where the gradient is
    linear on the way. The entries add up to l(x) - l(b).

    Args:
        steps: points on the way (the paper: 20 to 300 are enough).
        base: the value of every pixel of b.
        objective, targeted, bounds, mode, engine, output, forward: as of :class:`~soatfast.attacks.Attack`.

    Passes: ``steps`` forwards and backwards to the input.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 2.0], [0.0, 5.0]])
    >>> IntegratedGradients(objective="margin", steps=4)(model, torch.tensor([[0.5, 0.5]]), torch.tensor([0]))
    tensor([[-0.5000,  1.5000]])
    """

    steps: int = 50
    base: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_steps(self.steps)
        if not self.bounds[0] <= self.base <= self.bounds[1]:
            raise ValueError(f"base must lie in bounds {self.bounds}, got {self.base!r}")

    def _map(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        way = x - self.base
        total = torch.zeros_like(x)
        for k in range(self.steps):
            total += oracle.gradient(self.base + (k + 0.5) / self.steps * way, y)
        return way * total / self.steps

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=self.steps, backward_input=self.steps)


def standardised(saliency: Tensor, centre: bool = True) -> Tensor:
    """For showing: (S - mean) / (3 standard deviations) of each image, cut to [-1, 1]; a constant image is 0.

    centre=False leaves the mean in, so that 0 stays 0 and signs stay.

    >>> import torch
    >>> standardised(torch.tensor([[0.0, 0.0, 0.0, 4.0], [2.0, 2.0, 2.0, 2.0]]))
    tensor([[-0.1925, -0.1925, -0.1925,  0.5774],
            [ 0.0000,  0.0000,  0.0000,  0.0000]])
    """
    flat = saliency.detach().flatten(1).double()  # a float32 gradient's squares may underflow
    mean = flat.mean(1, keepdim=True)
    spread = (flat - mean).square().mean(1, keepdim=True).sqrt()
    constant = (flat.amax(1) == flat.amin(1))[:, None]  # its rounded mean leaves no exact 0
    shown = torch.where(constant, 0, (flat - mean if centre else flat) / (3 * spread))
    return shown.clamp(-1, 1).view_as(saliency).to(saliency.dtype)


def per_pixel(saliency: Tensor) -> Tensor:
    """(B, H, W) of (B, C, H, W): the entry of the largest magnitude among a pixel's channels, with its sign.

    >>> import torch
    >>> per_pixel(torch.tensor([1.0, -3.0, 2.0]).view(1, 3, 1, 1))
    tensor([[[-3.]]])
    """
    if saliency.dim() != 4:
        raise ValueError(f"expected images of shape (B, C, H, W), got {tuple(saliency.shape)}")
    return saliency.gather(1, saliency.abs().argmax(1, keepdim=True)).squeeze(1)
