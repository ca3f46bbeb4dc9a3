"""Every attack that commands, the standard suite and docs/systems.md know by name: one row each.

A row holds what is said nowhere else: the name, the paper, the pass formula, the test that is its oracle. The classes
themselves can also be named on the command line, with options (`soatfast.commands.options`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from soatfast.attacks import (
    APGD,
    ASOD,
    FGSM,
    HAAT,
    MIFGSM,
    PGD,
    PIFGSM,
    SOAE,
    FrankWolfe,
    Jitter,
    NearPGD,
    ResizePad,
    SimBA,
    SmoothAdv,
    Square,
    TargetedAPGD,
    TargetedFAB,
    TargetedPGD,
    gaussian_kernel,
    named,
)
from soatfast.attacks.autoattack import AutoAttack
from soatfast.attacks.task import Task


@dataclass(frozen=True)
class Facts:
    """What docs/systems.md says of a row, and what its test holds.

    passes: forwards, backwards to the input and to the parameters, as sums and products of the letters in `at`.
    oracle: a file under tests/ that compares it with something computed in another way.
    """

    paper: str
    passes: tuple[str, str, str]
    oracle: str
    at: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One attack or loss.

    name: on the command line. label: in tables. make: the attack or loss for a task.
    facts: None for a row that differs from another one in its number of steps only, for one whose passes hang on who
        is fooled at x, and for foreign code.
    norms: the orders p that it is for.
    """

    name: str
    label: str
    make: Callable[[Task], Any]
    facts: Facts | None = None
    norms: tuple[float, ...] = (1, 2, math.inf)


@dataclass(frozen=True)
class AttackRow(Row):
    """One attack.

    suite: whether the standard suite runs it.
    full: fields with which it makes every pass of the formula, where it otherwise stops early.
    """

    suite: bool = False
    full: Mapping[str, Any] = field(default_factory=dict)


_SCORPIO = "arXiv 2009.04923"
_STEPS, _WOLFE, _SECOND = ("K", "K", "0"), ("N + 1", "N + 1", "0"), ("T * (1 + m)", "T * (1 + m)", "0")
_ROUND: tuple[float, ...] = (2, math.inf)
_LINF: tuple[float, ...] = (math.inf,)
_PGD, _NAMED, _FW, _SOAE, _MOMENTUM = (
    f"attacks/test_{name}.py" for name in ("pgd", "named", "frank_wolfe", "soae", "momentum")
)
_VARIANCE = ("K + N * (K - 1)", "K + N * (K - 1)", "0")

# SOAE makes 40 passes at most and HAAT 42, about as many as PGD-40; ASOD makes 200.
ATTACKS: tuple[AttackRow, ...] = (
    AttackRow(
        "fgsm",
        "FGSM",
        lambda t: FGSM(eps=t.eps, p=t.p),
        Facts("Goodfellow et al. 2015", ("1", "1", "0"), _PGD),
        suite=True,
    ),
    AttackRow(
        "pgd40",
        "PGD-40",
        lambda t: PGD(eps=t.eps, p=t.p, steps=40),
        Facts("Madry et al. 2018", ("R * K", "R * K", "0"), _PGD, {"R": 1, "K": 40}),
        suite=True,
    ),
    AttackRow(
        "quadratic",
        "quadratic",
        lambda t: FrankWolfe(eps=t.eps, p=t.p, steps=3),
        Facts(_SCORPIO, _WOLFE, _FW, {"N": 3}),
        suite=True,
    ),
    AttackRow(
        "soae",
        "SOAE Newton",
        lambda t: SOAE(eps=t.eps, p=t.p, steps=4, max_dim=9),
        Facts("arXiv 2207.01396", _SECOND, _SOAE, {"T": 4, "m": 9}),
        suite=True,
        full={"rtol": 0},
    ),
    AttackRow(
        "soae-tr",
        "SOAE tr",
        lambda t: SOAE(eps=t.eps, p=t.p, variant="tr", steps=8, max_dim=4),
        Facts("none; after arXiv 2207.01396", _SECOND, _SOAE, {"T": 8, "m": 4}),
        suite=True,
        full={"rtol": 0},
    ),
    AttackRow(
        "haat",
        "HAAT",
        lambda t: HAAT(eps=t.eps, p=t.p, steps=7),
        Facts("HAAT report", ("T * (1 + k)", "T * (1 + k)", "0"), "attacks/test_haat.py", {"T": 7, "k": 5}),
        suite=True,
        norms=(math.inf,),
    ),
    AttackRow(
        "ul",
        "UL",
        lambda t: named.UL(eps=t.eps, p=t.p),
        Facts(_SCORPIO, _STEPS, _NAMED, {"K": 10}),
        suite=True,
        norms=_ROUND,
    ),
    AttackRow(
        "tl",
        "TL",
        lambda t: named.TL(eps=t.eps, p=t.p, classes=t.classes),
        Facts(_SCORPIO, _STEPS, _NAMED, {"K": 10}),
        suite=True,
        norms=_ROUND,
    ),
    AttackRow(
        "um",
        "UM",
        lambda t: named.UM(eps=t.eps, p=t.p),
        Facts(_SCORPIO, _STEPS, _NAMED, {"K": 10}),
        suite=True,
        norms=_ROUND,
    ),
    AttackRow(
        "tm",
        "TM",
        lambda t: named.TM(eps=t.eps, p=t.p, classes=t.classes),
        Facts(_SCORPIO, _STEPS, _NAMED, {"K": 10}),
        suite=True,
        norms=_ROUND,
    ),
    AttackRow(
        "mifgsm",
        "MI-FGSM",
        lambda t: MIFGSM(eps=t.eps, p=t.p),
        Facts("Dong et al. 2018", _STEPS, "attacks/test_mifgsm.py", {"K": 10}),
        suite=True,
        norms=_ROUND,
    ),
    AttackRow(
        "asod",
        "ASOD",
        lambda t: ASOD(eps=t.eps, p=t.p),
        Facts("arXiv 1809.03113", ("T * S", "T * S", "0"), "attacks/test_asod.py", {"T": 20, "S": 10}),
        suite=True,
    ),
    AttackRow(
        "simba",
        "SimBA",
        lambda t: SimBA(eps=t.eps, p=t.p),
        Facts("Guo et al. 2019", ("2 * T + 1", "0", "0"), "attacks/test_simba.py", {"T": 200}),
        suite=True,
        full={"early_stop": False, "compact": False},
    ),
    AttackRow("pgd20", "PGD-20", lambda t: PGD(eps=t.eps, p=t.p, steps=20)),
    AttackRow(
        "pgd20-best",
        "PGD-20, best of 2",
        lambda t: PGD(eps=t.eps, p=t.p, steps=20, restarts=2, best=True),
        Facts("Madry et al. 2018", ("R * (K + 1)", "R * K", "0"), _PGD, {"R": 2, "K": 20}),
    ),
    AttackRow(
        "near-pgd",
        "PGD-10 near x",
        lambda t: NearPGD(eps=t.eps, p=t.p, steps=10),
        Facts("Zhang et al. 2019, Wang et al. 2020", _STEPS, "losses/test_trades.py", {"K": 10}),
        norms=_ROUND,
    ),
    AttackRow("um20", "UM-20", lambda t: named.UM(eps=t.eps, p=t.p, steps=20), norms=_ROUND),
    AttackRow("um40", "UM-40", lambda t: named.UM(eps=t.eps, p=t.p, steps=40), norms=_ROUND),
    AttackRow("um100", "UM-100", lambda t: named.UM(eps=t.eps, p=t.p, steps=100), norms=_ROUND),
    AttackRow(
        "least-likely",
        "least likely class",
        lambda t: TargetedPGD(eps=t.eps, p=t.p, steps=10, rule="least-likely"),
        Facts("Kurakin et al. 2017", ("K + 1", "K", "0"), _NAMED, {"K": 10}),
    ),
    AttackRow(
        "quadratic-cd",
        "quadratic CD",
        lambda t: FrankWolfe(eps=t.eps, p=t.p, steps=3, scheme="cd"),
        Facts(_SCORPIO, _WOLFE, _FW, {"N": 3}),
    ),
    AttackRow(
        "quadratic-exact",
        "quadratic exact",
        lambda t: FrankWolfe(eps=t.eps, p=t.p, steps=3, scheme="exact"),
        Facts(_SCORPIO, ("1", "N + 1", "0"), _FW, {"N": 3}),
    ),
    AttackRow(
        "quadratic-box",
        "quadratic, ball and box",
        lambda t: FrankWolfe(eps=t.eps, p=t.p, steps=3, in_box=True, init="lmo", h=1.0),
        Facts("none; after arXiv 2009.04923", _WOLFE, _FW, {"N": 3}),
    ),
    AttackRow(
        "soae-gn",
        "SOAE Gauss-Newton",
        lambda t: SOAE(eps=t.eps, p=t.p, steps=4, variant="tr", scheme="gn"),
        Facts("none; after arXiv 2207.01396", ("T", "T * (C - 1)", "0"), _SOAE, {"T": 4, "C": 10}),
    ),
    AttackRow(
        "nifgsm",
        "NI-FGSM",
        lambda t: MIFGSM(eps=t.eps, p=t.p, nesterov=True),
        Facts("Lin et al. 2020", _STEPS, _MOMENTUM, {"K": 10}),
        norms=_LINF,
    ),
    AttackRow(
        "sinifgsm",
        "SI-NI-FGSM",
        lambda t: MIFGSM(eps=t.eps, p=t.p, nesterov=True, scales=5),
        Facts("Lin et al. 2020", ("S * K", "S * K", "0"), _MOMENTUM, {"S": 5, "K": 10}),
        norms=_LINF,
    ),
    AttackRow(
        "vmifgsm",
        "VMI-FGSM",
        lambda t: MIFGSM(eps=t.eps, p=t.p, neighbours=5),
        Facts("Wang and He 2021", _VARIANCE, _MOMENTUM, {"K": 10, "N": 5}),
        norms=_LINF,
    ),
    AttackRow(
        "vnifgsm",
        "VNI-FGSM",
        lambda t: MIFGSM(eps=t.eps, p=t.p, nesterov=True, neighbours=5),
        Facts("Wang and He 2021", _VARIANCE, _MOMENTUM, {"K": 10, "N": 5}),
        norms=_LINF,
    ),
    AttackRow(
        "difgsm",
        "DI-FGSM",
        lambda t: MIFGSM(eps=t.eps, p=t.p, decay=0.0, forward=ResizePad()),
        Facts("Xie et al. 2019", _STEPS, _MOMENTUM, {"K": 10}),
        norms=_ROUND,
    ),
    AttackRow(
        "tifgsm",
        "TI-FGSM",
        lambda t: MIFGSM(eps=t.eps, p=t.p, decay=0.0, kernel=gaussian_kernel()),
        Facts("Dong et al. 2019", _STEPS, _MOMENTUM, {"K": 10}),
        norms=_ROUND,
    ),
    AttackRow(
        "pifgsm",
        "PI-FGSM",
        lambda t: PIFGSM(eps=t.eps, p=t.p),
        Facts("Gao et al. 2020", _STEPS, "attacks/test_pifgsm.py", {"K": 10}),
        norms=_LINF,
    ),
    AttackRow(
        "pifgsmpp",
        "PI-FGSM++",
        lambda t: PIFGSM(eps=t.eps, p=t.p, project_factor=0.8, carried=False, kernel=gaussian_kernel(3)),
        Facts("Gao et al. 2020b", _STEPS, "attacks/test_pifgsm.py", {"K": 10}),
        norms=_LINF,
    ),
    AttackRow(
        "jitter",
        "Jitter",
        lambda t: Jitter(eps=t.eps, p=t.p),
        Facts("Schwinn et al. 2021", _STEPS, "attacks/test_jitter.py", {"K": 10}),
        norms=_LINF,
    ),
    AttackRow(
        "smoothadv",
        "SmoothAdv, 8 draws",
        lambda t: SmoothAdv(eps=t.eps, p=t.p),
        Facts("Salman et al. 2019", _STEPS, "attacks/test_smoothadv.py", {"K": 10}),
    ),
    AttackRow("apgd-ce", "APGD-CE", lambda t: APGD(eps=t.eps, p=t.p), norms=_ROUND),
    AttackRow("apgd-dlr", "APGD-DLR", lambda t: APGD(eps=t.eps, p=t.p, objective="dlr"), norms=_ROUND),
    AttackRow(
        "apgd-t",
        "APGD-T",
        lambda t: TargetedAPGD(eps=t.eps, p=t.p, targets=min(9, (t.classes or 10) - 1)),
        norms=_ROUND,
    ),
    AttackRow("fab-t", "FAB-T", lambda t: TargetedFAB(eps=t.eps, p=t.p, targets=min(9, (t.classes or 10) - 1))),
    AttackRow("square", "Square, 500", lambda t: Square(eps=t.eps, p=t.p, steps=500), norms=_ROUND),
    AttackRow(
        "autoattack", "AutoAttack", lambda t: AutoAttack(eps=t.eps, p=t.p, classes=t.classes or 10), norms=_ROUND
    ),
)
