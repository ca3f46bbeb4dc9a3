"""Explanations of a model's predictions: saliency, contrastive explanations, and galleries of them."""

from soatfast.explain.cem import PertinentNegative, PertinentPositive
from soatfast.explain.contrastive import Contrast, ContrastivePair, roles
from soatfast.explain.explanation import Explanation
from soatfast.explain.saliency import IntegratedGradients, Saliency, SmoothGrad, per_pixel, standardised

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
