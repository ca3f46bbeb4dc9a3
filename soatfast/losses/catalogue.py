"""Every training method that commands and docs/systems.md know by name: one row each.

mode="keep": the default model has no layer that train mode changes, and SCORPIO can then share its clean pass. For a
model that has one, `soatfast compare` makes it "eval" (`soatfast.commands.methods.suited`).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from soatfast.attacks import HAAT, PGD, SOAE, FrankWolfe
from soatfast.attacks.asod import noise_sigma
from soatfast.attacks.catalogue import Facts, Row
from soatfast.attacks.task import Task
from soatfast.losses import (
    CURE,
    ELLE,
    FGSMPGI,
    LLR,
    MART,
    NFGSM,
    SCORPIO,
    SOAR,
    SORA,
    STN,
    TRADES,
    AdversarialTraining,
    CrossEntropy,
    Free,
    GradAlign,
    InputGradientPenalty,
)


def _pgd(t: Task, steps: int, **fields: Any) -> AdversarialTraining:
    return AdversarialTraining(PGD(eps=t.eps, p=t.p, steps=steps, mode="keep", **fields))


def _replay(t: Task, steps: int, dtype: torch.dtype = torch.int8) -> AdversarialTraining:
    return AdversarialTraining(FrankWolfe(eps=t.eps, p=t.p, steps=steps, mode="keep"), memory=t.memory(dtype))


def _soat(t: Task, variant: Any) -> AdversarialTraining:
    return AdversarialTraining(SOAE(eps=t.eps, p=t.p, variant=variant, steps=2, max_dim=4, mode="keep"))


def _scorpio(t: Task, **fields: Any) -> SCORPIO:
    return SCORPIO(eps=t.eps, p=t.p, mode="keep", **fields)


def _papers_scorpio(t: Task, scheme: Any, steps: int, data: str = "cifar10") -> SCORPIO:
    return SCORPIO.paper(data, t.p, scheme, steps, eps=t.eps, mode="keep")


def _soar(t: Task) -> SOAR:
    """With no more than the authors' weight of ||A z||, strength c / 2 on CIFAR-10 at eps 0.03: c grows as D eps^2, and
    on digits at eps 0.2 their strength of 0.5 drowns the loss (10 % accuracy on clean digits after 5 epochs)."""

    def corner(size: int, eps: float) -> float:
        return (size if t.p == math.inf else 1) * eps**2 + 1

    strength = 0.5 * min(1.0, corner(3 * 32 * 32, 0.03) / corner(math.prod(t.shape), t.eps))
    return SOAR(eps=t.eps, p=t.p, strength=strength, mode="keep")


_TRAIN, _FW, _TWICE = ("K + 1", "K", "1"), ("N + 2", "N", "2"), ("T * (1 + m) + 1", "T * (1 + m)", "1")
_SCORPIO, _LOSSES, _PENALTY = "arXiv 2009.04923", "losses/test_losses.py", "losses/test_gradient_penalty.py"
_ONE_STEP = "losses/test_one_step.py"
_PAPERS: tuple[float, ...] = (2, math.inf)
_ATTA, _MEMORY, _ONCE = "ATTA, Zheng et al. 2020", "attacks/test_replay.py", ("N + 1", "N", "1")

LOSSES: tuple[Row, ...] = (
    Row("standard", "standard", lambda t: CrossEntropy(), Facts("none", ("1", "0", "1"), "losses/test_objectives.py")),
    Row("pgd10", "PGD-10 training", lambda t: _pgd(t, 10), Facts("Madry et al. 2018", _TRAIN, _LOSSES, {"K": 10})),
    # Four fifths of a digit's pixels are 0: half of the ball around them is out of the box, so v is sought in both.
    Row(
        "scorpio",
        "SCORPIO FE(3), ball and box",
        lambda t: _scorpio(t, steps=3, h=1.0, strength=1.05, init="lmo", in_box=True if t.p == math.inf else None),
        Facts("arXiv 2009.04923; in_box is ours", _FW, _LOSSES, {"N": 3}),
    ),
    Row("pgd4", "PGD-4 training", lambda t: _pgd(t, 4)),
    Row(
        "scorpio-ball",
        "SCORPIO FE(3), the paper's",
        lambda t: _papers_scorpio(t, "fe", 3),
        Facts(_SCORPIO, _FW, _LOSSES, {"N": 3}),
        norms=_PAPERS,
    ),
    Row(
        "replay", "FW replay, 1 step", lambda t: _replay(t, 1), Facts(f"none; after {_ATTA}", _ONCE, _MEMORY, {"N": 1})
    ),
    Row("replay2", "FW replay, 2 steps", lambda t: _replay(t, 2)),
    Row("replay-float32", "FW replay, 1 step, float32", lambda t: _replay(t, 1, torch.float32)),
    # Half steps leave the mean |v| at 0.62 of the radius; 1.25 eps makes up for it on natural images.
    Row("replay-wide", "FW replay, 1 step, at 1.25 eps", lambda t: _replay(replace(t, eps=1.25 * t.eps), 1)),
    Row(
        "fgsm",
        "FGSM, random start",
        lambda t: _pgd(t, 1, step_size=1.25 * t.eps),
        Facts("FGSM-RS, Wong et al. 2020", _TRAIN, _ONE_STEP, {"K": 1}),
    ),
    Row(
        "n-fgsm",
        "N-FGSM",
        lambda t: NFGSM(eps=t.eps, p=t.p),
        Facts("de Jorge et al. 2022", ("2", "1", "1"), _ONE_STEP),
        norms=(math.inf,),
    ),
    Row(
        "fgsm-pgi",
        "FGSM-PGI",
        lambda t: FGSMPGI(t.memory(), eps=t.eps, p=t.p),
        Facts("Jia et al. 2022, FGSM-EP", ("2", "1", "1"), _ONE_STEP),
        norms=(math.inf,),
    ),
    Row(
        "grad-align",
        "GradAlign",
        lambda t: GradAlign(eps=t.eps, p=t.p),
        Facts("Andriushchenko and Flammarion 2020", ("3", "2", "1"), _ONE_STEP),
        norms=(math.inf,),
    ),
    Row(
        "elle",
        "ELLE",
        lambda t: ELLE(eps=t.eps, p=t.p),
        Facts("Abad Rocamora et al. 2024", ("3", "1", "1"), _ONE_STEP),
        norms=(math.inf,),
    ),
    Row(
        "free",
        "Free, 8 replays",
        lambda t: Free(eps=t.eps, p=t.p),
        Facts("Shafahi et al. 2019", ("1", "0", "1"), _ONE_STEP),
        norms=(math.inf,),
    ),
    Row("pgd2", "PGD-2 training", lambda t: _pgd(t, 2)),
    Row(
        "atta",
        "PGD replay, 1 step (ATTA)",
        lambda t: AdversarialTraining(PGD(eps=t.eps, p=t.p, steps=1, mode="keep"), memory=t.memory()),
        Facts(_ATTA, _ONCE, _MEMORY, {"N": 1}),
    ),
    Row("scorpio-replay", "SCORPIO replay, 1 step", lambda t: _scorpio(t, steps=1, strength=1.05, memory=t.memory())),
    # Ten attack passes each, as PGD-10.
    Row(
        "soat",
        "SOAT, trust region",
        lambda t: _soat(t, "tr"),
        Facts("after SOAT, arXiv 2207.01396", _TWICE, "attacks/test_soae.py", {"T": 2, "m": 4}),
    ),
    Row(
        "soat-newton",
        "SOAT, Newton (the paper's)",
        lambda t: _soat(t, "newton"),
        Facts("SOAT, arXiv 2207.01396", _TWICE, "attacks/test_soae.py", {"T": 2, "m": 4}),
    ),
    Row(
        "haat",
        "HAAT, 2 steps of 5 passes",
        lambda t: AdversarialTraining(HAAT(eps=t.eps, p=t.p, steps=2, power=4, step_size=t.eps / 2, mode="keep")),
        Facts("HAAT report", ("T * (1 + k) + 1", "T * (1 + k)", "1"), "attacks/test_haat.py", {"T": 2, "k": 4}),
        norms=(math.inf,),
    ),
    Row(
        "trades",
        "TRADES, 10 steps",
        lambda t: TRADES(eps=t.eps, p=t.p, steps=10, beta=6.0, mode="keep"),
        Facts("Zhang et al. 2019", ("K + 2", "K", "1"), "losses/test_trades.py", {"K": 10}),
    ),
    Row(
        "mart",
        "MART, 10 steps",
        lambda t: MART(eps=t.eps, p=t.p, steps=10, beta=5.0, mode="keep"),
        Facts("Wang et al. 2020", ("K + 2", "K", "1"), "losses/test_mart.py", {"K": 10}),
    ),
    Row(
        "sora",
        "SORA, 1 adaptive step",
        lambda t: SORA(eps=t.eps, p=t.p),
        Facts("arXiv 2606.00738", ("2", "1", "1"), "losses/test_sora.py"),
    ),
    Row("soar", "SOAR", _soar, Facts("arXiv 2004.01832", ("2 + n", "2 + n", "1"), "losses/test_soar.py", {"n": 1})),
    Row(
        "cure",
        "CURE",
        lambda t: CURE(mode="keep"),
        Facts("Moosavi-Dezfooli et al. 2019", ("2", "2", "1"), "losses/test_cure.py"),
    ),
    Row(
        "gradient-penalty",
        "input-gradient penalty",
        lambda t: InputGradientPenalty(variant="dual", eps=t.eps, p=t.p, mode="keep"),
        Facts("Ross and Doshi-Velez 2018; Lyu et al. 2015", ("1", "1", "1"), _PENALTY),
    ),
    Row(
        "llr",
        "LLR, 10 steps",
        lambda t: LLR(eps=t.eps, p=t.p, mode="keep"),
        Facts("Qin et al. 2019", ("M + 2", "M + 1", "1"), "losses/test_llr.py", {"M": 10}),
    ),
    Row(
        "stn",
        "STN, Gaussian noise",
        lambda t: STN(sigma=noise_sigma(t.shape)),
        Facts("arXiv 1809.03113", ("2", "0", "1"), "losses/test_stn.py"),
    ),
    Row(
        "gradient-difference",
        "input-gradient penalty, difference",
        lambda t: InputGradientPenalty(variant="difference", p=t.p, mode="keep"),
        Facts("Finlay and Oberman 2019", ("2", "1", "1"), _PENALTY),
    ),
    Row("pgd3", "PGD-3 training", lambda t: _pgd(t, 3)),
    Row("pgd7", "PGD-7 training", lambda t: _pgd(t, 7)),
    Row("scorpio-fe1", "SCORPIO FE(1), the paper's", lambda t: _papers_scorpio(t, "fe", 1), norms=_PAPERS),
    Row(
        "scorpio-cd",
        "SCORPIO CD(3), the paper's",
        lambda t: _papers_scorpio(t, "cd", 3),
        Facts(_SCORPIO, _FW, _LOSSES, {"N": 3}),
        norms=_PAPERS,
    ),
    Row("scorpio-cd1", "SCORPIO CD(1), the paper's", lambda t: _papers_scorpio(t, "cd", 1), norms=_PAPERS),
    Row(
        "scorpio-svhn",
        "SCORPIO FE(3), the paper's for SVHN",
        lambda t: _papers_scorpio(t, "fe", 3, "svhn"),
        norms=_PAPERS,
    ),
)
