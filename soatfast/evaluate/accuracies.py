"""Accuracy on clean and attacked inputs."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset

from soatfast.attacks import Attack
from soatfast.evaluate.checks import Check, check_model
from soatfast.evaluate.intervals import interval
from soatfast.evaluate.reading import as_read, check_attack, network, prepared
from soatfast.gradients.checks import check_labels
from soatfast.gradients.counting import count_passes
from soatfast.gradients.device import device_of
from soatfast.gradients.outputs import Forward, Output, logits_of
from soatfast.gradients.state import ModelState

Samples = Dataset[Any] | tuple[Tensor, Tensor] | Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AccuracyResult:
    """accuracy: share of `correct`. correct: bool (N,) on the CPU. attacked: samples the attack was run on.

    passes: counted network passes of the whole evaluation (the fields of Passes). seconds: wall time of it. checks:
    what the checks of the model found, whose passes are not among these; empty without an attack.
    """

    accuracy: float
    correct: Tensor = field(repr=False)
    attacked: int
    passes: dict[str, int]
    seconds: float
    checks: tuple[Check, ...] = field(default=(), repr=False)

    @property
    def interval(self) -> tuple[float, float]:
        """The accuracy's 95 % interval (Wilson's)."""
        return interval(int(self.correct.sum()), len(self.correct))


def accuracy(
    model: nn.Module,
    data: Samples,
    attack: Attack | None = None,
    batch_size: int = 250,
    seed: int = 0,
    progress: Callable[[int, int | None], None] | None = None,
    output: Output = None,
    forward: Forward | None = None,
) -> AccuracyResult:
    """Share of samples whose true label is predicted, on clean input (attack=None) AND on the attacked one.

    Samples that are wrong on clean input count as wrong and are not attacked: it could not change the figure. The data
    are read once, batch by batch; at most two batches are held. A model of ``torch.export`` that takes batches of one
    size only is given such batches, filled up where need be.
    The model predicts in eval mode and gets its own mode back; what the attack sees is the attack's `mode`.
    Random starts come from `seed`; the caller's random state is left as it was. progress(done, total) is called after
    each batch: samples that are judged, and in all, None where the data do not say.

    data: a Dataset of (x, y), a pair of tensors (x, y), or an iterable of such batches (a DataLoader).
    output, forward: how the model is called and read, as of :class:`~soatfast.attacks.Attack`, for the predictions and
    for the attack.
    Passes: ceil(N / batch_size) clean forwards, and per batch of correct samples the attack's plus one
    forward. With an attack the model is checked first (:func:`~soatfast.evaluate.checks.check_model`): six forwards and
    a backward of at most 64 samples, which are not counted; what is found is a warning.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accuracy needs a module, got {type(model).__name__}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if attack is not None and attack.targeted:
        raise ValueError("accuracy needs an untargeted attack: it is given the true labels, got targeted=True")
    check_attack(type(attack).__name__, attack, forward)
    device, read = device_of(model), as_read(model, output, forward)
    start, total = time.perf_counter(), _length(data)
    stream = iter(streamed(data, batch_size))
    first = next(stream, None)
    if first is None:
        raise ValueError("there are no samples to evaluate")
    checks: list[Check] = []
    right: list[Tensor] = []
    attacked = 0
    with ModelState(model, "eval", freeze=False), torch.random.fork_rng():
        if attack is not None:
            checks = check_model(read, first[0].to(device), first[1].to(device), {type(attack).__name__: attack})
        torch.manual_seed(seed)
        with count_passes(network(model)) as passes:
            for x, y, index, last in _to_attack(read, itertools.chain([first], stream), right, batch_size, device):
                if attack is not None and len(x):
                    called, with_model = prepared(attack, read)
                    labels = y.to(device)
                    x_adv = called(with_model, x.to(device), labels)
                    kept = _right(read, x_adv, labels, device)
                    for number, flag in zip(index.tolist(), kept.tolist(), strict=True):
                        right[number // batch_size][number % batch_size] = flag
                    attacked += len(x)
                if progress is not None:
                    progress(last, total)
    correct = torch.cat(right)
    share = int(correct.sum()) / len(correct)
    cost = dataclasses.asdict(passes.total())
    return AccuracyResult(share, correct, attacked, cost, time.perf_counter() - start, tuple(checks))


def _to_attack(
    model: nn.Module, stream: Iterable[tuple[Tensor, Tensor]], right: list[Tensor], size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """(x, y, their numbers, samples judged with them) of `size` samples that are right on clean input, in order.

    The clean predictions of each batch of the stream are put into `right`.
    """
    held: list[tuple[Tensor, Tensor, Tensor]] = []
    seen = 0
    for x, y in stream:
        right.append(_right(model, x, y, device))
        chosen = right[-1].nonzero().flatten()
        held.append((x[chosen.to(x.device)], y[chosen.to(y.device)], seen + chosen))
        seen += len(x)
        if sum(len(part[0]) for part in held) >= size:
            a, b, index = (torch.cat(parts) for parts in zip(*held, strict=True))
            held = [(a[size:], b[size:], index[size:])]
            yield a[:size], b[:size], index[:size], int(index[size - 1]) + 1
    a, b, index = (torch.cat(parts) for parts in zip(*held, strict=True))
    yield a, b, index, seen


def streamed(data: Samples, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The data as batches (x, y) of this size, the last one smaller; at most two are held. ValueError for others.

    >>> import torch
    >>> [len(x) for x, y in streamed([(torch.zeros(3, 2), torch.zeros(3)), (torch.zeros(4, 2), torch.zeros(4))], 5)]
    [5, 2]
    """
    if isinstance(data, TensorDataset):
        data = data.tensors  # type: ignore[assignment]
    if _is_pair(data):
        source: Iterable[Any] = [data]
    else:
        source = DataLoader(data, batch_size=size) if isinstance(data, Dataset) else data
    held: list[tuple[Tensor, Tensor]] = []
    for number, batch in enumerate(source):
        if not _is_pair(batch):
            raise ValueError(f"batch {number}: the data are pairs of tensors (x, y), got {type(batch).__name__}")
        x, y = batch
        if len(x) != len(y):
            raise ValueError(f"expected as many labels as images, got {len(x)} images and {len(y)} labels")
        held.append((x, y))
        while sum(len(part[0]) for part in held) >= size:
            x, y = _joined(held)
            yield x[:size], y[:size]
            held = [(x[size:], y[size:])]
    if sum(len(part[0]) for part in held):
        yield _joined(held)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return parts[0] if len(parts) == 1 else (torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(t, Tensor) for t in value)


def _length(data: Samples) -> int | None:
    """The number of samples, where the data say it without being read."""
    if _is_pair(data):
        return len(data[0])  # type: ignore[index]
    if isinstance(data, DataLoader):
        data = data.sampler  # type: ignore[assignment]
    return len(data) if isinstance(data, (Dataset, Sampler)) and isinstance(data, Sized) else None


def gather(data: Samples) -> tuple[Tensor, Tensor]:
    """All of the data as one pair (x, y)."""
    whole = list(streamed(data, 2**62 if _is_pair(data) or isinstance(data, TensorDataset) else 256))
    if not whole:
        raise ValueError("there are no samples to evaluate")
    return _joined(whole)


def batches(x: Tensor, y: Tensor, size: int) -> Iterable[tuple[Tensor, Tensor]]:
    return zip(x.split(size), y.split(size), strict=True)


def _right(model: nn.Module, x: Tensor, y: Tensor, device: torch.device) -> Tensor:
    """(B,) bool on the CPU; ValueError where a label is none of the model's classes."""
    with torch.no_grad():
        logits = logits_of(model(x.to(device)), len(x))
    labels = y.to(device)
    check_labels(labels, logits.shape[1])
    return (logits.argmax(1) == labels).cpu()
