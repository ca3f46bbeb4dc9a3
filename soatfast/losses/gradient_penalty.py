"""Input-gradient regularisation: Ross and Doshi-Velez 2018, Lyu et al. 2015, Finlay and Oberman 2019."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from soatfast import ops
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.outputs import as_classes
from soatfast.gradients.passes import Passes
from soatfast.losses.regulariser import Regularised, gradient_of, norms
from soatfast.ops.arguments import check_number, check_radius, norm_order, per_sample

_TULIP_H = 0.01


@dataclass(frozen=True, kw_only=True, eq=False)
class InputGradientPenalty(Regularised):
    r"""Penalises the size R of the input gradient g.

        mean_i [ l_i(x) + strength R_i ],   1/p + 1/q = 1

    ::

        "squared"     R = ||g||_q^2                                         p = 2: Ross and Doshi-Velez, double backward
        "dual"        R = eps ||g||_q                                       Lyu et al., double backward
        "difference"  R = 1/2 ((l(x + h v) - l(x)) / h)^2,  ||v||_p = 1     Finlay and Oberman, no double backward

    "dual" at strength 1 is the largest linearised loss in the ball, l + max over ||v||_p <= eps of <g, v>; exact where
    the loss is linear. "difference" has the steepest v = lmo_p(g; 1) (p = 2: g/||g||_2) and tends to 1/2 ||g||_q^2 as
    h -> 0. g is of the sum of the losses: Ross and Doshi-Velez's lambda_R, on the gradient of the mean over a batch of
    B, is strength lambda_R / (2B).

    Differentiated by the parameters: g; for "difference" l(x + h v) and l(x), with v held fixed. The gradient of a norm
    at g = 0 is 0.

    Args:
        variant: "squared", "dual" or "difference".
        strength: weight, >= 0.
        p: order of the norm of perturbations, >= 1; math.inf penalises the L1 norm of g.
        eps: radius in input units, of "dual", which needs it; a number or a tensor of shape () or (B,).
        h: p-norm of the step of "difference"; None: 0.01.
        targets: "label", or "uniform": l inside R is the cross-entropy to the uniform distribution, -mean_k log p_k
            (Ross and Doshi-Velez, certainty insensitivity).
        mode: see :class:`~soatfast.losses.regulariser.Regularised`.

    Defaults: Ross and Doshi-Velez's penalty; their grid, lambda_R = 10^2..10^5 with B = 256, is strength 0.2..195. h is
    Finlay and Oberman's. "difference" needs float32: half precision and autocast are refused.

    Passes: 1 forward, 1 backward to the input and 1 to the parameters; "difference" 1 forward more; mode "eval" 1
    forward more, for the training loss.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = InputGradientPenalty(variant="dual", p=math.inf, eps=0.1, mode="keep")
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (1, 1, 1)
    """

    variant: Literal["squared", "dual", "difference"] = "squared"
    strength: float = 1.0
    p: float = 2
    eps: float | Tensor | None = None
    h: float | None = None
    targets: Literal["label", "uniform"] = "label"

    eps_with: ClassVar[tuple[str, str]] = ("variant", "dual")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in ("squared", "dual", "difference"):
            raise ValueError(f'variant must be "squared", "dual" or "difference", got {self.variant!r}')
        check_number(self.strength, "strength", above=False)
        norm_order(self.p)
        if self.variant == "dual" and self.eps is None:
            raise ValueError('variant "dual" needs eps, the radius of the ball, got None')
        for name, owner in (("eps", "dual"), ("h", "difference")):
            value = getattr(self, name)
            if value is not None and self.variant != owner:
                raise ValueError(f'{name} belongs to variant "{owner}", got {value!r} for "{self.variant}"')
        if self.eps is not None:
            check_radius(self.eps)
        if self.h is not None:
            check_number(self.h, "h")
        if self.targets not in ("label", "uniform"):
            raise ValueError(f'targets must be "label" or "uniform", got {self.targets!r}')

    @property
    def _differences(self) -> bool:
        return self.variant == "difference"

    @property
    def _twice(self) -> bool:
        return self.variant != "difference"

    def _losses(self, model: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.targets == "label":
            return super()._losses(model, x, y)
        logits = self._logits(model, x, y)
        inside = as_classes(logits).log_softmax(1).flatten(1)
        masked = inside.isneginf()  # classes with logits of -inf have no share of the uniform distribution
        return logits, self._values(logits, y), -inside.masked_fill(masked, 0.0).sum(1) / (~masked).sum(1)

    def _regulariser(self, oracle: InputGradient, x: Tensor, y: Tensor, losses: Tensor) -> Tensor:
        if self.variant == "difference":
            (g,) = torch.autograd.grad(losses.sum(), x, retain_graph=True)
            h = _TULIP_H if self.h is None else self.h
            *_, moved = self._losses(oracle.model, x.detach() + ops.lmo(g, self.p, h), y)
            return self.strength * 0.5 * ((moved - losses) / h) ** 2
        size = norms(gradient_of(losses, x), _dual(self.p))
        if self.variant == "squared":
            return self.strength * size**2
        assert self.eps is not None
        per_sample(self.eps, "eps", x)
        return self.strength * (self.eps.to(size) if isinstance(self.eps, Tensor) else self.eps) * size

    def passes(self, batch: int = 1) -> Passes:
        return self._passes(batch, attached=2 if self.variant == "difference" else 1, gradients=1)

    def with_eps(self, eps: float | Tensor) -> InputGradientPenalty:
        return dataclasses.replace(self, eps=eps) if self.variant == "dual" else self


def _dual(p: float) -> float:
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)
