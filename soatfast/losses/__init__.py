"""Training losses: frozen dataclasses, ``loss(model, x, y) -> scalar``; the caller runs ``.backward()``."""

from .adversarial import AdversarialTraining
from .base import CrossEntropy, Loss
from .cure import CURE
from .gradient_penalty import InputGradientPenalty
from .llr import LLR
from .mart import MART
from .scorpio import SCORPIO
from .soar import SOAR
from .sora import SORA, SORAState
from .stn import STN
from .trades import TRADES

__all__ = [
    "CURE",
    "LLR",
    "MART",
    "SCORPIO",
    "SOAR",
    "SORA",
    "STN",
    "TRADES",
    "AdversarialTraining",
    "CrossEntropy",
    "InputGradientPenalty",
    "Loss",
    "SORAState",
]
