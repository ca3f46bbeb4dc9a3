"""Accuracy on clean and attacked inputs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from soatfast.attacks import Attack
from soatfast.gradients.counting import count_passes
from soatfast.gradients.device import device_of
from soatfast.gradients.state import ModelState, is_exported

Samples = Dataset[Any] | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AccuracyResult:
    """accuracy: share of `correct`. correct: bool (N,) on the CPU. attacked: samples the attack was run on.

    passes: counted network passes of the whole evaluation (the fields of Passes). seconds: wall time of it.
    """

    accuracy: float
    correct: Tensor = field(repr=False)
    attacked: int
    passes: dict[str, int]
    seconds: float


def accuracy(
    model: nn.Module,
    data: Samples,
    attack: Attack | None = None,
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> AccuracyResult:
    """Share of samples whose true label is predicted, on clean input (attack=None) AND on the attacked one.

    Samples that are wrong on clean input count as wrong and are not attacked: it could not change the figure. A model
    of ``torch.export``, whose batches may have one size only, is given whole batches.
    The model predicts in eval mode and gets its own mode back; what the attack sees is the attack's `mode`.
    Random starts come from `seed`; the caller's random state is left as it was. progress(done, total) is
    called after each batch.

    data: a Dataset of (x, y), a pair of tensors (x, y), or an iterable of such batches (a DataLoader).
    Passes: ceil(N / batch_size) clean forwards, and per batch of correct samples the attack's plus one
    forward.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if attack is not None and attack.targeted:
        raise ValueError("accuracy needs an untargeted attack: it is given the true labels, got targeted=True")
    x, y = gather(data)
    if len(x) == 0:
        raise ValueError("there are no samples to evaluate")
    device = device_of(model)
    start = time.perf_counter()
    with ModelState(model, "eval", freeze=False), count_passes(model) as passes, torch.random.fork_rng():
        torch.manual_seed(seed)
        correct = torch.cat([_right(model, a, b, device) for a, b in batches(x, y, batch_size)])
        groups = _groups(correct, batch_size, whole=is_exported(model)) if attack is not None else []
        attacked, done = sum(map(len, groups)), 0
        for chosen in groups:
            assert attack is not None
            labels = y[chosen].to(device)
            x_adv = attack(model, x[chosen].to(device), labels)
            correct[chosen] &= _right(model, x_adv, labels, device)
            done += len(chosen)
            if progress is not None:
                progress(done, attacked)
    share = int(correct.sum()) / len(correct)
    return AccuracyResult(share, correct, attacked, dataclasses.asdict(passes.total()), time.perf_counter() - start)


def _groups(correct: Tensor, batch_size: int, whole: bool) -> list[Tensor]:
    """The numbers of the samples to attack, a batch each: the correct ones, or whole batches that hold some."""
    if not whole:
        return [chosen for chosen in correct.nonzero().flatten().split(batch_size) if len(chosen)]
    return [chosen for chosen in torch.arange(len(correct)).split(batch_size) if correct[chosen].any()]


def gather(data: Samples) -> tuple[Tensor, Tensor]:
    if isinstance(data, TensorDataset):
        x, y = data.tensors
    elif isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], Tensor) and isinstance(data[1], Tensor):
        x, y = data
    else:
        parts = list(DataLoader(data, batch_size=256) if isinstance(data, Dataset) else data)
        if not parts:
            raise ValueError("there are no samples to evaluate")
        x, y = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    if len(x) != len(y):
        raise ValueError(f"expected as many labels as images, got {len(x)} images and {len(y)} labels")
    return x, y


def batches(x: Tensor, y: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(x.split(size), y.split(size), strict=True)


def _right(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    with torch.no_grad():
        return (model(x.to(device)).argmax(1) == y.to(device)).cpu()
