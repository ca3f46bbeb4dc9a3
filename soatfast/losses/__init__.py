"""Training losses: frozen dataclasses, ``loss(model, x, y) -> scalar``; the caller runs ``.backward()``."""

from .adversarial import AdversarialTraining
from .base import CrossEntropy, Loss
from .scorpio import SCORPIO

__all__ = ["SCORPIO", "AdversarialTraining", "CrossEntropy", "Loss"]
