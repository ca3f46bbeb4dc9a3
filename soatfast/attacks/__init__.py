"""Attacks: frozen dataclasses, ``attack(model, x, y) -> x_adv``."""

from soatfast.attacks import named, targets
from soatfast.attacks.apgd import APGD, TargetedAPGD
from soatfast.attacks.asod import ASOD
from soatfast.attacks.base import Attack
from soatfast.attacks.fab import FAB, TargetedFAB
from soatfast.attacks.fgsm import FGSM
from soatfast.attacks.frank_wolfe import FrankWolfe
from soatfast.attacks.haat import HAAT
from soatfast.attacks.jitter import Jitter
from soatfast.attacks.mifgsm import MIFGSM
from soatfast.attacks.named import TargetedPGD
from soatfast.attacks.near import NearPGD
from soatfast.attacks.normalized import Normalized
from soatfast.attacks.pgd import PGD
from soatfast.attacks.pifgsm import PIFGSM
from soatfast.attacks.simba import SimBA, SimBAResult
from soatfast.attacks.smoothadv import SmoothAdv, Smoothed
from soatfast.attacks.smoothing import ResizePad, gaussian_kernel
from soatfast.attacks.soae import SOAE
from soatfast.attacks.square import Square

__all__ = [
    "APGD",
    "ASOD",
    "FAB",
    "FGSM",
    "HAAT",
    "MIFGSM",
    "PGD",
    "PIFGSM",
    "SOAE",
    "Attack",
    "FrankWolfe",
    "Jitter",
    "NearPGD",
    "Normalized",
    "ResizePad",
    "SimBA",
    "SimBAResult",
    "SmoothAdv",
    "Smoothed",
    "Square",
    "TargetedAPGD",
    "TargetedFAB",
    "TargetedPGD",
    "gaussian_kernel",
    "named",
    "targets",
]
