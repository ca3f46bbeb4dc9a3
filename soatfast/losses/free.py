"""Free adversarial training (Shafahi et al., NeurIPS 2019, arXiv 1904.12843): no attack pass, each batch again."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks.base import Attack
from soatfast.attacks.region import check_numbers
from soatfast.gradients.checks import check_batch
from soatfast.gradients.passes import Passes, passes_of
from soatfast.losses.base import Loss, Step
from soatfast.losses.noise import check_linf, into_box
from soatfast.ops.arguments import Bounds, check_number, check_steps, to_multiply


class FreeState:
    """The perturbation that Free carries from step to step, in units of eps: ``u`` (B, ...), or None before the first.

    Each process of a distributed training has its own; ``soatfast.train`` resumes all with that of rank 0.
    """

    def __init__(self) -> None:
        self.reset()

    def __repr__(self) -> str:  # the options of a run, which its progress must not change
        return "FreeState()"

    def reset(self) -> None:
        """Forget the perturbation."""
        self.u: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"u": None if self.u is None else self.u.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.u = state["u"]

    def of(self, x: Tensor) -> Tensor:
        """u for the batch x; 0 where none of its shape is known."""
        known = self.u is not None and self.u.shape == x.shape
        return self.u.to(x) if known and self.u is not None else torch.zeros_like(x)


@dataclass(frozen=True, kw_only=True, eq=False)
class Free(Loss):
    r"""Adversarial training without an attack pass, on each batch several times: mean_i l_i(clamp(x_i + v_i)).

        v <- clip(v + step eps sgn(g), -eps, eps)

    The gradient g by the input comes out of the training backward itself. v is carried to the next step: the same batch
    again, and then, as the authors do, the next batch. Each batch must be trained on ``replays`` times in a row, m of
    the paper's Algorithm 1, with an m-th of the epochs. ``soatfast.train`` repeats the batches; in your own loop it is
    yours to do. A factor on the loss leaves the sign alone.

    Args:
        eps: radius of the ball; a number or a tensor of shape () or (B,).
        p: math.inf, the only one.
        bounds: the box of valid inputs.
        step: length of the step in units of eps, > 0.
        replays: steps in a row on each batch, at least 1.
        state: v, in units of eps.

    Defaults: the authors', eps = 8/255, a step of eps and 8 replays.

    Raises:
        TypeError, ValueError: a field or the batch is wrong, as the message says; see Attack for the batch.

    Passes of one step: 1 forward and 1 backward to the parameters, which reaches the input as well.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = Free(eps=0.1)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.state.u.abs().unique(), loss.passes().forward
    (tensor([1.]), 1)
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    step: float = 1.0
    replays: int = 8
    state: FreeState = field(default_factory=FreeState, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        Attack(eps=self.eps, bounds=self.bounds)  # has the checks of these
        check_linf(self)
        check_numbers(self.eps, self.bounds, type(self).__name__)
        check_number(self.step, "step")
        check_steps(self.replays, "replays")
        if not isinstance(self.state, FreeState):
            raise TypeError(f"state must be a FreeState, got {type(self.state).__name__}")

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_batch(x, y, self.bounds, self._labels)
        if len(x) == 0:
            return self._trained(model, x, y)
        x = x.detach()
        u = self.state.of(x)
        x_adv = into_box(x + to_multiply(self.eps, "eps", x) * u, self.bounds).requires_grad_()
        value, output = self._trained(model, x_adv, y)
        if value.requires_grad:
            x_adv.register_hook(lambda g: self._update(u, g))
        return value, output

    def _update(self, u: Tensor, g: Tensor) -> None:
        self.state.u = (u + self.step * g.sign()).clamp_(-1, 1)

    def passes(self, batch: int = 1) -> Passes:
        return passes_of(batch, forward=1, backward_parameters=1)

    def with_eps(self, eps: float | Tensor) -> Free:
        """With another radius and the same state."""
        return dataclasses.replace(self, eps=eps)
