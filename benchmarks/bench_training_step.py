"""Whole training steps (loss, backward, optimiser): losses against each other, and as they are usually written.

Where a loss is raced with the same loss written otherwise, value and parameter gradients are compared first, under one
seed. They differ a little: rounding turns signs of tiny input gradients.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import usual_losses as usual
from benchmarks.harness import SMOKE_ROWS, race
from soatfast.attacks import PGD, FrankWolfe
from soatfast.losses import CURE, MART, SCORPIO, TRADES, AdversarialTraining, CrossEntropy
from soatfast.memory.store import PerturbationMemory
from soatfast.train.models import ResNet18, SmallCNN

EPS, ALPHA, STEPS = 0.2, 0.05, 10
Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]


def problem(network: str, batch: int) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = SmallCNN() if network == "SmallCNN" else ResNet18(width=64)
    shape = (1, 28, 28) if network == "SmallCNN" else (3, 32, 32)
    return model, torch.rand(batch, *shape), torch.randint(0, 10, (batch,))


def step(loss: Objective, model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step on a copy of the model."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters())

    def run() -> None:
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()

    return run


def slope(loss: Objective, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(value, all parameter gradients in one vector), under a seed."""
    model = copy.deepcopy(model)
    torch.manual_seed(1)
    value = loss(model, x, y)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def check_same(name: str, ours: Objective, theirs: Objective, *problem: Any, rtol: float = 1e-3) -> None:
    """Raise AssertionError unless two losses agree, up to a few input gradients of the other sign."""
    (value, gradient), (expected, direction) = slope(ours, *problem), slope(theirs, *problem)
    torch.testing.assert_close(value, expected, rtol=rtol, atol=0, msg=lambda m: f"{name}: {m}")
    apart = ((gradient - direction).norm() / direction.norm()).item()
    assert apart < 5 * rtol, f"{name}: the parameter gradients differ by {apart:.1%}"


def bench_training_step(benchmark: Any) -> None:
    model, x, y = problem("SmallCNN", SMOKE_ROWS if benchmark.disabled else 100)
    index = torch.randperm(4000)[: len(x)]

    def replay(steps: int) -> Objective:
        memory = PerturbationMemory(4000, (1, 28, 28), torch.int8)
        loss = AdversarialTraining(FrankWolfe(eps=EPS, steps=steps, mode="keep"), memory=memory)
        return lambda model, x, y: loss(model, x, y, index)

    losses: dict[str, Objective] = {
        "FW replay, 1 step": replay(1),
        "FW replay, 2 steps": replay(2),
        "SCORPIO FE(3)": SCORPIO(eps=EPS, mode="keep"),
        "SCORPIO FE(3), clean pass not shared": SCORPIO(eps=EPS, mode="keep", recycle=False),
        "PGD-10": AdversarialTraining(attack=PGD(eps=EPS, mode="keep")),
        "PGD-10 written by hand": usual.pgd_training(EPS, ALPHA, STEPS),
        "PGD-1": AdversarialTraining(attack=PGD(eps=EPS, steps=1, mode="keep")),
        "PGD-4": AdversarialTraining(attack=PGD(eps=EPS, steps=4, mode="keep")),
        "standard": CrossEntropy(),
    }
    candidates = {name: step(loss, model, x, y) for name, loss in losses.items()}
    race(benchmark, "training step SmallCNN batch 100", candidates, rounds=40, checked=False)


PAIRS: dict[str, tuple[Objective, Objective]] = {
    "PGD-10": (
        AdversarialTraining(attack=PGD(eps=EPS, step_size=ALPHA, steps=STEPS, mode="keep")),
        usual.pgd_training(EPS, ALPHA, STEPS),
    ),
    "SCORPIO FE(3)": (SCORPIO(eps=EPS, mode="keep"), usual.scorpio(EPS)),
    "TRADES": (
        TRADES(eps=EPS, step_size=ALPHA, steps=STEPS, mode="keep"),
        usual.trades(EPS, ALPHA, STEPS),
    ),
    "MART": (MART(eps=EPS, step_size=ALPHA, steps=STEPS, mode="keep"), usual.mart(EPS, ALPHA, STEPS)),
    "CURE": (CURE(mode="keep"), usual.cure()),
}


@pytest.mark.parametrize("name", PAIRS)
def bench_loss_as_usually_written(benchmark: Any, name: str) -> None:
    setting = problem("SmallCNN", SMOKE_ROWS if benchmark.disabled else 100)
    ours, theirs = PAIRS[name]
    check_same(name, ours, theirs, *setting)
    losses = {"soatfast": ours, "as usually written": theirs}
    if name == "PGD-10" and importlib.util.find_spec("torchattacks"):
        losses["torchattacks"] = usual.torchattacks_training(EPS, ALPHA, STEPS)
        check_same("torchattacks", ours, losses["torchattacks"], *setting)
    candidates = {rival: step(loss, *setting) for rival, loss in losses.items()}
    race(benchmark, f"training step {name} SmallCNN batch 100", candidates, rounds=40, checked=False)


FAST = ("channels_last+compile", "bf16", "bf16+channels_last+compile")


@pytest.mark.parametrize("batch", [8, 32])
def bench_scorpio_against_torchattacks(benchmark: Any, batch: int) -> None:
    """What SCORPIO saves on a network with batch norm: a step of it, the clean pass shared, for one of PGD-10."""
    pytest.importorskip("torchattacks")
    eps = 8 / 255
    setting = problem("ResNet18", 2 if benchmark.disabled else batch)
    losses: dict[str, Objective] = {
        "SCORPIO FE(3)": SCORPIO(eps=eps, mode="keep"),
        "PGD-10 of torchattacks": usual.torchattacks_training(eps, eps / 4, STEPS),
        "PGD-10": AdversarialTraining(attack=PGD(eps=eps, step_size=eps / 4, steps=STEPS)),
        "SCORPIO FE(3) as usually written": usual.scorpio(eps),
    }
    scorpio, torchattacks, pgd, by_hand = losses.values()
    for engine in ("channels_last", "bf16") if benchmark.disabled else FAST:  # nothing is compiled untimed
        losses[f"SCORPIO FE(3), {engine}"] = SCORPIO(eps=eps, mode="keep", engine=engine)
    losses["SCORPIO FE(3) at strength 1"] = SCORPIO(eps=eps, mode="keep", strength=1)
    losses["SCORPIO FE(3) at strength 1, bf16"] = SCORPIO(eps=eps, mode="keep", strength=1, engine="bf16")
    setting[0].eval()  # in train mode batch norm makes another gradient out of a few turned signs
    check_same("SCORPIO", scorpio, by_hand, *setting)
    check_same("torchattacks", pgd, torchattacks, *setting)
    setting[0].train()
    candidates = {name: step(loss, *setting) for name, loss in losses.items()}
    race(benchmark, f"training step ResNet18 batch {batch}", candidates, rounds=7, checked=False)
