"""AutoAttack's ensemble (Croce and Hein 2020) of this package's attacks: each runs on what those before it left."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from soatfast.attacks.apgd import APGD, TargetedAPGD
from soatfast.attacks.base import Attack, Model
from soatfast.attacks.fab import FAB, TargetedFAB
from soatfast.attacks.square import Square
from soatfast.gradients.checks import check_batch, check_labels
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.parts import takes_parts
from soatfast.ops.arguments import as_column, check_fields, check_radius, check_steps


@dataclass(frozen=True)
class EnsembleResult:
    """What an ensemble found on a batch (B, ...).

    x_adv: the adversarial examples. fooled (B,) bool: whether the answer there is wrong. left: how many samples were
    right at x ("clean") and after each part that ran, by its name.
    """

    x_adv: Tensor
    fooled: Tensor
    left: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    r"""AutoAttack without another package: APGD-CE, APGD-T, FAB-T and Square, in this order.

    Version "rand", for a model that draws random numbers: APGD-CE and APGD-DLR with 20 gradients at each point. Version
    "plus": APGD-CE, APGD-DLR and FAB with 5 attempts each, Square, APGD-T and FAB-T.

    A sample's example is the point that fools the model, else that of the greatest margin; x where it is fooled at x.
    With 3 classes APGD-DLR stands in the place of APGD-T, which compares four logits; with 2 nothing does.

    Args:
        eps: radius in input units, images in [0, 1].
        p: 2 or math.inf.
        version: "standard", "plus" or "rand".
        classes: of the model; None: it is asked.
        seed: of the random numbers of each part.
        steps: of APGD and FAB. queries: of Square.

    Defaults of the paper: 100 steps, 5000 queries. torchattacks' AutoAttack makes 10 steps.

    Passes: several thousand a sample that survives; those of the parts, and 1 forward before and after each.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 5))
    >>> x = torch.rand(4, 1, 5, 5)
    >>> found = Ensemble(eps=0.5, steps=5, queries=10).search(model, x, model(x).argmax(1))
    >>> found.left["clean"], bool((found.x_adv - x).abs().max() <= 0.5 + 1e-6)
    (4, True)
    """

    eps: float = 8 / 255
    p: float = math.inf
    version: Literal["standard", "plus", "rand"] = "standard"
    classes: int | None = None
    seed: int = 0
    steps: int = 100
    queries: int = 5000
    targeted = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_radius(self.eps)
        if self.p not in (2, math.inf):
            raise ValueError(f"Ensemble knows p = 2 and math.inf, got {self.p!r}")
        if self.version not in ("standard", "plus", "rand"):
            raise ValueError(f'version must be "standard", "plus" or "rand", got {self.version!r}')
        if self.classes is not None:
            check_steps(self.classes, "classes", least=2)
        check_steps(self.steps)
        check_steps(self.queries, "queries")

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial examples for x (B, C, H, W) in [0, 1]. Raises as an attack, and where ``classes`` is wrong."""
        return self.search(model, x, y).x_adv

    def search(self, model: Model, x: Tensor, y: Tensor) -> EnsembleResult:
        """As a call, with what each part left."""
        check_batch(x, y, (0.0, 1.0))
        if len(x) == 0:
            return EnsembleResult(x.detach().clone(), torch.zeros(0, dtype=torch.bool, device=x.device), {"clean": 0})
        with InputGradient(model, "margin") as oracle:
            margin = oracle.loss(x, y)
            assert oracle.logits is not None
            classes, fooled, alone = oracle.logits.shape[1], oracle.fooled(y), takes_parts(oracle)
        if self.classes not in (None, classes):
            raise ValueError(
                f"Ensemble is told classes={self.classes}, and the model tells {classes} apart: leave classes out"
            )
        check_labels(y, classes)
        x_adv, left = x.detach().clone(), {"clean": int((~fooled).sum())}
        margin = torch.where(fooled, math.inf, -math.inf).to(margin)
        for name, attack in self.parts(classes, x.device):
            rows = (~fooled).nonzero().squeeze(1) if alone else torch.arange(len(x), device=x.device)
            if left[next(reversed(left))] == 0:
                break
            found = attack(model, x[rows], y[rows])
            with InputGradient(model, "margin") as oracle:
                value, wrong = oracle.loss(found, y[rows]), oracle.fooled(y[rows])
            before = fooled[rows]
            better = (wrong & ~before) | ((wrong == before) & (value > margin[rows]))
            x_adv[rows] = torch.where(as_column(better, found), found, x_adv[rows])
            margin[rows] = torch.where(better, value, margin[rows])
            fooled[rows] = before | wrong
            left[name] = int((~fooled).sum())
        return EnsembleResult(x_adv, fooled, left)

    def parts(self, classes: int, device: torch.device | str = "cpu") -> Iterator[tuple[str, Attack]]:
        """(name, attack) of each part for a model of this number of classes, each with random numbers of its own."""
        targets = min(9, classes - 1)

        def ball() -> dict[str, object]:
            generator = torch.Generator(device).manual_seed(self.seed)
            return {"eps": self.eps, "p": self.p, "generator": generator}

        def apgd(**fields: object) -> APGD:
            return APGD(**ball(), steps=self.steps, **fields)  # type: ignore[arg-type]

        def towards() -> Iterator[tuple[str, Attack]]:
            if classes > 3:
                yield "apgd-t", TargetedAPGD(**ball(), steps=self.steps, targets=targets)  # type: ignore[arg-type]

        repeated = {"rand": {"eot": 20}, "plus": {"restarts": 5}, "standard": {}}[self.version]
        yield "apgd-ce", apgd(**repeated)
        if classes == 3 or (classes > 3 and self.version != "standard"):
            yield "apgd-dlr", apgd(**repeated, objective="dlr")
        if self.version == "rand":
            return
        if self.version == "plus":
            yield "fab", FAB(**ball(), steps=self.steps, restarts=5)  # type: ignore[arg-type]
        else:
            yield from towards()
            yield "fab-t", TargetedFAB(**ball(), steps=self.steps, targets=targets)  # type: ignore[arg-type]
        yield "square", Square(**ball(), steps=self.queries)  # type: ignore[arg-type]
        if self.version == "plus":
            yield from towards()
            yield "fab-t", TargetedFAB(**ball(), steps=self.steps, targets=targets)  # type: ignore[arg-type]
