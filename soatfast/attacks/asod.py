"""ASOD, the attack of STN (Li, Chen, Wang and Carin 2019, arXiv 1809.03113): PGD on gradients at noisy points."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from soatfast import ops
from soatfast.attacks.base import Attack, check_noise, check_step_size
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.memory.visit import Visit
from soatfast.ops.arguments import check_steps


def noise_sigma(shape: Sequence[int]) -> float:
    """The authors' noise for images of this shape: 0.7 for grey ones (1, H, W), else 100/255."""
    return 0.7 if len(shape) == 3 and shape[0] == 1 else 100 / 255


@dataclass(frozen=True, kw_only=True, eq=False)
class ASOD(Attack):
    r"""Steps along the sum of the gradients at noisy copies of the iterate, from x_0 = x.

        x_{k+1} = project(x_k + step_size step_p(G_k)),  G_k = sum_j g(x_k + u_j),  u_j ~ N(0, sigma^2 I)

    g(x + u) is g(x) + H u where the loss is quadratic: with samples=1 and a small g it is a power step on the Hessian,
    the paper's derivation. Averaging undoes it: E g(x + u) is the gradient of the Gaussian-smoothed loss,
    g + sigma^2/2 grad tr H + .., and on a quadratic it is g itself, so that the code's 10 draws keep no curvature. (The
    code's draws of a step are probably one and the same vector.) sigma = 0 is PGD from x.

    Args:
        steps: gradient steps.
        samples: draws u_j a step.
        sigma: standard deviation of the noise, in input units, >= 0; a number or a tensor (C, 1, 1); None:
            :func:`noise_sigma` of the images.
        step_size: in input units; None: eps/10 for p = inf, else 2.5 eps / steps.
        generator: random numbers of the noise; on x's device.

    p is 1, 2 or math.inf. Noisy points are not clamped; the iterate is kept in the box at each step, as in
    :class:`~soatfast.attacks.PGD`, where the code clips once at the end.

    Defaults: the authors' code, 20 steps of 10 draws, sigma 0.7 for MNIST and 100/255 for CIFAR-10, step eps/10. For
    p = 2 the code raises a margin, ``objective="margin"``.

    Passes: steps * samples forwards and as many backwards to the input.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x, y = torch.full((2, 1, 2, 2), 0.5), torch.tensor([1, 2])
    >>> attack = ASOD(eps=0.1, steps=10, samples=3, sigma=0.1)
    >>> round(float((attack(model, x, y) - x).abs().max()), 4), attack.passes().forward
    (0.1, 30)
    """

    steps: int = 20
    samples: int = 10
    sigma: float | Tensor | None = None
    step_size: float | Tensor | None = None
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    watchable = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p not in (1, 2, math.inf):
            raise ValueError(f"p must be 1, 2 or math.inf for ASOD, got {self.p!r}")
        check_steps(self.steps)
        check_steps(self.samples, "samples")
        if self.sigma is not None:
            check_noise(self.sigma, "sigma")
        check_step_size(self)

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        alpha = self.step_size
        if alpha is None:
            alpha = self.eps / 10 if self.p == math.inf else 2.5 * self.eps / self.steps
        x_adv = x
        for _ in range(self.steps):
            g = self._summed(oracle, x_adv, y)
            x_adv = ops.pgd_step(x_adv, g, x, self.p, self.eps, alpha, bounds=self.bounds, exact=self.p == 1)
        return x_adv

    def run(
        self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None = None, visit: Visit | None = None
    ) -> Tensor:
        if self.sigma is None:  # in the units of x, and not of the coordinates that an eps a channel gives
            return dataclasses.replace(self, sigma=noise_sigma(x.shape[1:])).run(oracle, x, y, g0, visit)
        return super().run(oracle, x, y, g0, visit)

    def _summed(self, oracle: InputGradient, x: Tensor, y: Tensor) -> Tensor:
        """The gradients at the noisy points, summed."""
        assert self.sigma is not None, "run has set it"
        total = torch.zeros_like(x)
        for _ in range(self.samples):
            noise = self._free(torch.empty_like(x).normal_(generator=self.generator))
            total += oracle.gradient(x + self.sigma * noise, y)
        return total

    def passes(self, batch: int = 1) -> Passes:
        each = self.steps * self.samples
        return passes_of(batch, forward=each, backward_input=each)
