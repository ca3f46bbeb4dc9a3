"""Evaluation: accuracy under attacks, suites of them, curves, signs of masked gradients, image quality, tables."""

from soatfast.attacks.autoattack import AutoAttack
from soatfast.evaluate.accuracies import AccuracyResult, accuracy
from soatfast.evaluate.checks import Check, EvaluationWarning, RandomisedWarning, SoftmaxWarning, ZeroGradientWarning
from soatfast.evaluate.curves import Curve, accuracy_against_eps, steps_plateau
from soatfast.evaluate.gap import QuadraticGap, quadratic_gap
from soatfast.evaluate.intervals import Paired, interval, paired
from soatfast.evaluate.masking import (
    Margins,
    Scatter,
    Sign,
    compare_margins,
    final_margins,
    masking_signs,
    signs_table,
)
from soatfast.evaluate.plots import curves_picture, scatter_picture
from soatfast.evaluate.quality import Quality, image_quality
from soatfast.evaluate.results import AttackResult, SuiteResult, load_suite
from soatfast.evaluate.standard import standard_attacks
from soatfast.evaluate.suites import suite
from soatfast.evaluate.surface import local_linearity, loss_along, loss_surface, over_loader
from soatfast.runs.progress import progress_bar
from soatfast.runs.table import Column, Table, mean_and_spread

__all__ = [
    "AccuracyResult",
    "AttackResult",
    "AutoAttack",
    "Check",
    "Column",
    "Curve",
    "EvaluationWarning",
    "Margins",
    "Paired",
    "QuadraticGap",
    "Quality",
    "RandomisedWarning",
    "Scatter",
    "Sign",
    "SoftmaxWarning",
    "SuiteResult",
    "Table",
    "ZeroGradientWarning",
    "accuracy",
    "accuracy_against_eps",
    "compare_margins",
    "curves_picture",
    "final_margins",
    "image_quality",
    "interval",
    "load_suite",
    "local_linearity",
    "loss_along",
    "loss_surface",
    "masking_signs",
    "mean_and_spread",
    "over_loader",
    "paired",
    "progress_bar",
    "quadratic_gap",
    "scatter_picture",
    "signs_table",
    "standard_attacks",
    "steps_plateau",
    "suite",
]
