"""PGD with momentum and a choice of losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks.base import Model
from soatfast.compat.torchattacks.native import StartedMIFGSM, Stepwise, Summed
from soatfast.gradients.objectives import Objective
from soatfast.gradients.oracle import InputGradient
from soatfast.ops.arguments import as_column

Loss = str | Callable[[Tensor, Tensor, Tensor | None], Tensor]


class UPGD(Stepwise):
    """:class:`soatfast.attacks.MIFGSM`, Linf, with a choice of losses and the sum of eot_iter gradients a step.

    loss: "ce", "dlr" (Croce and Hein 2020), "margin" (Carlini and Wagner 2017, which leaves a fooled sample alone), or
    a callable (images, labels, target labels or None) -> a scalar to raise, which asks ``get_logits`` itself.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        random_start: bool = False,
        loss: Loss = "ce",
        decay: float = 1.0,
        eot_iter: int = 1,
    ):
        super().__init__("UPGD", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start
        self.loss = loss
        self.decay = decay
        self.eot_iter = eot_iter
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        if isinstance(self.loss, str) and self.loss not in ("ce", "dlr", "margin"):
            raise ValueError(f'loss must be "ce", "dlr", "margin" or a callable, got {self.loss!r}')
        images, aims = self._inputs(images, labels)
        labels = labels.detach().to(images.device)
        fields: dict[str, Any] = {"decay": self.decay, "times": self.eot_iter}
        start = self._uniform(images, self.random_start)
        if self.loss == "ce":
            return self._momentum(images, aims, start, **fields)
        targets = aims if self.targeted else None
        if isinstance(self.loss, str):
            kind, cost = (StartedMIFGSM, _dlr) if self.loss == "dlr" else (_Still, _margin)
            fields |= {**self._fields(), "targeted": False, "objective": cost(labels, targets)}
            return self._run(kind(start=start, **fields), images, labels)
        script = self.loss
        made = _Scripted(start=start, cost=lambda x: script(x, labels, targets), **self._fields(), **fields)
        return self._run(made, images, labels)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Still(StartedMIFGSM):
    """A sample without a gradient stays where it is: the margin is at its end there."""

    def _accumulated(self, momentum: Tensor, g: Tensor) -> Tensor:
        moves = as_column((g != 0).flatten(1).any(1), g)
        return super()._accumulated(momentum, g) * moves


@dataclass(frozen=True, kw_only=True, eq=False)
class _Scripted(StartedMIFGSM):
    """Raises ``cost``, a scalar function of the images."""

    cost: Callable[[Tensor], Tensor]

    def oracle(self, model: Model) -> InputGradient:
        oracle = _OfCost(model, mode=self.mode)
        oracle.times, oracle.cost = self.times, self.cost
        return oracle


class _OfCost(Summed):
    cost: Callable[[Tensor], Tensor]

    def _pass(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with self._grad_enabled(x) as leaf:
            cost = self.cost(leaf)
            if not isinstance(cost, Tensor) or cost.numel() != 1 or not cost.requires_grad:
                raise ValueError(f"loss must return a scalar that depends on the images, got {cost!r}")
            (g,) = torch.autograd.grad(cost, leaf)
        return g, cost.detach()


def _dlr(labels: Tensor, targets: Tensor | None) -> Objective:
    """The difference of logits ratio, to be raised; of K logits the four or, without targets, three largest."""
    least = 3 if targets is None else 4

    def cost(z: Tensor, y: Tensor) -> Tensor:
        if z.shape[1] < least:
            raise ValueError(f'loss "dlr" needs {least} classes here, got {z.shape[1]}')
        top, order = z.sort(1, descending=True)
        own = z.gather(1, labels[:, None]).squeeze(1)
        if targets is not None:
            aim = z.gather(1, targets[:, None]).squeeze(1)
            return (aim - own) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)
        rival = torch.where(order[:, 0] == labels, top[:, 1], top[:, 0])
        return (rival - own) / (top[:, 0] - top[:, 2] + 1e-12)

    return cost


def _margin(labels: Tensor, targets: Tensor | None) -> Objective:
    """How far the wrong (with targets: the right) class is behind, to be raised, at most 0.

    The other classes' largest logit counts as 0 at least, as torchattacks' does, whose own entry is masked by 0.
    """
    aims = (labels if targets is None else targets)[:, None]

    def cost(z: Tensor, y: Tensor) -> Tensor:
        own, rival = z.gather(1, aims).squeeze(1), z.scatter(1, aims, 0.0).max(1).values
        return -(own - rival if targets is None else rival - own).clamp_min(0)

    return cost
