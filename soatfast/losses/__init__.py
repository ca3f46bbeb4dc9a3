"""Training losses: frozen dataclasses, ``loss(model, x, y) -> scalar``; the caller runs ``.backward()``."""

from soatfast.losses.adversarial import AdversarialTraining
from soatfast.losses.base import CrossEntropy, Loss
from soatfast.losses.cure import CURE
from soatfast.losses.elle import ELLE
from soatfast.losses.fgsm_pgi import FGSMPGI
from soatfast.losses.free import Free, FreeState
from soatfast.losses.grad_align import GradAlign
from soatfast.losses.gradient_penalty import InputGradientPenalty
from soatfast.losses.llr import LLR
from soatfast.losses.mart import MART
from soatfast.losses.n_fgsm import NFGSM
from soatfast.losses.scorpio import SCORPIO
from soatfast.losses.soar import SOAR
from soatfast.losses.sora import SORA, SORAState
from soatfast.losses.stn import STN
from soatfast.losses.trades import TRADES

__all__ = [
    "CURE",
    "ELLE",
    "FGSMPGI",
    "LLR",
    "MART",
    "NFGSM",
    "SCORPIO",
    "SOAR",
    "SORA",
    "STN",
    "TRADES",
    "AdversarialTraining",
    "CrossEntropy",
    "Free",
    "FreeState",
    "GradAlign",
    "InputGradientPenalty",
    "Loss",
    "SORAState",
]
