"""What `soatfast compare` can train and attack with: one row a method, one column an attack."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import PartialState
from torch import nn

from soatfast.attacks import ASOD, FGSM, HAAT, MIFGSM, PGD, SOAE, FrankWolfe, SimBA, named
from soatfast.crops import CropFlip
from soatfast.evaluate.autoattack import AutoAttack
from soatfast.hvp import Scheme
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
from soatfast.memory import PerturbationMemory


@dataclass(frozen=True)
class Task:
    """What a method is made for: the ball, and the training set."""

    eps: float
    samples: int
    shape: tuple[int, ...]
    p: float = math.inf
    augment: CropFlip | None = None
    classes: int = 10

    def memory(self, dtype: torch.dtype = torch.int8) -> PerturbationMemory:
        """Where the training will run."""
        return PerturbationMemory(self.samples, self.shape, dtype, PartialState().device, augment=self.augment)


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


def _sigma(t: Task) -> float:
    """STN's noise: the paper's for grey digits and for colour images."""
    return 0.7 if t.shape[0] == 1 else 100 / 255


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
    "stn": Method("STN, Gaussian noise", lambda t: STN(sigma=_sigma(t))),
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

ATTACKS: dict[str, tuple[str, Callable[[Task], Any]]] = {
    "clean": ("clean %", lambda t: None),
    "fgsm": ("FGSM %", lambda t: FGSM(eps=t.eps, p=t.p)),
    "pgd40": ("PGD-40 %", lambda t: PGD(eps=t.eps, p=t.p, steps=40)),
    "quadratic": ("quadratic %", lambda t: FrankWolfe(eps=t.eps, p=t.p, steps=3)),
    "soae": ("SOAE Newton %", lambda t: SOAE(eps=t.eps, p=t.p, max_dim=9)),
    "soae-tr": ("SOAE tr %", lambda t: SOAE(eps=t.eps, p=t.p, variant="tr", steps=8, max_dim=4)),
    "haat": ("HAAT %", lambda t: HAAT(eps=t.eps, p=t.p, steps=7)),
    "asod": ("ASOD %", lambda t: ASOD(eps=t.eps, p=t.p, sigma=_sigma(t))),
    "mifgsm": ("MI-FGSM %", lambda t: MIFGSM(eps=t.eps, p=t.p)),
    "simba": ("SimBA %", lambda t: SimBA(eps=t.eps, p=t.p, steps=min(200, math.prod(t.shape)))),
    "pgd20": ("PGD-20 %", lambda t: PGD(eps=t.eps, p=t.p, steps=20)),
    "ul": ("UL %", lambda t: named.UL(eps=t.eps, p=t.p)),
    "tl": ("TL %", lambda t: named.TL(eps=t.eps, p=t.p, classes=t.classes)),
    "um": ("UM %", lambda t: named.UM(eps=t.eps, p=t.p)),
    "tm": ("TM %", lambda t: named.TM(eps=t.eps, p=t.p, classes=t.classes)),
    "um20": ("UM-20 %", lambda t: named.UM(eps=t.eps, p=t.p, steps=20)),
    "um40": ("UM-40 %", lambda t: named.UM(eps=t.eps, p=t.p, steps=40)),
    "um100": ("UM-100 %", lambda t: named.UM(eps=t.eps, p=t.p, steps=100)),
    "autoattack": ("AutoAttack %", lambda t: AutoAttack(eps=t.eps, p=t.p, classes=t.classes)),
}
"""Evaluation columns: key -> (header, attack)."""
# SOAE makes 40 passes at most and HAAT 42, about as many as PGD-40; ASOD makes 200.
QUICK = ("clean", "fgsm", "pgd40", "quadratic")


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
    """The loss with the passes of its attack run by this engine (:mod:`soatfast.engine`); eager changes nothing.

    Raises ValueError: the loss has no attack, or one that needs full precision.
    """
    if engine == "eager":
        return loss
    if isinstance(loss, AdversarialTraining):
        return dataclasses.replace(loss, attack=dataclasses.replace(loss.attack, engine=engine))
    if not hasattr(loss, "engine"):
        raise ValueError(f"{type(loss).__name__} has no attack whose passes could be run by engine {engine!r}")
    return dataclasses.replace(loss, engine=engine)  # type: ignore[call-arg]


def check_ball(eps: float, p: float) -> None:
    """Raise ValueError unless all methods and attacks of the tables know this ball."""
    if p not in (2, math.inf):
        raise ValueError(f"p must be 2 or inf, got {p}")
    if not 0 <= eps < math.inf or (p == math.inf and eps > 1):
        raise ValueError(f"eps must be finite and at least 0, and for p = inf at most 1, got {eps}")
