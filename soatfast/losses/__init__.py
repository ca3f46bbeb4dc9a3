"""Training losses: frozen dataclasses, ``loss(model, x, y) -> scalar``; the caller runs ``.backward()``."""

from .adversarial import AdversarialTraining
from .base import CrossEntropy, Loss
from .mart import MART
from .scorpio import SCORPIO
from .sora import SORA, SORAState
from .trades import TRADES

__all__ = ["MART", "SCORPIO", "SORA", "TRADES", "AdversarialTraining", "CrossEntropy", "Loss", "SORAState"]
