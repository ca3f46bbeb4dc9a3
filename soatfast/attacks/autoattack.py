"""AutoAttack (Croce and Hein 2020), as the package torchattacks has it, in the form of an attack of this package."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.gradients.checks import check_batch, check_labels
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.outputs import predict
from soatfast.ops.arguments import check_fields, check_radius, check_steps, norm_name


@dataclass(frozen=True, kw_only=True)
class AutoAttack:
    """Standard AutoAttack: APGD-CE, targeted APGD-DLR, targeted FAB, and Square with 5 000 queries on the survivors.

    Its APGD and FAB make 10 steps, torchattacks' default; the authors' make 100, and so does
    :class:`~soatfast.attacks.ensemble.Ensemble`, which needs no other package.

    For evaluation: ``accuracy(model, data, AutoAttack(eps=0.3))``. Needs ``pip install --no-deps torchattacks``.

    Args:
        eps: radius in input units, images in [0, 1].
        p: math.inf or 2.
        classes: of the model; None: it is asked, one forward of one sample. The targeted DLR loss compares four
            logits: with 3 classes the DLR loss without targets stands in its place, with 2 nothing does.
        seed: of the attacks' random starts.

    Passes: several thousand a sample that survives. The model is attacked in eval mode.
    """

    eps: float = 8 / 255
    p: float = math.inf
    classes: int | None = None
    seed: int = 0
    targeted = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_radius(self.eps)
        if self.p not in (2, math.inf):
            raise ValueError(f"AutoAttack knows p = 2 and math.inf, got {self.p!r}")
        if self.classes is not None:
            check_steps(self.classes, "classes", least=2)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial examples for x (B, C, H, W) in [0, 1]; the model's modes are as before afterwards.

        Raises:
            ImportError: torchattacks is not there.
            TypeError: the model is no module; x or y as for any attack.
            ValueError: the model has another number of classes than it was told.
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
            oracle.loss(x[:1], y[:1])
            assert oracle.logits is not None
            classes = oracle.logits.shape[1]
            if self.classes not in (None, classes):
                raise ValueError(
                    f"AutoAttack is told classes={self.classes}, and the model tells {classes} apart: leave classes out"
                )
            check_labels(y, classes)
            model = AsClasses(oracle.model)
            attack = torchattacks.AutoAttack(model, norm, self.eps, n_classes=classes, seed=self.seed)
            if classes < 4:
                attack._autoattack = _of_few_classes(torchattacks, attack, model, classes)
            return attack(x.clamp(0, 1), y).detach()


class AsClasses(nn.Module):
    """The model's logits (B, K), also where it returns those of one sigmoid unit, or logits among other things."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return predict(self.model, x)


def _of_few_classes(torchattacks: ModuleType, whole: Any, model: nn.Module, classes: int) -> Any:
    """The attacks of AutoAttack that are defined for fewer than four classes."""
    same = {"eps": whole.eps, "norm": whole.norm, "seed": whole.seed, "n_restarts": 1}
    attacks = [torchattacks.APGD(model, **same, loss="ce")]
    if classes == 3:
        attacks.append(torchattacks.APGD(model, **same, loss="dlr"))
    attacks.append(torchattacks.FAB(model, **same, multi_targeted=True, n_classes=classes))
    attacks.append(torchattacks.Square(model, **same, n_queries=5000))
    return torchattacks.MultiAttack(attacks)


def require_torchattacks() -> ModuleType:
    """The package, imported; ImportError that says how to get it."""
    try:
        import torchattacks
    except ImportError as error:
        raise ImportError(f"AutoAttack needs torchattacks: pip install --no-deps torchattacks ({error})") from error
    return torchattacks
