"""The papers' claims as statements that a comparison can test."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from soatfast.commands.papers import words
from soatfast.commands.papers.measured import Measured
from soatfast.commands.papers.verdicts import MISSING, Cheaper, Part, Verdict, together


@dataclass(frozen=True)
class Claim:
    """A sentence of a paper, what it printed, and the parts that have to hold for it.

    cost: "training" or "attack": whose passes are the price. flags: keys of FLAGS.
    """

    name: str
    statement: str
    source: str
    printed: str
    parts: tuple[Part | Cheaper, ...]
    cost: str = "training"
    flags: tuple[int, ...] = ()

    def verdict(self, found: Measured) -> Verdict:
        return together([part.verdict(found) for part in self.parts])

    def here(self, found: Measured) -> str:
        """The measured figures, part by part."""
        return words.figures(self.parts, found)

    def passes(self, found: Measured) -> str:
        """Forward + backward passes a sample of every training or attack that it is about."""
        return words.passes(self.parts, found, self.cost)

    @property
    def said(self) -> str:
        """The statement with its source, the printed figures and the flags."""
        return f"{self.statement} ({self.source}: {self.printed})" + "".join(f" [{flag}]" for flag in self.flags)

    def sentence(self, found: Measured) -> str:
        """The claim, the figures and their price, in one paragraph; the verdict is its heading."""
        if self.verdict(found) == MISSING:
            return f"{self.said}. Not measured: {words.needs(self.parts, found)}."
        what = "a training step" if self.cost == "training" else "the attack"
        return (
            f"{self.said}. Here: {self.here(found)}. "
            f"Passes of {what}, forward + backward a sample: {self.passes(found)}."
        )

    def to_json(self, found: Measured) -> dict[str, Any]:
        return {
            "name": self.name,
            "statement": self.statement,
            "source": self.source,
            "printed": self.printed,
            "flags": list(self.flags),
            "verdict": self.verdict(found),
            "here": self.here(found),
            "passes": self.passes(found),
            "sentence": self.sentence(found),
        }


def _beats(left: str, others: Sequence[str], attacks: Sequence[str], low: float = 0) -> tuple[Part, ...]:
    """More accurate than each of the others under each attack, by more than `low` points."""
    return tuple(Part((left, key), (other, key), low) for key, other in itertools.product(attacks, others))


def _near(left: str, right: str, attacks: Sequence[str], points: float) -> tuple[Part, ...]:
    return tuple(Part((left, key), (right, key), -points, points) for key in attacks)


def _stronger(attack: str, other: str, methods: Sequence[str], slack: float = 0) -> tuple[Part, ...]:
    """On each model the first attack leaves less than the second, or less than `slack` points more."""
    return tuple(Part((method, attack), (method, other), high=slack) for method in methods)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "scorpio-over-regularisers",
        "SCORPIO FE(3) is more robust than input-gradient regularisation and CURE under UL, TL, UM and TM",
        "SCORPIO, tables 2 and 7",
        "Linf CIFAR-10, UL: 50.5 against 6.5 and 23.0",
        _beats("scorpio-ball", ("gradient-penalty", "cure"), ("ul", "tl", "um", "tm")),
    ),
    Claim(
        "scorpio-near-pgd10",
        "SCORPIO FE(3) comes within 3 points of PGD-10 training under UL and UM, with fewer passes",
        "SCORPIO, tables 2 and 7",
        "Linf CIFAR-10, UL: 50.5 against 51.5, at 4 against 10 attack passes; the 3 points are our reading",
        (*_beats("scorpio-ball", ("pgd10",), ("ul", "um"), -3), Cheaper("scorpio-ball", "pgd10")),
    ),
    Claim(
        "one-iteration-over-regularisers",
        "A single iteration of SCORPIO is more robust than input-gradient regularisation and CURE",
        "SCORPIO, abstract",
        "tables 1 and 2a, L2 CIFAR-10, UM: 66.35 against 32.2 and 53.7",
        _beats("scorpio-fe1", ("gradient-penalty", "cure"), ("um",)),
        flags=(9,),
    ),
    Claim(
        "one-iteration-over-pgd3",
        "SCORPIO FE(1) is more robust than PGD-3 training under UM of 10 to 100 steps",
        "SCORPIO, table 1",
        "L2 CIFAR-10, 100 steps: 65.97 against 62.81",
        _beats("scorpio-fe1", ("pgd3",), ("um", "um20", "um40", "um100")),
        flags=(9,),
    ),
    Claim(
        "no-masking",
        "From 10 to 100 steps of UM, SCORPIO of one iteration loses less than a point: no gradient masking",
        "SCORPIO, table 1",
        "66.35 to 65.97 (FE), 66.03 to 65.72 (CD)",
        tuple(Part((name, "um"), (name, "um100"), high=1) for name in ("scorpio-fe1", "scorpio-cd1")),
        cost="attack",
    ),
    Claim(
        "fe-as-cd",
        "Forward Euler and central differences train alike, within 2 points, and forward Euler is cheaper",
        "SCORPIO, table 2",
        "Linf CIFAR-10, UL: 50.5 and 49.2, at 4 and 7 attack passes; the 2 points are our reading",
        (*_near("scorpio-ball", "scorpio-cd", ("ul", "um"), 2), Cheaper("scorpio-ball", "scorpio-cd")),
    ),
    Claim(
        "quadratic-on-robust",
        "On PGD-10, SCORPIO and CURE models the quadratic attack is as strong as PGD-10 (UL), to a point",
        "SCORPIO, figure 3",
        "L2 CIFAR-10, curves without numbers; the point is our reading",
        _stronger("quadratic", "ul", ("pgd10", "scorpio-ball", "cure"), 1),
        cost="attack",
    ),
    Claim(
        "quadratic-on-standard",
        "On the standard model the quadratic attack is much weaker than PGD-10 (UL): by 10 points or more",
        "SCORPIO, figure 3",
        "L2 CIFAR-10, curves without numbers; the 10 points are our reading",
        (Part(("standard", "quadratic"), ("standard", "ul"), low=10),),
        cost="attack",
    ),
    Claim(
        "soae-over-pgd",
        "SOAE, with the paper's Newton direction, is a stronger attack than PGD-20 on every defence",
        "SOAE, table II",
        "CIFAR-10 ResNet18, on PGD training: 38.19 against 42.86 left",
        _stronger("soae", "pgd20", ("pgd7", "trades", "soar", "stn", "scorpio-ball", "soat-newton")),
        cost="attack",
        flags=(5, 6),
    ),
    Claim(
        "soat-under-soae",
        "SOAT is more robust under SOAE than PGD-7 training, TRADES, SOAR, STN and SCORPIO",
        "SOAE, tables I to III",
        "CIFAR-10 ResNet18: 49.27 against 35.45 to 40.26",
        _beats("soat-newton", ("pgd7", "trades", "soar", "stn", "scorpio-ball"), ("soae",)),
        flags=(1, 6),
    ),
    Claim(
        "soat-under-pgd",
        "SOAT is more robust under PGD-20 than PGD-7 training, TRADES, STN and SCORPIO",
        "SOAE, tables I and II",
        "CIFAR-10 ResNet18: 54.72 against 42.86 to 52.34; SOAR has 56.06",
        _beats("soat-newton", ("pgd7", "trades", "stn", "scorpio-ball"), ("pgd20",)),
        flags=(1, 7),
    ),
    Claim(
        "soat-under-autoattack",
        "SOAT is more robust under AutoAttack than PGD-7 training, TRADES, SOAR, STN and SCORPIO",
        "SOAE, table II",
        "CIFAR-10 ResNet18: 45.98 against 19.66 to 41.34",
        _beats("soat-newton", ("pgd7", "trades", "soar", "stn", "scorpio-ball"), ("autoattack",)),
        flags=(2, 6),
    ),
    Claim(
        "haat-as-pgd",
        "HAAT trains models that are very similar in robustness to PGD training at as many passes",
        "HAAT report",
        "figures without numbers; similar is read as within 3 points under PGD-20",
        _near("haat", "pgd10", ("pgd20",), 3),
    ),
)

UNTESTED: tuple[str, ...] = (
    "SOAE needs fewer than 4 iterations where PGD needs 7 to 20: iterations of unequal cost do not compare.",
    "SOAE's images have the highest PSNR and SSIM [4].",
    "SOAE needs no extra storage [3].",
    "The Krylov dimensions of SOAE's table IV, whose thresholds are not legible.",
    "SCORPIO's points below the diagonal, SimBA against PGD margins [8].",
    "HAAT converges more slowly than PGD training, and is much better than two other defences: no numbers printed.",
)
"""Claims that the comparison does not touch, and why."""
