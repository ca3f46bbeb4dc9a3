"""Explanations of a model's predictions: saliency, contrastive explanations, and galleries of them."""

from .cem import PertinentNegative, PertinentPositive
from .contrastive import Contrast, ContrastivePair, roles
from .explanation import Explanation
from .saliency import IntegratedGradients, Saliency, SmoothGrad, per_pixel, standardised

__all__ = [
    "Contrast",
    "ContrastivePair",
    "Explanation",
    "IntegratedGradients",
    "PertinentNegative",
    "PertinentPositive",
    "Saliency",
    "SmoothGrad",
    "per_pixel",
    "roles",
    "standardised",
]
