"""The attacks of the standard suite: the one table to which a new one is added."""

from __future__ import annotations

import math

from soatfast.attacks import ASOD, FGSM, HAAT, MIFGSM, PGD, SOAE, Attack, FrankWolfe, SimBA
from soatfast.attacks.autoattack import AutoAttack
from soatfast.attacks.named import TL, TM, UL, UM
from soatfast.evaluate.batch import Runnable


def standard_attacks(
    eps: float = 8 / 255,
    p: float = math.inf,
    steps: int = 40,
    classes: int | None = None,
    autoattack: bool = False,
    simba_steps: int = 200,
    seed: int = 0,
) -> dict[str, Runnable]:
    """Name -> attack, for the ball of radius eps in the p-norm (1, 2 or math.inf); `steps` are those of PGD.

    classes: what the model tells apart; None: TL and TM ask it, one forward each, and AutoAttack takes 10.
    simba_steps: at most the entries of a sample. seed: of AutoAttack, whose random numbers are its own.

    SOAE makes at most as many passes as PGD-40, HAAT 42, SimBA at most 2 simba_steps + 1 forwards. HAAT is for
    p = inf, the SCORPIO paper's UL, TL, UM, TM and MI-FGSM for p = 2 or inf; so is AutoAttack, which needs torchattacks
    and takes minutes. One that asks about whole batches also joins WHOLE_BATCH in watch.py.

    >>> list(standard_attacks(eps=0.3))
    ['fgsm', 'pgd40', 'quadratic', 'soae', 'soae-tr', 'haat', 'ul', 'tl', 'um', 'tm', 'mifgsm', 'asod', 'simba']
    """
    attacks: dict[str, Runnable] = {
        "fgsm": FGSM(eps=eps, p=p),
        f"pgd{steps}": PGD(eps=eps, p=p, steps=steps),
        "quadratic": FrankWolfe(eps=eps, p=p, steps=3),
        "soae": SOAE(eps=eps, p=p, max_dim=9),
        "soae-tr": SOAE(eps=eps, p=p, variant="tr", steps=8, max_dim=4),
    }
    if p == math.inf:
        attacks["haat"] = HAAT(eps=eps, p=p, steps=7)
    if p != 1:
        attacks |= {
            "ul": UL(eps=eps, p=p),
            "tl": TL(eps=eps, p=p, classes=classes),
            "um": UM(eps=eps, p=p),
            "tm": TM(eps=eps, p=p, classes=classes),
            "mifgsm": MIFGSM(eps=eps, p=p),
        }
    attacks |= {"asod": ASOD(eps=eps, p=p), "simba": SimBA(eps=eps, p=p, step_size=eps, steps=simba_steps)}
    if autoattack:
        attacks["autoattack"] = AutoAttack(eps=eps, p=p, classes=10 if classes is None else classes, seed=seed)
    return attacks


def cheapest_first(attacks: dict[str, Runnable]) -> dict[str, Runnable]:
    """In the order of their passes; what does not say its passes comes last."""

    def cost(attack: Runnable) -> float:
        if not isinstance(attack, Attack):
            return math.inf
        passes = attack.passes()
        return passes.forward_samples + passes.backward_input_samples

    return dict(sorted(attacks.items(), key=lambda item: cost(item[1])))
