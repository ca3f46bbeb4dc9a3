"""What losses with an input-gradient regulariser share: passes whose input gradient keeps its graph to the parameters.

The regulariser's gradient by the parameters goes through the input gradients by double backward: the model needs
twice-differentiable operations, and must not be compiled by torch.compile.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.gradients import behind
from soatfast.gradients.checks import check_batch
from soatfast.gradients.full_precision import check_pass, half_in, recomputes, without_tf32
from soatfast.gradients.kernels import twice_differentiable
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.passes import Passes
from soatfast.gradients.precision import is_half, wide
from soatfast.gradients.recycled import Recycled
from soatfast.gradients.state import check_second_derivative, usable
from soatfast.losses.base import Loss, Step, mean

UNBOUNDED = (-math.inf, math.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class Regularised(Loss):
    """mean_i [ l_i(x) + R_i(x) ]: what the losses with a regulariser R have in common.

    l is the cross-entropy or ``objective``, also inside R. Attention runs by plain operations in these passes, as its
    fused kernels have no second derivative.

    Args:
        mode: state of the model in the regulariser's passes. "eval" (and "train") make them apart from the training
            forward, which stays as the caller left the model. "keep": the regulariser sees the model exactly as the
            training forward does (right for a network without batch norm and dropout), and they share the clean pass:
            one forward less. Only the training forward updates the statistics of batch norm.

    Losses that take differences run their passes without TF32; the backward() that follows is the caller's, who does
    well to leave TF32 off for it: its noise of 1e-3 is divided by the step there too.

    FSDP frees the weights after one backward: losses that go twice through it are refused there.

    ``passes()`` is of a model without ``torch.utils.checkpoint``. With it, and where the mode of some layer is changed,
    the regulariser's parameter gradients are taken at once: 1 backward to the parameters more.
    """

    mode: Mode = "eval"

    def __post_init__(self) -> None:
        super().__post_init__()
        InputGradient(nn.Identity(), mode=self.mode)  # the one place where mode is checked

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_batch(x, y, getattr(self, "bounds", UNBOUNDED), self._labels)
        if self._differences:
            check_full_precision(type(self).__name__, model, x)
        if self._twice:
            check_second_derivative(type(self).__name__, model)
        if len(x) == 0:
            return self._trained(model, x, y)
        x, y = usable(x), usable(y)
        with contextlib.ExitStack() as stack:
            if self._differences:
                stack.enter_context(without_tf32())
            if self._twice:
                stack.enter_context(twice_differentiable())
            oracle = InputGradient(model, mode=self.mode, freeze=False, **self._asked)
            leaf = stack.enter_context(oracle._grad_enabled(self._point(model, x, y)))
            if self.mode == "keep":
                output, losses, inner = self._losses(model, leaf, y)
                self._check_pass(inner)
                with oracle:
                    return mean(losses + self._regulariser(oracle, leaf, y, inner)), output
            with oracle, oracle.state.buffers_apart():
                inner = self._losses(oracle.model, leaf, y)[2]
                self._check_pass(inner)
                again = oracle.state.switched and recomputes(inner)
                regulariser = mean(self._regulariser(oracle, leaf, y, inner))
                if again:  # the caller's backward would compute it again in the caller's mode
                    regulariser = _with_its_gradients(oracle, regulariser, type(self).__name__)
            value, output = self._trained(model, leaf.detach(), y)
            return value + regulariser, output

    def _check_pass(self, losses: Tensor) -> None:
        if self._differences:
            check_pass(type(self).__name__, half_in(losses), losses)

    @property
    def _differences(self) -> bool:
        """Whether numbers that nearly agree are subtracted, which needs float32."""
        return True

    @property
    def _twice(self) -> bool:
        """Whether the caller's backward goes through gradients by the input."""
        return True

    def _point(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Where the loss and the regulariser are evaluated."""
        return x

    def _losses(self, model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits, l (B,), the l of which the regulariser takes gradients (B,)). One forward."""
        logits = self._logits(model, x, y)
        losses = self._values(logits, y)
        return logits, losses, losses

    def _regulariser(self, oracle: InputGradient, x: Tensor, y: Tensor, losses: Tensor) -> Tensor:
        """R_i (B,), with its weight; x is the leaf of which losses (B,) were computed."""
        raise NotImplementedError

    def _passes(self, batch: int, attached: int, gradients: int, steps: int = 0) -> Passes:
        """`attached` forwards that the last backward goes through again, `gradients` input gradients of them, and
        `steps` passes without a graph.
        """
        trained = attached if self.mode == "keep" else attached + 1
        forward, backward = trained + steps, gradients + steps
        return Passes(forward, backward, 1, forward * batch, backward * batch, trained * batch)


def _with_its_gradients(oracle: InputGradient, value: Tensor, name: str) -> Tensor:
    """The value with its parameter gradients computed now, in the mode in which its forwards ran."""
    if oracle.state.sharded:
        raise TypeError(f'{name} of a model with FSDP and torch.utils.checkpoint needs mode="keep"')
    parameters = oracle.state.attached
    slopes = torch.autograd.grad(value, parameters, allow_unused=True) if parameters else ()
    used = [(p, slope) for p, slope in zip(parameters, slopes, strict=True) if slope is not None]
    return Recycled.deferred(value.detach(), used)


def attached_gradient(loss: Loss, model: Any, x: Tensor, y: Tensor) -> Tensor:
    """g(x) with its graph to the parameters; x itself is held fixed. One forward, one backward to the input."""
    leaf = x.detach().requires_grad_()
    return gradient_of(loss._sample_losses(model, leaf, y), leaf)


def gradient_of(losses: Tensor, leaf: Tensor) -> Tensor:
    """The per-sample gradients of losses (B,) by the leaf, with their graph."""
    (gradient,) = torch.autograd.grad(losses.sum(), leaf, create_graph=True)
    return gradient


def norms(g: Tensor, q: float) -> Tensor:
    """||g||_q (B,), differentiable, with the gradient 0 at 0; scaled by max|g|, as tiny entries would underflow."""
    rows = g.flatten(1)
    rows = wide(rows)
    if q == 1:
        return rows.abs().sum(1)
    if q == math.inf:
        return rows.abs().amax(1)
    largest = rows.detach().abs().amax(1)
    scale = torch.where(largest == 0, 1.0, largest)
    total = (rows / scale.unsqueeze(1)).abs().pow(q).sum(1)
    return scale * torch.where(largest == 0, 1.0, total).pow(1 / q) * (largest != 0)


def check_full_precision(name: str, model: Any, x: Tensor) -> None:
    """Raise TypeError where a difference would drown in the noise of reduced precision."""
    needs = f"{name} takes differences of nearly equal passes and needs float32 or float64"
    if is_half(x):
        raise TypeError(f"{needs}, got x of {x.dtype}")
    tree = behind.modules([model]) if isinstance(model, nn.Module) else []
    half = next((p.dtype for module in tree for p in module._parameters.values() if p is not None and is_half(p)), None)
    if half is not None:
        raise TypeError(f"{needs}, got a model with parameters of {half}")
    if torch.is_autocast_enabled(x.device.type):
        raise TypeError(f"{needs}, got autocast to {torch.get_autocast_dtype(x.device.type)}")
