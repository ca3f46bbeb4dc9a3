"""Attacks: frozen dataclasses, ``attack(model, x, y) -> x_adv``."""

from .base import Attack
from .fgsm import FGSM
from .frank_wolfe import FrankWolfe
from .pgd import PGD

__all__ = ["FGSM", "PGD", "Attack", "FrankWolfe"]
