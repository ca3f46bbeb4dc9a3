"""SOAR (Ma, Faghri, Papernot and Farahmand 2020, arXiv 2004.01832): a bound of the second-order adversarial loss."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from soatfast import ops
from soatfast.attacks import PGD
from soatfast.attacks.region import check_numbers
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.losses.base import fields_of
from soatfast.losses.regulariser import Regularised, attached_gradient, gradient_of, norms
from soatfast.ops.arguments import Bounds, as_column, check_number, check_radius, check_steps, per_sample


@dataclass(frozen=True, kw_only=True, eq=False)
class SOAR(Regularised):
    r"""Second-order regularisation: penalises an estimate of the norm of the loss's gradient and Hessian.

        mean_i [ l_i(x_0) + strength c/2 ||A_i z_i|| ]
        A = [[H, g], [g^T, 1]] at x_0,   z ~ N(0, I) in D + 1 entries

    With r = (v, 1): <g, v> + 1/2 <v, H v> = (<r, A r> - 1)/2 <= (c ||A||_F - 1)/2 for every v of the ball, where
    c = D eps^2 + 1 (p = inf) or eps^2 + 1 (p = 2), and ||A||_F^2 = E ||A z||_2^2. The constant -1/2 is left out.

        A z = (H z_v + z_1 g, <g, z_v> + z_1),  z = (z_v, z_1),  H z_v = ||z_v||_2 [g(x_0 + h z_v/||z_v||_2) - g] / h

    estimator "l2", the authors': mean over the draws of ||A z||_2. It is not a bound: for a matrix of rank one it is
    sqrt(2/pi) = 0.80 of ||A||_F. "frob": sqrt(mean of ||A z||_2^2), which tends to ||A||_F with the draws; with
    samples=1 the two are the same.

    x_0 is one PGD step from a random point (``start``), because at x itself the gradient and Hessian of a confident
    sample vanish, and with them the regulariser; both terms are taken there. Gradients are of the sum of the losses:
    with those of the mean the corner 1 would outgrow the rest as the batch grows.

    Differentiated by the parameters: both gradients. Held fixed: x_0 and z.

    Args:
        strength: weight, >= 0.
        eps: radius, in the regulariser and of the start; a number or a tensor of shape () or (B,).
        p: math.inf or 2.
        bounds: the box of valid inputs, for the start; the point x_0 + h z_v / ||z_v||_2 is not clamped.
        estimator: "l2" or "frob".
        samples: draws z of each sample.
        h: L2 length of the finite-difference step, in input units.
        start: "pgd1", uniform in the ball and one step of eps/4; "x": none.
        mode: see :class:`~soatfast.losses.regulariser.Regularised`; of the start as well.
        generator: random numbers of the start and of z; on x's device.

    Defaults: the authors' options for CIFAR-10: strength 0.5, eps 0.03, h 0.03 (their start has 8/255 and a step of
    2/255). Their body of the regulariser is not public: how z and the step are scaled is derived here. They also clip
    ||A z|| at 10 and the regulariser's parameter gradient at 30, which this loss does not. Needs float32: half
    precision and autocast are refused.

    Passes, n draws: 1 forward and backward to the input for the start, then 1 + n forwards, as many backwards to the
    input, and 1 backward to the parameters through these; mode "eval" 1 forward more, for the training loss.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = SOAR(eps=0.1, mode="keep")
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (3, 3, 1)
    """

    strength: float = 0.5
    eps: float | Tensor = 0.03
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    estimator: Literal["l2", "frob"] = "l2"
    samples: int = 1
    h: float = 0.03
    start: Literal["pgd1", "x"] = "pgd1"
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.eps, self.bounds, "SOAR")
        if self.p not in (2, math.inf):
            raise ValueError(f"p must be 2 or math.inf for SOAR, got {self.p!r}")
        check_radius(self.eps)
        _ = self._pgd1  # making the attack checks bounds
        check_number(self.strength, "strength", above=False)
        check_number(self.h, "h")
        check_steps(self.samples, "samples")
        if self.estimator not in ("l2", "frob"):
            raise ValueError(f'estimator must be "l2" or "frob", got {self.estimator!r}')
        if self.start not in ("pgd1", "x"):
            raise ValueError(f'start must be "pgd1" or "x", got {self.start!r}')

    @property
    def _pgd1(self) -> PGD:
        return fields_of(PGD, self, steps=1, step_size=self.eps / 4)

    def _point(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        per_sample(self.eps, "eps", x)
        return self._pgd1(model, x, y) if self.start == "pgd1" else x

    def _regulariser(self, oracle: InputGradient, x: Tensor, y: Tensor, losses: Tensor) -> Tensor:
        g = gradient_of(losses, x)
        draws = torch.stack([self._product(oracle, x, y, g) for _ in range(self.samples)], 1)
        size = draws.mean(1) if self.estimator == "l2" else norms(draws, 2) / math.sqrt(self.samples)
        eps = self.eps.to(size) if isinstance(self.eps, Tensor) else self.eps
        corner = (x[0].numel() if self.p == math.inf else 1) * eps**2 + 1
        return self.strength * 0.5 * corner * size

    def _product(self, oracle: InputGradient, x: Tensor, y: Tensor, g: Tensor) -> Tensor:
        """||A z||_2 (B,) of a fresh z."""
        z = torch.empty_like(x).normal_(generator=self.generator)
        last = torch.empty(len(x), dtype=x.dtype, device=x.device).normal_(generator=self.generator)
        length = as_column(ops.lp_norm(z, 2).to(x.dtype), x)
        moved = attached_gradient(self, oracle.model, x.detach() + self.h * z / length, y)
        upper = length / self.h * (moved - g) + as_column(last, x) * g
        lower = (g * z).flatten(1).sum(1) + last
        return norms(torch.cat([upper.flatten(1), lower.unsqueeze(1)], 1), 2)

    def passes(self, batch: int = 1) -> Passes:
        start = 1 if self.start == "pgd1" else 0
        each = self._passes(batch, attached=1 + self.samples, gradients=1 + self.samples)
        return each + passes_of(batch, forward=start, backward_input=start)
