"""One attack on one batch: the records of its samples, and what it cost."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from soatfast.attacks import Attack
from soatfast.evaluate.quality import Quality, quality_of_changed
from soatfast.evaluate.reading import network, prepared, takes_whole_batches
from soatfast.evaluate.watch import Standing, Watch, can_watch, norm_of
from soatfast.gradients.checks import check_labels
from soatfast.gradients.counting import count_passes
from soatfast.gradients.outputs import logits_of
from soatfast.gradients.passes import Passes
from soatfast.ops import lp_norm
from soatfast.runs.files import generators

Runnable = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""An attack: (model, x, y) -> x_adv. Those of soatfast.attacks are, and so is AutoAttack."""

FIELDS: dict[str, type] = {
    "prediction": np.int32,
    "margin": np.float32,
    "norm": np.float32,
    "correct": np.bool_,
    "attacked": np.bool_,
    "forward": np.float32,
    "backward": np.float32,
    "first": np.int32,
    "psnr": np.float32,
    "ssim": np.float32,
}
"""The arrays of a cell, one entry a sample; see :class:`~soatfast.evaluate.results.AttackResult`."""


@dataclass(frozen=True)
class Cell:
    """records: an array for each of FIELDS. asked: forward and backward sample passes of the same run on every
    sample, to its end. seconds: wall time.
    """

    records: dict[str, np.ndarray]
    passes: Passes
    asked: tuple[int, int]
    seconds: float


def clean_batch(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Standing, Cell]:
    """The model's own predictions: one forward. ValueError where a label is none of its classes."""
    start = time.perf_counter()
    with count_passes(network(model)) as counted, torch.no_grad():
        logits = logits_of(model(x), len(x))
    check_labels(y, logits.shape[1])
    standing = Standing(logits.detach().clone(), y, x.new_zeros(len(x)), logits.argmax(1) == y, x.detach().clone())
    ones, none = torch.ones_like(y), torch.zeros_like(y)
    seconds = time.perf_counter() - start
    records = _records(standing, none.bool(), Quality.not_measured(len(x)), ones, none, none)
    return standing, Cell(records, counted.total(), (counted.forward_samples, 0), seconds)


def attack_batch(
    model: nn.Module,
    attack: Runnable,
    x: Tensor,
    y: Tensor,
    before: Standing,
    seed: int,
    compact: bool,
    quality: bool = False,
) -> tuple[Standing, Cell]:
    """Run the attack on the samples that are right in `before`; with compact=False on all of them, to its end.

    The random numbers come from `seed`, those of the attack's own generator too; the caller's are as they were.
    quality: measure PSNR and SSIM of the examples as well, outside of the cell's seconds; else they are NaN.
    """
    start = time.perf_counter()
    after = before.copy()
    with count_passes(network(model)) as counted, seeded(attack, seed):
        if can_watch(attack, x):
            watch = Watch(model, x, after, attack, compact)  # type: ignore[arg-type]  # can_watch has looked
            watch.run(attack, y)  # type: ignore[arg-type]
            forwards, backwards, first = watch.forwards, watch.backwards, watch.first
            asked = (watch.asked_forward, watch.asked_backward)
        else:
            rows = before.correct.nonzero().flatten() if compact else torch.arange(len(x), device=x.device)
            if len(rows):
                _final(model, attack, x, y, after, rows)
            total = counted.total()
            shares = [
                torch.zeros(len(x), device=x.device).index_fill_(0, rows, samples / max(len(rows), 1))
                for samples in (total.forward_samples, total.backward_input_samples)
            ]
            forwards, backwards = shares
            first = rows.new_zeros(len(x))
            scale = len(x) / max(len(rows), 1)
            asked = (round(total.forward_samples * scale), round(total.backward_input_samples * scale))
    if takes_whole_batches(model):  # what fills them up was paid, and nothing was saved
        total = counted.total()
        asked = (total.forward_samples, total.backward_input_samples)
    seconds = time.perf_counter() - start
    attacked = before.correct if compact else torch.ones_like(before.correct)
    low, high = attack.bounds if isinstance(attack, Attack) else (0.0, 1.0)
    width = float(torch.as_tensor(high - low).max())  # bounds a channel: the widest
    seen = quality_of_changed(x, after.example, width) if quality else Quality.not_measured(len(x))
    records = _records(after, attacked, seen, forwards, backwards, first)
    return after, Cell(records, counted.total(), asked, seconds)


@torch.no_grad()
def _final(model: nn.Module, attack: Runnable, x: Tensor, y: Tensor, now: Standing, rows: Tensor) -> None:
    """An attack that cannot be watched: only its final examples count."""
    with torch.enable_grad():
        called, with_model = prepared(attack, model)
        x_adv = called(with_model, x[rows], y[rows]).detach()
    logits = logits_of(model(x_adv), len(rows))
    kept = now.correct[rows]
    chosen = rows[kept]
    now.logits[chosen] = logits[kept].to(now.logits.dtype)
    delta = (x_adv - x[rows])[kept]
    now.norm[chosen] = lp_norm(delta, norm_of(attack)).to(now.norm.dtype)
    now.example[chosen] = x_adv[kept].to(x.dtype)
    now.correct[chosen] = logits[kept].argmax(1) == y[chosen]


@contextlib.contextmanager
def seeded(attack: Any, seed: int) -> Iterator[None]:
    own = [(generator, generator.get_state()) for generator in generators(attack)]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for generator, _ in own:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state in own:
                generator.set_state(state)


def _records(now: Standing, attacked: Tensor, seen: Quality, *costs: Tensor) -> dict[str, np.ndarray]:
    values = (now.prediction, now.margin, now.norm, now.correct, attacked, *costs, seen.psnr, seen.ssim)
    pairs = zip(FIELDS.items(), values, strict=True)
    return {name: value.detach().cpu().numpy().astype(kind) for (name, kind), value in pairs}
