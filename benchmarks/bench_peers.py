"""PGD-10 (Linf, no random start, float32) against the same attack of other libraries, from one sample to 512.

The labels are the model's own predictions, as APGD leaves out what is misclassified. Every rival that makes PGD's
iterates is compared with ours after one step and, by the loss it reaches, after ten; all are held to ball and box.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_attack import bare_passes, problem
from benchmarks.harness import SMOKE_ROWS, race
from benchmarks.peers import installed
from soatfast.attacks import PGD
from soatfast.gradients import count_passes

EPS, ALPHA, STEPS = 0.1, 0.025, 10
BATCHES = {"SmallCNN": (1, 4, 16, 64, 128, 256, 512), "ResNet18": (1, 8, 32)}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    config = metafunc.config
    sizes = [
        (network, batch)
        for network, batches in BATCHES.items()
        for batch in sorted({*batches, *config.getoption("batch")})
        if batch <= SMOKE_ROWS or not config.getoption("benchmark_disable")
    ]
    metafunc.parametrize(("network", "batch"), sizes)


def mean_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return F.cross_entropy(model(x), y).item()


def check(name: str, found: Tensor, x: Tensor) -> None:
    """Raise AssertionError where an attack left ball or box."""
    assert found.dtype == x.dtype and found.shape == x.shape, f"{name} returned {found.dtype} {tuple(found.shape)}"
    farthest = (found - x).abs().max().item()
    assert farthest <= EPS + 1e-6, f"{name} went {farthest:g} from x, at most {EPS:g} was expected"
    assert found.min() >= 0 and found.max() <= 1, f"{name} left [0, 1]"


def titled(name: str, model: nn.Module, call: Callable[[], Any], steps: int) -> str:
    """The name, and the passes where they are not `steps` of each."""
    with count_passes(model) as counted:
        call()
    forward, backward = counted.forward, counted.backward_input + counted.backward_parameters
    return name if forward == backward == steps else f"{name} ({forward} forwards, {backward} backwards)"


def bench_pgd_against_peers(benchmark: Any, network: str, batch: int) -> None:
    model, x, _ = problem(network, batch)
    y, steps = model(x).argmax(1), 2 if benchmark.disabled else STEPS
    ours = PGD(eps=EPS, step_size=ALPHA, steps=steps, random_start=False)
    candidates: dict[str, Callable[[], Any]] = {"soatfast": lambda: ours(model, x, y)}
    candidates[f"{steps} bare passes"] = lambda: bare_passes(model, x, y, steps)
    first = PGD(eps=EPS, step_size=ALPHA, steps=1, random_start=False)(model, x, y)
    reached = mean_loss(model, candidates["soatfast"](), y)
    for name, peer in installed().items():
        attack = peer.make(model, steps, EPS, ALPHA)
        found = attack(x, y)
        check(name, found, x)
        loss = mean_loss(model, found, y)
        assert loss > mean_loss(model, x, y), f"{name} lowered the loss"
        if peer.exact:
            differing = ((first - peer.make(model, 1, EPS, ALPHA)(x, y)).abs() > 1e-5).float().mean()
            assert differing < 2e-3, f"{differing:.1%} of the pixels differ from {name} after one step"
            assert abs(loss - reached) < 0.01 * reached, f"{name} reaches a loss of {loss:g}, ours {reached:g}"
        call = lambda attack=attack: attack(x, y)  # noqa: E731
        candidates[titled(name, model, call, steps)] = call
    title = f"PGD-{STEPS} {network} batch {batch}"
    race(benchmark, title, candidates, rounds=21, checked=False, series=(f"PGD-{STEPS}, {network}", batch))
