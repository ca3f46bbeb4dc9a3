"""The rows of the table of systems: every loss and attack with its paper, pass formula and oracle test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from soatfast.attacks import (
    ASOD,
    FGSM,
    HAAT,
    MIFGSM,
    PGD,
    SOAE,
    Attack,
    FrankWolfe,
    NearPGD,
    SimBA,
    TargetedPGD,
    named,
)
from soatfast.attacks.catalogue import Task
from soatfast.commands.methods import METHODS
from soatfast.losses import Loss

EPS, BATCH, SHAPE, CLASSES = 0.2, 16, (1, 28, 28), 10
TASK = Task(eps=EPS, samples=BATCH, shape=SHAPE, classes=CLASSES)


@dataclass(frozen=True)
class System:
    """One row.

    formula: forwards, backwards to the input and to the parameters, as products and sums of `at`'s letters.
    oracle: file under tests/ that compares it with something computed in another way.
    """

    name: str
    paper: str
    formula: tuple[str, str, str]
    oracle: str
    at: Mapping[str, int] = field(default_factory=dict)

    def of_formula(self) -> tuple[int, ...]:
        """The formula's numbers."""
        return tuple(int(eval(text, {"__builtins__": {}}, dict(self.at))) for text in self.formula)

    def shown_formula(self) -> str:
        """For the page: `K + 1, K, 1 (K = 10)`."""
        given = ", ".join(f"{letter} = {value}" for letter, value in self.at.items())
        return ", ".join(text.replace(" * ", " ") for text in self.formula) + (f" ({given})" if given else "")


@dataclass(frozen=True)
class LossSystem(System):
    """method: its key in METHODS, as `soatfast compare` trains the small CNN by it (mode="keep")."""

    method: str = ""

    def make(self) -> Loss:
        return METHODS[self.method].loss(TASK)


@dataclass(frozen=True)
class AttackSystem(System):
    """attack: also the one that the accuracy is measured under."""

    attack: Attack = field(default_factory=FGSM)


_TRAIN = ("K + 1", "K", "1")
LOSSES: tuple[LossSystem, ...] = (
    LossSystem("CrossEntropy", "none", ("1", "0", "1"), "losses/test_losses.py", method="standard"),
    LossSystem(
        "AdversarialTraining(PGD)", "Madry et al. 2018", _TRAIN, "losses/test_losses.py", {"K": 10}, method="pgd10"
    ),
    LossSystem(
        "AdversarialTraining(FrankWolfe, memory)",
        "none; after ATTA, Zheng et al. 2020",
        ("N + 1", "N", "1"),
        "attacks/test_replay.py",
        {"N": 1},
        method="replay",
    ),
    LossSystem(
        "AdversarialTraining(PGD, memory)",
        "ATTA, Zheng et al. 2020",
        ("N + 1", "N", "1"),
        "attacks/test_replay.py",
        {"N": 1},
        method="atta",
    ),
    LossSystem(
        "AdversarialTraining(SOAE, tr)",
        "after SOAT, arXiv 2207.01396",
        ("T * (1 + m) + 1", "T * (1 + m)", "1"),
        "attacks/test_soae.py",
        {"T": 2, "m": 4},
        method="soat",
    ),
    LossSystem(
        "AdversarialTraining(SOAE, newton)",
        "SOAT, arXiv 2207.01396",
        ("T * (1 + m) + 1", "T * (1 + m)", "1"),
        "attacks/test_soae.py",
        {"T": 2, "m": 4},
        method="soat-newton",
    ),
    LossSystem(
        "AdversarialTraining(HAAT)",
        "HAAT report",
        ("T * (1 + k) + 1", "T * (1 + k)", "1"),
        "attacks/test_haat.py",
        {"T": 2, "k": 4},
        method="haat",
    ),
    LossSystem(
        "SCORPIO",
        "arXiv 2009.04923; in_box is ours",
        ("N + 2", "N", "2"),
        "losses/test_losses.py",
        {"N": 3},
        method="scorpio",
    ),
    LossSystem(
        "SCORPIO, the paper's FE",
        "arXiv 2009.04923",
        ("N + 2", "N", "2"),
        "losses/test_losses.py",
        {"N": 3},
        method="scorpio-ball",
    ),
    LossSystem(
        "SCORPIO, the paper's CD",
        "arXiv 2009.04923",
        ("N + 2", "N", "2"),
        "losses/test_losses.py",
        {"N": 3},
        method="scorpio-cd",
    ),
    LossSystem("TRADES", "Zhang et al. 2019", ("K + 2", "K", "1"), "losses/test_trades.py", {"K": 10}, method="trades"),
    LossSystem("MART", "Wang et al. 2020", ("K + 2", "K", "1"), "losses/test_mart.py", {"K": 10}, method="mart"),
    LossSystem("SORA", "arXiv 2606.00738", ("2", "1", "1"), "losses/test_sora.py", method="sora"),
    LossSystem("SOAR", "arXiv 2004.01832", ("2 + n", "2 + n", "1"), "losses/test_soar.py", {"n": 1}, method="soar"),
    LossSystem("CURE", "Moosavi-Dezfooli et al. 2019", ("2", "2", "1"), "losses/test_cure.py", method="cure"),
    LossSystem(
        "InputGradientPenalty",
        "Ross and Doshi-Velez 2018; Lyu et al. 2015",
        ("1", "1", "1"),
        "losses/test_gradient_penalty.py",
        method="gradient-penalty",
    ),
    LossSystem(
        "InputGradientPenalty, difference",
        "Finlay and Oberman 2019",
        ("2", "1", "1"),
        "losses/test_gradient_penalty.py",
        method="gradient-difference",
    ),
    LossSystem("LLR", "Qin et al. 2019", ("M + 2", "M + 1", "1"), "losses/test_llr.py", {"M": 10}, method="llr"),
    LossSystem("STN", "arXiv 1809.03113", ("2", "0", "1"), "losses/test_stn.py", method="stn"),
)

_STEPS = ("K", "K", "0")
_NAMED = ("attacks/test_named.py", {"K": 10})
_SCORPIO_PAPER = "arXiv 2009.04923"
# SOAE with rtol=0 makes every product; SimBA asks every question. Else both stop early and make fewer passes.
ATTACKS: tuple[AttackSystem, ...] = (
    AttackSystem("FGSM", "Goodfellow et al. 2015", ("1", "1", "0"), "attacks/test_pgd.py", attack=FGSM(eps=EPS)),
    AttackSystem(
        "PGD",
        "Madry et al. 2018",
        ("R * K", "R * K", "0"),
        "attacks/test_pgd.py",
        {"R": 1, "K": 40},
        attack=PGD(eps=EPS, steps=40),
    ),
    AttackSystem(
        "PGD, best of restarts",
        "Madry et al. 2018",
        ("R * (K + 1)", "R * K", "0"),
        "attacks/test_pgd.py",
        {"R": 2, "K": 20},
        attack=PGD(eps=EPS, steps=20, restarts=2, best=True),
    ),
    AttackSystem(
        "NearPGD",
        "Zhang et al. 2019, Wang et al. 2020",
        _STEPS,
        "losses/test_trades.py",
        {"K": 10},
        attack=NearPGD(eps=EPS, steps=10),
    ),
    AttackSystem(
        "MIFGSM", "Dong et al. 2018", _STEPS, "attacks/test_mifgsm.py", {"K": 10}, attack=MIFGSM(eps=EPS, steps=10)
    ),
    AttackSystem("named.UL", _SCORPIO_PAPER, _STEPS, *_NAMED, attack=named.UL(eps=EPS)),
    AttackSystem("named.UM", _SCORPIO_PAPER, _STEPS, *_NAMED, attack=named.UM(eps=EPS)),
    AttackSystem("named.TL", _SCORPIO_PAPER, _STEPS, *_NAMED, attack=named.TL(eps=EPS, classes=CLASSES)),
    AttackSystem("named.TM", _SCORPIO_PAPER, _STEPS, *_NAMED, attack=named.TM(eps=EPS, classes=CLASSES)),
    AttackSystem(
        "TargetedPGD, least likely class",
        "Kurakin et al. 2017",
        ("K + 1", "K", "0"),
        *_NAMED,
        attack=TargetedPGD(eps=EPS, steps=10, rule="least-likely"),
    ),
    AttackSystem(
        "FrankWolfe, FE",
        _SCORPIO_PAPER,
        ("N + 1", "N + 1", "0"),
        "attacks/test_frank_wolfe.py",
        {"N": 3},
        attack=FrankWolfe(eps=EPS, steps=3),
    ),
    AttackSystem(
        "FrankWolfe, CD",
        _SCORPIO_PAPER,
        ("N + 1", "N + 1", "0"),
        "attacks/test_frank_wolfe.py",
        {"N": 3},
        attack=FrankWolfe(eps=EPS, steps=3, scheme="cd"),
    ),
    AttackSystem(
        "FrankWolfe, exact Hessian",
        _SCORPIO_PAPER,
        ("1", "N + 1", "0"),
        "attacks/test_frank_wolfe.py",
        {"N": 3},
        attack=FrankWolfe(eps=EPS, steps=3, scheme="exact"),
    ),
    AttackSystem(
        "FrankWolfe, ball and box",
        "none; after arXiv 2009.04923",
        ("N + 1", "N + 1", "0"),
        "attacks/test_frank_wolfe.py",
        {"N": 3},
        attack=FrankWolfe(eps=EPS, steps=3, in_box=True, init="lmo", h=1.0),
    ),
    AttackSystem(
        "SOAE, newton",
        "arXiv 2207.01396",
        ("T * (1 + m)", "T * (1 + m)", "0"),
        "attacks/test_soae.py",
        {"T": 4, "m": 8},
        attack=SOAE(eps=EPS, steps=4, max_dim=8, rtol=0),
    ),
    AttackSystem(
        "SOAE, trust region",
        "none; after arXiv 2207.01396",
        ("T * (1 + m)", "T * (1 + m)", "0"),
        "attacks/test_soae.py",
        {"T": 8, "m": 4},
        attack=SOAE(eps=EPS, steps=8, max_dim=4, variant="tr", rtol=0),
    ),
    AttackSystem(
        "SOAE, Gauss-Newton trust region",
        "none; after arXiv 2207.01396",
        ("T", "T * (C - 1)", "0"),
        "attacks/test_soae.py",
        {"T": 4, "C": CLASSES},
        attack=SOAE(eps=EPS, steps=4, variant="tr", scheme="gn"),
    ),
    AttackSystem(
        "HAAT",
        "HAAT report",
        ("T * (1 + k)", "T * (1 + k)", "0"),
        "attacks/test_haat.py",
        {"T": 7, "k": 5},
        attack=HAAT(eps=EPS, steps=7),
    ),
    AttackSystem(
        "ASOD",
        "arXiv 1809.03113",
        ("T * S", "T * S", "0"),
        "attacks/test_asod.py",
        {"T": 20, "S": 10},
        attack=ASOD(eps=EPS, sigma=0.7),
    ),
    AttackSystem(
        "SimBA",
        "Guo et al. 2019",
        ("2 * T + 1", "0", "0"),
        "attacks/test_simba.py",
        {"T": 200},
        attack=SimBA(eps=EPS, early_stop=False, compact=False),
    ),
)
