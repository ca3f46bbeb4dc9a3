"""SmoothAdv (Salman et al. 2019): PGD on the classifier that randomised smoothing makes of a model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from soatfast.attacks.base import Model, check_noise
from soatfast.attacks.pgd import PGD
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.outputs import Forward, check, logits_of
from soatfast.gradients.passes import Passes
from soatfast.ops.arguments import check_fields, check_steps
from soatfast.ops.fields import ByValue

Distribution = Literal["gaussian", "uniform"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Smoothed(ByValue):
    r"""A model as randomised smoothing sees it, for the ``forward`` of an attack or a loss; the soft form (equation 5).

        log( mean over n of softmax(z(x + noise_n)) ),   n < samples

    Args:
        sigma: standard deviation of Gaussian noise, or half the width of uniform noise, in units of the model's input;
            a number or a tensor (C, 1, 1).
        samples: noisy copies of each image, in one pass of as many batches.
        distribution: of the noise, "gaussian" or "uniform". It is drawn in float32.
        generator: random numbers of the noise; on x's device.
        forward: (model, x) -> output, for a model that takes more than x; None: model(x).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> x = torch.rand(2, 1, 2, 2)
    >>> smoothed = Smoothed(sigma=0.25, samples=7)
    >>> torch.allclose(smoothed(model, x).exp().sum(1), torch.ones(2))
    True
    """

    sigma: float | Tensor = 0.25
    samples: int = 8
    distribution: Distribution = "gaussian"
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)
    forward: Forward | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_noise(self.sigma, "sigma")
        check_steps(self.samples, "samples")
        if self.distribution not in ("gaussian", "uniform"):
            raise ValueError(f'distribution must be "gaussian" or "uniform", got {self.distribution!r}')
        check(None, self.forward)

    def __call__(self, model: Any, x: Tensor) -> Tensor:
        drawn = torch.empty((len(x), self.samples, *x.shape[1:]), dtype=torch.float32, device=x.device)
        if self.distribution == "gaussian":
            drawn.normal_(generator=self.generator)
        else:
            drawn = (drawn.uniform_(generator=self.generator) - 0.5) * 2
        noise = (self.sigma * drawn).to(x.dtype).transpose(0, 1)
        noisy = (x + noise).flatten(0, 1)  # (samples B, ...): the whole batch, again and again
        returned = model(noisy) if self.forward is None else self.forward(model, noisy)
        logits = logits_of(returned, len(noisy))
        wide = logits if logits.dtype.itemsize > 2 else logits.float()
        each = wide.log_softmax(1).unflatten(0, (self.samples, len(x)))
        return each.logsumexp(0) - math.log(self.samples)


@dataclass(frozen=True, kw_only=True, eq=False)
class SmoothAdv(PGD):
    r"""PGD that raises -log of the mean probability of y under noise: against a smoothed classifier (equation 6).

        x_{k+1} = project(x_k + step_size step_p(g));   g = d/dx -log mean_n softmax(z(x_k + noise_n))_y

    Each step draws new noise. For other attacks take ``forward=Smoothed(...)``.

    Args:
        sigma, samples, distribution: as :class:`~soatfast.attacks.Smoothed`'s.
        random_start: False, the paper's, starts at x.
        generator: random numbers of the noise, and of a start; on x's device.

    Defaults of the paper: sigma 0.12 to 1.0 by data set, p = 2, step size 2 eps / steps, samples 1 to 8. Here p = inf
    and PGD's step size; ``output`` stays None. All else as :class:`~soatfast.attacks.PGD`.

    Passes: PGD's, each of ``samples`` times the batch.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> attack = SmoothAdv(eps=0.5, p=2, steps=4, samples=3)
    >>> attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 2])).shape, attack.passes(2).forward_samples
    (torch.Size([2, 1, 2, 2]), 24)
    """

    random_start: bool = False
    sigma: float | Tensor = 0.25
    samples: int = 8
    distribution: Distribution = "gaussian"

    watchable = False  # its points are noisy copies

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None:
            raise ValueError(f"SmoothAdv averages predictions inside: give output in forward=, got {self.output!r}")

    def oracle(self, model: Model) -> InputGradient:
        forward = Smoothed(
            sigma=self.sigma,
            samples=self.samples,
            distribution=self.distribution,
            generator=self.generator,
            forward=self.forward,
        )
        return InputGradient(model, self.objective, self.mode, self.engine, self.targeted, forward=forward)

    def passes(self, batch: int = 1) -> Passes:
        once, many = super().passes(batch), super().passes(batch * self.samples)
        return Passes(
            once.forward,
            once.backward_input,
            forward_samples=many.forward_samples,
            backward_input_samples=many.backward_input_samples,
        )
