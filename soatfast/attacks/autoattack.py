"""AutoAttack (Croce and Hein 2020), as the package torchattacks has it, in the form of an attack of this package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor, nn

from soatfast.gradients.checks import check_batch
from soatfast.gradients.oracle import InputGradient
from soatfast.ops.arguments import check_fields, check_radius, norm_name


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """Standard AutoAttack: APGD-CE, targeted APGD-DLR, targeted FAB, and Square with 5 000 queries on the survivors.

    For evaluation: ``accuracy(model, data, AutoAttack(eps=0.3))``. Needs ``pip install --no-deps torchattacks``.

    Args:
        eps: radius in input units, images in [0, 1].
        p: math.inf or 2.
        classes: of the model, at least 4 (the targeted DLR loss compares four logits).
        seed: of the attacks' random starts.

    Passes: several thousand a sample that survives. The model is attacked in eval mode.
    """

    eps: float = 8 / 255
    p: float = math.inf
    classes: int = 10
    seed: int = 0
    targeted = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_radius(self.eps)
        if self.p not in (2, math.inf):
            raise ValueError(f"AutoAttack knows p = 2 and math.inf, got {self.p!r}")
        if self.classes < 4:
            raise ValueError(f"AutoAttack needs at least 4 classes, got {self.classes}")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial examples for x (B, C, H, W) in [0, 1]; the model's modes are as before afterwards.

        Raises:
            ImportError: torchattacks is not there.
            TypeError: the model is no module; x or y as for any attack.
        """
        if not isinstance(model, nn.Module):
            raise TypeError(f"AutoAttack needs a module, got {type(model).__name__}")
        torchattacks = require_torchattacks()
        check_batch(x, y, (0.0, 1.0))
        if len(x) == 0:
            return x.detach().clone()
        norm = norm_name(self.p)
        # torchattacks would compute the parameters' gradients too: in the oracle's block they need none.
        with InputGradient(model) as oracle, torch.enable_grad():
            attack = torchattacks.AutoAttack(oracle.model, norm, self.eps, n_classes=self.classes, seed=self.seed)
            return attack(x.clamp(0, 1), y).detach()


def require_torchattacks() -> ModuleType:
    """The package, imported; ImportError that says how to get it."""
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError(f"AutoAttack needs torchattacks: pip install --no-deps torchattacks ({error})") from error
    return torchattacks
