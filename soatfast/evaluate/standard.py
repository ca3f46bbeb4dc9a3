"""The standard suite: the rows of the attacks' catalogue that say so."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from soatfast.attacks import Attack, catalogue
from soatfast.attacks.task import Task
from soatfast.evaluate.batch import Runnable
from soatfast.gradients.engine import Name
from soatfast.gradients.outputs import Forward, Output


def standard_attacks(
    eps: float = 8 / 255,
    p: float = math.inf,
    steps: int = 40,
    classes: int | None = None,
    autoattack: bool = False,
    simba_steps: int | None = None,
    seed: int = 0,
    output: Output = None,
    forward: Forward | None = None,
    engine: Name = "eager",
) -> dict[str, Runnable]:
    """Name -> attack, for the ball of radius eps in the p-norm (1, 2 or math.inf); `steps` are those of PGD.

    classes: what the model tells apart; None: TL, TM and AutoAttack ask it, one forward each.
    simba_steps: at most the entries of a sample; None: 200, or the entries of a sample where they are fewer.
    seed: of AutoAttack's random numbers. output, forward: of all attacks but AutoAttack, which takes the evaluation's.
    engine: likewise; SOAE and HAAT need float32, and refuse "bf16" and "fp16".

    SOAE makes at most as many passes as PGD-40, HAAT 42, SimBA at most 2 simba_steps + 1 forwards. HAAT is for
    p = inf, the SCORPIO paper's UL, TL, UM, TM and MI-FGSM for p = 2 or inf; so is AutoAttack, which needs torchattacks
    and takes minutes.

    Raises ValueError for another p, and for AutoAttack with p = 1.

    >>> list(standard_attacks(eps=0.3))
    ['fgsm', 'pgd40', 'quadratic', 'soae', 'soae-tr', 'haat', 'ul', 'tl', 'um', 'tm', 'mifgsm', 'asod', 'simba']
    """
    if p not in (1, 2, math.inf):
        raise ValueError(f"p must be 1, 2 or math.inf, got {p!r}")
    task = Task(eps, 0, (), p, classes=classes)
    given: dict[str, dict[str, Any]] = {
        "pgd40": {"steps": steps},
        "simba": {"steps": simba_steps},
        "autoattack": {"seed": seed},
    }
    rows = [row for row in catalogue.ATTACKS if row.suite and p in row.norms]
    rows += [row for row in catalogue.ATTACKS if row.name == "autoattack" and autoattack]
    read: dict[str, Any] = {"output": output, "forward": forward, "engine": engine}
    made: dict[str, Runnable] = {}
    for row in rows:
        attack = row.make(task)
        more = read if isinstance(attack, Attack) else {}
        made[row.name] = dataclasses.replace(attack, **more, **given.get(row.name, {}))
    return {f"pgd{steps}" if name == "pgd40" else name: attack for name, attack in made.items()}


def cheapest_first(attacks: dict[str, Runnable]) -> dict[str, Runnable]:
    """In the order of their passes; what does not say its passes comes last."""

    def cost(attack: Runnable) -> float:
        if not isinstance(attack, Attack):
            return math.inf
        passes = attack.passes()
        return passes.forward_samples + passes.backward_input_samples

    return dict(sorted(attacks.items(), key=lambda item: cost(item[1])))
