"""PGD-10 by each engine against torchattacks' PGD-10 (Linf, no random start).

An engine of another precision takes other steps where a gradient is near zero: before it is timed, its attack has to
stay in ball and box and to raise the loss as far as eager's, within 2 %.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.bench_attack import bare_passes, problem
from benchmarks.bench_peers import ALPHA, EPS, STEPS, check, mean_loss
from benchmarks.harness import race
from soatfast.attacks import PGD
from soatfast.gradients import oracle

ENGINES = ("channels_last", "bf16", "bf16+channels_last", "bf16+channels_last+compile")


@pytest.mark.parametrize(("network", "batch"), [("SmallCNN", 128), ("ResNet18", 1), ("ResNet18", 16)])
def bench_engine(benchmark: Any, network: str, batch: int) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    if benchmark.disabled:
        batch = 2
    model, x, _ = problem(network, batch)
    y = model(x).argmax(1)
    theirs = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=STEPS, random_start=False)
    eager = PGD(eps=EPS, step_size=ALPHA, steps=STEPS, random_start=False)
    reached = mean_loss(model, eager(model, x, y), y)
    candidates = {"eager": lambda: eager(model, x, y)}
    for name in ENGINES if not benchmark.disabled else ENGINES[:-1]:  # nothing is compiled where nothing is timed
        attack = PGD(eps=EPS, step_size=ALPHA, steps=STEPS, random_start=False, engine=name)
        found = attack(model, x, y)
        check(name, found, x)
        loss = mean_loss(model, found, y)
        assert abs(loss - reached) < 0.02 * reached, f"{name} reaches a loss of {loss:g}, eager {reached:g}"
        candidates[name] = lambda attack=attack: attack(model, x, y)
    candidates[f"{STEPS} bare passes"] = lambda: bare_passes(model, x, y, STEPS)
    candidates["torchattacks"] = lambda: theirs(x, y)
    race(benchmark, f"PGD-10 by engine, {network} batch {batch}", candidates, rounds=21, checked=False)


@pytest.mark.parametrize("batch", [1, 8, 32])
def bench_cast_weights(benchmark: Any, batch: int) -> None:
    """bf16 passes with the weights cast once an attack, and with autocast's casts in every pass: the same x_adv."""
    model, x, y = problem("ResNet18", 2 if benchmark.disabled else batch)
    attack = PGD(eps=EPS, step_size=ALPHA, steps=STEPS, random_start=False, engine="bf16")

    def in_every_pass() -> torch.Tensor:
        with mock.patch.object(oracle, "casts_once", lambda *_: False):
            return attack(model, x, y)

    assert torch.equal(attack(model, x, y), in_every_pass())
    candidates = {"cast once": lambda: attack(model, x, y), "in every pass": in_every_pass}
    race(benchmark, f"PGD-10 in bf16, ResNet18 batch {batch}", candidates, checked=False)
