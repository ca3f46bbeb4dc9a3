"""The evaluation attacks UL, TL, UM and TM of SCORPIO (Tsiligkaridis and Roberts 2020): untargeted and targeted PGD."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from soatfast.attacks import targets
from soatfast.attacks.pgd import PGD
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import check_radius, check_steps


@dataclass(frozen=True, kw_only=True, eq=False)
class TargetedPGD(PGD):
    r"""PGD towards a class that it picks itself: it is called with the true labels y, as an untargeted attack is.

        r = the rule's class, r != y, one for each sample and all its steps;   then PGD lowers l(x, r)

    So :func:`soatfast.evaluate.accuracies` can take it: it succeeds where the prediction is not y any more. To reach
    labels of your own take ``PGD(targeted=True)``.

    Args:
        rule: "random", "least-likely" or "second-likely", see :func:`soatfast.attacks.targets.choose`.
        classes: K, where it is known; "random" then needs no pass of its own.

    Passes: PGD's, and 1 forward for the choice but for "random" with ``classes``.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> attack = TargetedPGD(eps=0.1, steps=5, classes=3)
    >>> attack(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 2])).shape, attack.passes().forward
    (torch.Size([2, 1, 2, 2]), 5)
    """

    rule: targets.Rule = "random"
    classes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targeted:
            raise ValueError(
                "TargetedPGD is given the true labels and picks its targets; to reach labels of yours take "
                "PGD(targeted=True), got targeted=True"
            )
        targets.check_rule(self.rule)
        if self.classes is not None:
            targets.check_classes(self.classes)

    def check_replay(self) -> None:
        """A remembered perturbation was made for another target."""
        raise TypeError("TargetedPGD cannot go on from a memory; FrankWolfe and PGD can")

    def _perturb(self, oracle: InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        if self._asks():
            oracle.loss(x, y)
            assert oracle.logits is not None
            r = targets.from_logits(oracle.logits, y, self.rule, generator=self.generator)
        else:
            assert self.classes is not None
            r = targets.random_other(y, self.classes, generator=self.generator)
        sign = oracle.sign
        try:
            oracle.sign = -sign
            return super()._perturb(oracle, x, r, None)
        finally:
            oracle.sign = sign

    def _asks(self) -> bool:
        return self.rule != "random" or self.classes is None

    def passes(self, batch: int = 1) -> Passes:
        return super().passes(batch) + passes_of(batch, forward=int(self._asks()))


def _settings(eps: float | Tensor | None, p: float, steps: int) -> dict[str, Any]:
    """No random start. Linf: 8/255 in steps of 1.5 eps / steps (the authors' notebook); L2: 0.5 in steps of eps / 5."""
    if eps is None:
        eps = 0.5 if p == 2 else 8 / 255
    check_radius(eps)
    check_steps(steps)
    step_size = eps / 5 if p == 2 else 1.5 * eps / steps
    return {"eps": eps, "p": p, "steps": steps, "step_size": step_size, "random_start": False}


def UL(*, eps: float | Tensor | None = None, p: float = math.inf, steps: int = 10, **fields: Any) -> PGD:
    """Untargeted, loss: raises l(x, y).

    All four are PGD(10) as the paper's tables 2 and 7 have it (table 1: UM with 10, 20, 40 and 100 steps), without a
    random start: Linf 8/255 in steps of 1.5 eps / steps, L2 0.5 in steps of 0.1 = eps / 5. Other fields as PGD's.

    >>> attack = UL(p=2)
    >>> attack.eps, attack.step_size, attack.passes().forward
    (0.5, 0.1, 10)
    """
    return PGD(**{**_settings(eps, p, steps), "objective": "ce", **fields})


def UM(*, eps: float | Tensor | None = None, p: float = math.inf, steps: int = 10, **fields: Any) -> PGD:
    """Untargeted, margin: lowers M(x, y) = z_y - max_{j != y} z_j."""
    return PGD(**{**_settings(eps, p, steps), "objective": "margin", **fields})


def TL(*, eps: float | Tensor | None = None, p: float = math.inf, steps: int = 10, **fields: Any) -> TargetedPGD:
    """Targeted, loss: lowers l(x, r) for a random r != y; the paper prints max, which would drive away from r.

    Called with the true labels. Pass ``classes`` to save the forward that finds their number.
    """
    return TargetedPGD(**{**_settings(eps, p, steps), "objective": "ce", **fields})


def TM(*, eps: float | Tensor | None = None, p: float = math.inf, steps: int = 10, **fields: Any) -> TargetedPGD:
    """Targeted, margin: raises M(x, r) = z_r - max_{j != r} z_j for a random r != y. Called with the true labels."""
    return TargetedPGD(**{**_settings(eps, p, steps), "objective": "margin", **fields})


NAMED: dict[str, Callable[..., PGD]] = {"UL": UL, "TL": TL, "UM": UM, "TM": TM}
