"""Attacks: frozen dataclasses, ``attack(model, x, y) -> x_adv``."""

from . import named, targets
from .asod import ASOD
from .base import Attack
from .fgsm import FGSM
from .frank_wolfe import FrankWolfe
from .haat import HAAT
from .mifgsm import MIFGSM
from .named import TargetedPGD
from .near import NearPGD
from .pgd import PGD
from .simba import SimBA, SimBAResult
from .soae import SOAE

__all__ = [
    "ASOD",
    "FGSM",
    "HAAT",
    "MIFGSM",
    "PGD",
    "SOAE",
    "Attack",
    "FrankWolfe",
    "NearPGD",
    "SimBA",
    "SimBAResult",
    "TargetedPGD",
    "named",
    "targets",
]
