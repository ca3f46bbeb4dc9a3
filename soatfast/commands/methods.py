"""What `soatfast compare` can train and attack with: one row a method, one column an attack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from soatfast.attacks import HAAT, PGD, SOAE, FrankWolfe
from soatfast.attacks.catalogue import Task, noise_sigma
from soatfast.losses import (
    CURE,
    LLR,
    MART,
    SCORPIO,
    SOAR,
    SORA,
    STN,
    TRADES,
    AdversarialTraining,
    CrossEntropy,
    InputGradientPenalty,
    Loss,
)
from soatfast.solvers.hessian import Scheme


@dataclass(frozen=True)
class Method:
    """A row of the comparison: how it is shown, and its loss."""

    label: str
    loss: Callable[[Task], Loss]


def _pgd(steps: int) -> Callable[[Task], Loss]:
    return lambda t: AdversarialTraining(PGD(eps=t.eps, p=t.p, steps=steps, mode="keep"))


def _fgsm(t: Task) -> Loss:
    """One step of 1.25 eps from a random start (Wong, Rice and Kolter 2020)."""
    return AdversarialTraining(PGD(eps=t.eps, p=t.p, steps=1, step_size=1.25 * t.eps, mode="keep"))


def _replay(steps: int, dtype: torch.dtype = torch.int8) -> Callable[[Task], Loss]:
    return lambda t: AdversarialTraining(FrankWolfe(eps=t.eps, p=t.p, steps=steps, mode="keep"), memory=t.memory(dtype))


def _atta(steps: int) -> Callable[[Task], Loss]:
    return lambda t: AdversarialTraining(PGD(eps=t.eps, p=t.p, steps=steps, mode="keep"), memory=t.memory())


def _soat(variant: Literal["newton", "tr"]) -> Callable[[Task], Loss]:
    return lambda t: AdversarialTraining(
        SOAE(eps=t.eps, p=t.p, variant=variant, steps=2, max_dim=4, mode="keep"),
    )


def _scorpio(scheme: Scheme, steps: int, h: float, strength: float) -> Callable[[Task], Loss]:
    """As the paper prints it, with its CIFAR-10 Linf h and r."""
    return lambda t: SCORPIO(eps=t.eps, p=t.p, scheme=scheme, steps=steps, h=h, strength=strength, mode="keep")


def _soar(t: Task) -> Loss:
    """With no more than the authors' weight of ||A z||, strength c / 2 on CIFAR-10 at eps 0.03: c grows as D eps^2, and
    on digits at eps 0.2 their strength of 0.5 drowns the loss (10 % accuracy on clean digits after 5 epochs)."""

    def corner(size: int, eps: float) -> float:
        return (size if t.p == math.inf else 1) * eps**2 + 1

    strength = 0.5 * min(1.0, corner(3 * 32 * 32, 0.03) / corner(math.prod(t.shape), t.eps))
    return SOAR(eps=t.eps, p=t.p, strength=strength, mode="keep")


# mode="keep": the default model has no layer that train mode changes, and SCORPIO can then share its clean pass.
# For a model that has one, `suited` makes it "eval", but for SORA, whose two gradients must be of one function.
METHODS: dict[str, Method] = {
    "standard": Method("standard", lambda t: CrossEntropy()),
    "pgd10": Method("PGD-10 training", _pgd(10)),
    # Four fifths of a digit's pixels are 0: half of the ball around them is out of the box, so v is sought in both.
    "scorpio": Method(
        "SCORPIO FE(3), ball and box",
        lambda t: SCORPIO(
            eps=t.eps, p=t.p, steps=3, h=1.0, strength=1.05, init="lmo", in_box=t.p == math.inf, mode="keep"
        ),
    ),
    "pgd4": Method("PGD-4 training", _pgd(4)),
    "scorpio-ball": Method("SCORPIO FE(3), the paper's", _scorpio("fe", 3, 1.05, 1.05)),
    "replay": Method("FW replay, 1 step", _replay(1)),
    "replay2": Method("FW replay, 2 steps", _replay(2)),
    "replay-float32": Method("FW replay, 1 step, float32", _replay(1, torch.float32)),
    "fgsm": Method("FGSM, random start", _fgsm),
    "pgd2": Method("PGD-2 training", _pgd(2)),
    "atta": Method("PGD replay, 1 step (ATTA)", _atta(1)),
    "scorpio-replay": Method(
        "SCORPIO replay, 1 step",
        lambda t: SCORPIO(eps=t.eps, p=t.p, steps=1, strength=1.05, mode="keep", memory=t.memory()),
    ),
    # Ten attack passes each, as PGD-10.
    "soat": Method("SOAT, trust region", _soat("tr")),
    "soat-newton": Method("SOAT, Newton (the paper's)", _soat("newton")),
    "haat": Method(
        "HAAT, 2 steps of 5 passes",
        lambda t: AdversarialTraining(HAAT(eps=t.eps, p=t.p, steps=2, power=4, step_size=t.eps / 2, mode="keep")),
    ),
    "trades": Method("TRADES, 10 steps", lambda t: TRADES(eps=t.eps, p=t.p, steps=10, beta=6.0, mode="keep")),
    "mart": Method("MART, 10 steps", lambda t: MART(eps=t.eps, p=t.p, steps=10, beta=5.0, mode="keep")),
    "sora": Method("SORA, 1 adaptive step", lambda t: SORA(eps=t.eps, p=t.p)),
    "soar": Method("SOAR", _soar),
    "cure": Method("CURE", lambda t: CURE(mode="keep")),
    "gradient-penalty": Method(
        "input-gradient penalty", lambda t: InputGradientPenalty(variant="dual", eps=t.eps, p=t.p, mode="keep")
    ),
    "llr": Method("LLR, 10 steps", lambda t: LLR(eps=t.eps, p=t.p, mode="keep")),
    "stn": Method("STN, Gaussian noise", lambda t: STN(sigma=noise_sigma(t))),
    "gradient-difference": Method(
        "input-gradient penalty, difference",
        lambda t: InputGradientPenalty(variant="difference", p=t.p, mode="keep"),
    ),
    "pgd3": Method("PGD-3 training", _pgd(3)),
    "pgd7": Method("PGD-7 training", _pgd(7)),
    "scorpio-fe1": Method("SCORPIO FE(1), the paper's", _scorpio("fe", 1, 0.95, 1.05)),
    "scorpio-cd": Method("SCORPIO CD(3), the paper's", _scorpio("cd", 3, 0.95, 1.15)),
    "scorpio-cd1": Method("SCORPIO CD(1), the paper's", _scorpio("cd", 1, 0.95, 1.15)),
}
DEMO = ("standard", "pgd10", "scorpio", "pgd4", "replay")
BASELINE = "pgd10"
"""The method whose training time is 1 in the column of speed-ups."""


def suited(loss: Loss, model: nn.Module) -> Loss:
    """The loss as it is for a model that train mode does not change; else with its attack in eval mode."""
    changing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if not any(isinstance(module, changing) for module in model.modules()):
        return loss
    if isinstance(loss, AdversarialTraining):
        return dataclasses.replace(loss, attack=dataclasses.replace(loss.attack, mode="eval"))
    known = hasattr(loss, "mode") and not isinstance(loss, SORA)  # SORA's two gradients must be of one function
    return dataclasses.replace(loss, mode="eval") if known else loss  # type: ignore[call-arg]


def with_engine(loss: Loss, engine: str) -> Loss:
    """The loss with its attack's passes run by this engine (:mod:`soatfast.gradients.engine`); eager changes nothing.

    Raises ValueError: the loss has no attack, or one that needs full precision.
    """
    if engine == "eager":
        return loss
    if isinstance(loss, AdversarialTraining):
        return dataclasses.replace(loss, attack=dataclasses.replace(loss.attack, engine=engine))
    if not hasattr(loss, "engine"):
        raise ValueError(f"{type(loss).__name__} has no attack whose passes could be run by engine {engine!r}")
    return dataclasses.replace(loss, engine=engine)  # type: ignore[call-arg]
