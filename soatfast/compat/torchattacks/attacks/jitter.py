"""Jitter (Schwinn et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from soatfast import attacks
from soatfast.compat.torchattacks.native import Stepwise
from soatfast.gradients.oracle import InputGradient


@dataclass(frozen=True, kw_only=True, eq=False)
class _Jitter(attacks.Jitter):
    """From a start that is given; a sample counts as fooled where the prediction is not its label, also if targeted."""

    start: Tensor | None = field(default=None, compare=False, repr=False)
    labels: Tensor | None = field(default=None, compare=False, repr=False)

    def _start(self, x: Tensor) -> Tensor:
        return x if self.start is None else self.start.to(x.dtype)

    def _won(self, oracle: InputGradient, y: Tensor) -> Tensor:
        assert oracle.logits is not None
        return oracle.logits.argmax(1) != (y if self.labels is None else self.labels)


class Jitter(Stepwise):
    """:class:`soatfast.attacks.Jitter`, Linf."""

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        scale: float = 10,
        std: float = 0.1,
        random_start: bool = True,
    ):
        super().__init__("Jitter", model)
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.random_start = random_start
        self.scale = scale
        self.std = std
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, aims = self._inputs(images, labels)
        start = self._uniform(images, self.random_start)
        attack = _Jitter(scale=self.scale, std=self.std, start=start, labels=labels.to(images.device), **self._fields())
        return self._run(attack, images, aims)
