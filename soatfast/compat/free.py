"""Free adversarial training (Shafahi et al., NeurIPS 2019) for a script that keeps its own loop and loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soatfast.attacks import PGD
from soatfast.gradients.checks import per_entry
from soatfast.ops.arguments import Bounds, check_number, dtype_or_kind


class FreePerturbation:
    r"""The perturbation that free training carries along: ``output = model(free(X))``, and its backward moves it.

        delta <- clip(delta + step epsilon sgn(g), -epsilon, epsilon), then X + delta into the box

    The gradient g by the input comes out of the script's own backward, whatever its loss, so there is no attack pass.
    delta goes on to the next call: the same batch again, m times in a row, and then the next batch. Row i of a batch
    has delta_i; a shorter batch leaves the other rows alone. This is the loop of fast_adversarial's ``train_free.py``
    step by step, with ``model(X + delta[:len(X)])`` and the lines that update delta taken out.
    :class:`~soatfast.losses.Free` is the whole training loss.

    Args:
        epsilon: radius, a number or, for images normalised outside the model, a tensor (C, 1, 1).
        step: length of the step in units of epsilon.
        bounds: the box of valid inputs, numbers or tensors (C, 1, 1).

    ``state_dict()`` and ``load_state_dict()`` keep delta with a checkpoint.

    Defaults: the authors'.

    Raises:
        TypeError, ValueError: an argument is wrong, X is no floating batch, or of another shape than the last one.

    Passes: none of its own.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> free, X, y = FreePerturbation(0.1), torch.full((3, 1, 2, 2), 0.5), torch.tensor([0, 1, 0])
    >>> for _ in range(2):
    ...     torch.nn.functional.cross_entropy(model(free(X)), y).backward()
    >>> free.delta.abs().unique()
    tensor([0.1000])
    """

    def __init__(self, epsilon: float | Tensor, step: float = 1.0, bounds: Bounds = (0.0, 1.0)):
        checked = PGD(eps=epsilon, bounds=bounds)  # has the checks of these
        self.epsilon, self.bounds = checked.eps, checked.bounds
        self.step = check_number(step, "step")
        self.delta: Tensor | None = None

    def __call__(self, X: Tensor) -> Tensor:
        """X + delta, whose gradient moves delta when it arrives."""
        if not isinstance(X, Tensor) or not X.is_floating_point():
            raise TypeError(f"X must be a floating tensor, got {dtype_or_kind(X)}")
        if self.delta is None or (self.delta.shape[1:] == X.shape[1:] and len(self.delta) < len(X)):
            longer = torch.zeros_like(X, requires_grad=False)
            if self.delta is not None:
                longer[: len(self.delta)] = self.delta.to(X)
            self.delta = longer
        if self.delta.shape[1:] != X.shape[1:]:
            raise ValueError(
                f"X must have samples of shape {tuple(self.delta.shape[1:])}, as before, got {tuple(X.shape)}"
            )
        self.delta = self.delta.to(X)
        x_adv = (X.detach() + self.delta[: len(X)]).requires_grad_()
        x_adv.register_hook(lambda g: self._update(X.detach(), g))
        return x_adv

    @torch.no_grad()
    def _update(self, X: Tensor, g: Tensor) -> None:
        assert self.delta is not None
        eps, lower, upper = (per_entry(v, X, "epsilon") for v in (self.epsilon, *self.bounds))
        moved = self.delta[: len(X)] + self.step * eps * g.sign().nan_to_num()
        moved = torch.maximum(torch.minimum(moved, eps), -eps)
        self.delta[: len(X)] = torch.maximum(torch.minimum(moved, upper - X), lower - X)

    def state_dict(self) -> dict[str, Any]:
        return {"delta": None if self.delta is None else self.delta.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict) or set(state) != {"delta"}:
            raise ValueError(f"expected the state_dict() of a FreePerturbation, got {state!r:.80}")
        self.delta = None if state["delta"] is None else state["delta"].clone()
