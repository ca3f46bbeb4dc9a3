"""What sf.profile_passes adds to a step of adversarial training, on ResNet-18 and the small CNN.

    OMP_NUM_THREADS=1 python -m benchmarks.profile_overhead

Prediction, written before the first run: below 3 % on ResNet-18, as its hooks take about a millisecond a pass; more on
the small CNN, whose passes take ten. Seconds are those of the processor, so that other processes do not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import soatfast as sf

_TURNS, _STEPS = 8, 3


def training(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], None]:
    """A step of PGD-2 training as scripts write it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step() -> None:
        x_adv = x
        for _ in range(2):
            x_adv = x_adv.detach().requires_grad_()
            F.cross_entropy(model(x_adv), y).backward()
            assert x_adv.grad is not None
            x_adv = x_adv + 0.01 * x_adv.grad.sign()
        optimizer.zero_grad()
        F.cross_entropy(model(x_adv.detach()), y).backward()
        optimizer.step()

    return step


def measured(step: Callable[[], None]) -> tuple[float, float]:
    """Median seconds of a step without and with the profiler, in turns."""

    def seconds() -> float:
        start = time.process_time()
        step()
        return time.process_time() - start

    step()
    plain: list[float] = []
    watched: list[float] = []
    for _ in range(_TURNS):
        plain += [seconds() for _ in range(_STEPS)]
        with sf.profile_passes():
            watched += [seconds() for _ in range(_STEPS)]
    return statistics.median(plain), statistics.median(watched)


def main() -> None:
    torch.manual_seed(0)
    print("| network | batch | ms a step | profiled | ratio |\n|---|---:|---:|---:|---:|")
    for name, model, batch in (
        ("ResNet-18", sf.train.ResNet18(), 8),
        ("ResNet-18", sf.train.ResNet18(), 2),
        ("small CNN", sf.train.SmallCNN(in_channels=3, size=32), 128),
        ("small CNN", sf.train.SmallCNN(in_channels=3, size=32), 16),
    ):
        x, y = torch.rand(batch, 3, 32, 32), torch.randint(10, (batch,))
        plain, watched = measured(training(model, x, y))
        print(f"| {name} | {batch} | {1e3 * plain:.1f} | {1e3 * watched:.1f} | {watched / plain:.3f} |")


if __name__ == "__main__":
    main()
