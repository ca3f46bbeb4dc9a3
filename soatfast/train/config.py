"""How to train, and what a training gives."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from soatfast.memory.crops import CropFlip
from soatfast.train.curriculum import linear, listed

_LEAST = (("epochs", 1), ("batch_size", 1), ("eps_ramp_epochs", 0), ("seed", 0), ("crop_padding", 0))
_RISE = 0.3  # of all steps, in which the triangle rises
_GUARD = (("guard", 0), ("guard_steps", 1))


@dataclass(frozen=True)
class TrainConfig:
    """How to train, apart from model, loss and data. The defaults are those of the digits demo."""

    epochs: int = 15
    """Passes over the training set."""
    batch_size: int = 100
    """Number of samples a step, over all processes together. The last, smaller batch of an epoch is left out."""
    lr: float = 1e-3
    """Learning rate at the start."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Optimizer of the weights."""
    weight_decay: float = 0.0
    """L2 penalty, added to the gradient."""
    momentum: float = 0.9
    """Momentum of sgd. adam has its usual betas 0.9 and 0.999."""
    nesterov: bool = False
    """Use Nesterov's momentum in sgd."""
    schedule: Literal["constant", "cosine", "step", "triangle", "milestones", "cyclic"] = "constant"
    """Course of the learning rate: constant, cosine (to 0), step (a tenth after 1/2 and again after 3/4), triangle
    (from 0 to lr in the first 0.3 of all steps, and back to 0), milestones (times lr_factor at each of them) or cyclic
    (a triangle every cycle_epochs)."""
    milestones: tuple[int, ...] = ()
    """Number of epochs after which the learning rate falls, with schedule milestones. SCORPIO's authors take 50 of 60
    on CIFAR-10, and 8 16 24 32 of 40 on SVHN."""
    lr_factor: float = 0.1
    """What the learning rate is multiplied by at each milestone."""
    cycle_epochs: int = 0
    """Number of epochs of one cycle, with schedule cyclic."""
    average: float = 0.0
    """Decay d of averaged weights, in [0, 1). 0: none. After n steps average <- d' average + (1 - d') weights with d' =
    min(d, n / (n + 10)), and batch-norm statistics likewise. They are written beside the last weights."""
    eps_ramp_epochs: int = 5
    """Number of epochs in which eps grows linearly to its full value. 1 or 0: full from the start."""
    h_ramp: tuple[float, ...] = ()
    """Shares of the loss's finite-difference step h in the first epochs; all of it afterwards. CURE's authors take
    0.033 0.13 0.27 0.6. A loss without h, or with h = None, is not changed."""
    seed: int = 0
    """Seed of the data order, of the random starts of attacks, and in the commands of the first weights."""
    precision: Literal["no", "bf16"] = "no"
    """Autocast of all network passes, those of the attack included: no or bf16."""
    channels_last: bool = False
    """Use the channels-last memory layout for model and images."""
    crop_padding: int = 0
    """Zero padding in pixels, before a random crop to the image's size. 0: no crops."""
    flip: bool = False
    """Flip images horizontally at random."""
    guard: int = 0
    """Number of training samples that are checked for catastrophic overfitting after every epoch. 0: no check."""
    guard_steps: int = 5
    """Attack steps in the epochs after an alarm, where the loss has fewer. PGD then takes its default step size."""

    def __post_init__(self) -> None:
        for name, low in _LEAST + _GUARD:
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr must be positive and finite, got {self.lr}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average must be at least 0 and less than 1, got {self.average}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError(f"nesterov needs sgd with a momentum, got {self.optimizer}, momentum {self.momentum}")
        for name in ("weight_decay", "momentum"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0 and finite, got {getattr(self, name)}")
        if any(not 0 < share < math.inf for share in self.h_ramp):
            raise ValueError(f"h_ramp must be positive and finite shares, got {self.h_ramp}")
        choices = {
            "optimizer": ("adam", "sgd"),
            "schedule": ("constant", "cosine", "step", "triangle", "milestones", "cyclic"),
            "precision": ("no", "bf16"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

        self._check_schedule()

    def _check_schedule(self) -> None:
        if (self.schedule == "milestones") != bool(self.milestones):
            raise ValueError(f"milestones come with schedule milestones, got {self.milestones} and {self.schedule}")
        rising = list(self.milestones) == sorted(set(self.milestones))
        if not rising or any(not 0 < milestone < self.epochs for milestone in self.milestones):
            raise ValueError(f"milestones must rise and lie in 1..{self.epochs - 1}, got {self.milestones}")
        if not 0 < self.lr_factor < math.inf:
            raise ValueError(f"lr_factor must be positive and finite, got {self.lr_factor}")
        if (self.schedule == "cyclic") != (self.cycle_epochs > 0):
            raise ValueError(
                f"cycle_epochs of at least 1 come with schedule cyclic, got {self.cycle_epochs} and {self.schedule}"
            )

    @property
    def augment(self) -> CropFlip | None:
        """The crops and flips, or None."""
        wanted = self.crop_padding > 0 or self.flip
        return CropFlip(padding=self.crop_padding, flip=self.flip) if wanted else None

    def eps_fraction(self, epoch: int) -> float:
        """Share of the full eps in epoch `epoch` (0-based)."""
        return linear(epoch, self.eps_ramp_epochs)

    def h_fraction(self, epoch: int) -> float:
        """Share of the full h in epoch `epoch` (0-based)."""
        return listed(epoch, self.h_ramp)

    def lr_at(self, done: float) -> float:
        """Learning rate when the share `done` in [0, 1) of all steps is done."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        if self.schedule == "step":
            return self.lr * 0.1 ** ((done >= 0.5) + (done >= 0.75))
        epoch = done * self.epochs + 1e-9  # the share of a whole number of epochs may round below it
        if self.schedule == "milestones":
            return self.lr * self.lr_factor ** sum(epoch >= milestone for milestone in self.milestones)
        if self.schedule == "cyclic":
            return self._triangle(epoch % self.cycle_epochs / self.cycle_epochs)
        return self._triangle(done) if self.schedule == "triangle" else self.lr

    def _triangle(self, done: float) -> float:
        return self.lr * min(done / _RISE, (1 - done) / (1 - _RISE))


@dataclass(frozen=True)
class TrainResult:
    """seconds: of the epochs, over all sittings: their batches and steps, bringing whole memories together, and the
    guard's readings; not checkpoints. passes: counted on one step of the first epoch (fields of Passes), so neither
    the guard's nor the steps that an alarm adds.

    history: one dict per epoch with epoch, loss (mean over its steps), eps, lr, seconds, cpu_seconds (of all threads of
    this process) and the guard's reading.
    """

    seconds: float
    steps: int
    passes: dict[str, int]
    history: list[dict[str, Any]] = field(repr=False)
