"""CURE (Moosavi-Dezfooli et al., CVPR 2019): training for a small curvature of the loss along its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes
from soatfast.losses.regulariser import Regularised, attached_gradient, gradient_of, norms
from soatfast.ops.arguments import as_column, check_number


@dataclass(frozen=True, kw_only=True, eq=False)
class CURE(Regularised):
    r"""Curvature regularisation: penalises how the input gradient changes along its sign.

        mean_i [ l_i(x) + strength ||g_i(x + h z_i) - g_i(x)||_2^power ],   z = sgn(g(x)) / ||sgn(g(x))||_2

    The difference is h H z where the loss is quadratic, so power 1 penalises h ||H z||_2 and power 2 its square. The
    authors' code has power 1 and no 1/h; the paper has the square, with 1/h^2 in the weight. Gradients are of the sum
    of the losses: the code's are of the mean, and its penalty shrinks with the batch.

    Differentiated by the parameters: both gradients. Held fixed: z. A zero gradient gives z = 0 and no penalty.
    x + h z is not clamped, which would change the direction that is differenced.

    Args:
        strength: weight, >= 0.
        h: length of the step in the L2 norm, in input units; an entry moves by h/sqrt(D) (CIFAR-10, h = 3: 13.8/255).
        power: 1 or 2.
        mode: see :class:`~soatfast.losses.regulariser.Regularised`.

    Defaults: the authors' code, strength 4, h 3, for fine-tuning; it reaches h over the first epochs by 0.1, 0.4, 0.8,
    1.8 (``TrainConfig(h_ramp=...)``). Needs float32: half precision and autocast are refused.

    Passes: 2 forwards and 2 backwards to the input, and 1 backward to the parameters through both; mode "eval" 1
    forward more, for the training loss.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = CURE(h=1.5, mode="keep")
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (2, 2, 1)
    """

    strength: float = 4.0
    h: float = 3.0
    power: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.strength, "strength", above=False)
        check_number(self.h, "h")
        if isinstance(self.power, bool) or self.power not in (1, 2):
            raise ValueError(f"power must be 1 or 2, got {self.power!r}")

    def _regulariser(self, oracle: InputGradient, x: Tensor, y: Tensor, losses: Tensor) -> Tensor:
        g = gradient_of(losses, x)
        sign = torch.sign(g.detach())
        length = as_column(sign.flatten(1).norm(dim=1).clamp_min(1), x)
        moved = attached_gradient(self, oracle.model, x.detach() + self.h * sign / length, y)
        distance = norms(moved - g, 2)
        return self.strength * (distance if self.power == 1 else distance**2)

    def passes(self, batch: int = 1) -> Passes:
        return self._passes(batch, attached=2, gradients=2)

    def with_eps(self, eps: float | Tensor) -> CURE:
        return self
