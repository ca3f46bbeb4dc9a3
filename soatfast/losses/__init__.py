"""Training losses: frozen dataclasses, ``loss(model, x, y) -> scalar``; the caller runs ``.backward()``."""

from .adversarial import AdversarialTraining
from .base import CrossEntropy, Loss
from .cure import CURE
from .gradient_penalty import InputGradientPenalty
from .llr import LLR
from .scorpio import SCORPIO
from .soar import SOAR
from .stn import STN

__all__ = [
    "CURE",
    "LLR",
    "SCORPIO",
    "SOAR",
    "STN",
    "AdversarialTraining",
    "CrossEntropy",
    "InputGradientPenalty",
    "Loss",
]
