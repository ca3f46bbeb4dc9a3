"""Every attack that commands and tables know by name: one row each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState

from soatfast.attacks import ASOD, FGSM, HAAT, MIFGSM, PGD, SOAE, FrankWolfe, SimBA, named
from soatfast.attacks.autoattack import AutoAttack
from soatfast.memory.crops import CropFlip
from soatfast.memory.store import PerturbationMemory


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


def noise_sigma(t: Task) -> float:
    """STN's noise: the paper's for grey digits and for colour images."""
    return 0.7 if t.shape[0] == 1 else 100 / 255


ATTACKS: dict[str, tuple[str, Callable[[Task], Any]]] = {
    "clean": ("clean %", lambda t: None),
    "fgsm": ("FGSM %", lambda t: FGSM(eps=t.eps, p=t.p)),
    "pgd40": ("PGD-40 %", lambda t: PGD(eps=t.eps, p=t.p, steps=40)),
    "quadratic": ("quadratic %", lambda t: FrankWolfe(eps=t.eps, p=t.p, steps=3)),
    "soae": ("SOAE Newton %", lambda t: SOAE(eps=t.eps, p=t.p, max_dim=9)),
    "soae-tr": ("SOAE tr %", lambda t: SOAE(eps=t.eps, p=t.p, variant="tr", steps=8, max_dim=4)),
    "haat": ("HAAT %", lambda t: HAAT(eps=t.eps, p=t.p, steps=7)),
    "asod": ("ASOD %", lambda t: ASOD(eps=t.eps, p=t.p, sigma=noise_sigma(t))),
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


def check_ball(eps: float, p: float) -> None:
    """Raise ValueError unless all methods and attacks of the tables know this ball."""
    if p not in (2, math.inf):
        raise ValueError(f"p must be 2 or inf, got {p}")
    if not 0 <= eps < math.inf or (p == math.inf and eps > 1):
        raise ValueError(f"eps must be finite and at least 0, and for p = inf at most 1, got {eps}")
