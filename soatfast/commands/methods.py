"""The catalogues' rows by name, as `soatfast compare` has them: one row a method, one column an attack."""

from __future__ import annotations

import dataclasses
from typing import cast

from torch import nn

from soatfast.attacks import catalogue
from soatfast.attacks.catalogue import AttackRow, Row
from soatfast.gradients.engine import Name
from soatfast.losses import SORA, AdversarialTraining, Loss
from soatfast.losses.catalogue import LOSSES

METHODS: dict[str, Row] = {row.name: row for row in LOSSES}
ATTACKS: dict[str, AttackRow] = {row.name: row for row in catalogue.ATTACKS}
COLUMNS: dict[str, Row] = {"clean": Row("clean", "clean", lambda t: None), **ATTACKS}
QUICK = ("clean", "fgsm", "pgd40", "quadratic")
DEMO = ("standard", "pgd10", "scorpio", "pgd4", "replay")
BASELINE = "pgd10"
"""The method whose training time is 1 in the column of speed-ups."""


def suited(loss: Loss, model: nn.Module) -> Loss:
    """The loss as it is for a model that train mode does not change; else with its attack in eval mode."""
    changing = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
    if not any(isinstance(module, changing) for module in model.modules()):
        return loss
    if isinstance(loss, AdversarialTraining):
        return dataclasses.replace(loss, attack=dataclasses.replace(loss.attack, mode="eval"))
    known = hasattr(loss, "mode") and not isinstance(loss, SORA)  # SORA's two gradients must be of one function
    return dataclasses.replace(loss, mode="eval") if known else loss  # type: ignore[call-arg]


def with_engine(loss: Loss, engine: str) -> Loss:
    """The loss with its attack's passes run by this engine (:mod:`soatfast.gradients.engine`); eager changes nothing.

    Raises ValueError: the loss has no attack, or one that needs full precision.
    """
    if engine == "eager":
        return loss
    if isinstance(loss, AdversarialTraining):
        return dataclasses.replace(loss, attack=dataclasses.replace(loss.attack, engine=cast(Name, engine)))
    if not hasattr(loss, "engine"):
        raise ValueError(f"{type(loss).__name__} has no attack whose passes could be run by engine {engine!r}")
    return dataclasses.replace(loss, engine=engine)  # type: ignore[call-arg]
