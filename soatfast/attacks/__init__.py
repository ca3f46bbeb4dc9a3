"""Attacks: frozen dataclasses, ``attack(model, x, y) -> x_adv``."""

from .asod import ASOD
from .base import Attack
from .fgsm import FGSM
from .frank_wolfe import FrankWolfe
from .haat import HAAT
from .near import NearPGD
from .pgd import PGD
from .soae import SOAE

__all__ = ["ASOD", "FGSM", "HAAT", "PGD", "SOAE", "Attack", "FrankWolfe", "NearPGD"]
