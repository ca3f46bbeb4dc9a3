"""The calls of `benchmarks.two_trees`, in the process of one tree. It imports what older trees have too."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable

import torch

from soatfast.attacks import PGD
from soatfast.gradients import InputGradient
from soatfast.losses import CURE, SCORPIO, TRADES, AdversarialTraining
from soatfast.train.models import ResNet18, SmallCNN

WORK = {
    **{
        f"{what}, small CNN, batch {batch}": (what, batch)
        for batch in (1, 16, 128)
        for what in ("PGD-10", "SCORPIO", "TRADES", "PGD-4 training", "CURE")
    },
    "PGD-10, ResNet-18, batch 1": ("PGD-10", 1),
    "making PGD, small CNN, batch 1": ("making PGD", 1),
    "entering the block, small CNN, batch 1": ("entering the block", 1),
}


def call(name: str) -> Callable[[], object]:
    torch.manual_seed(0)
    what, batch = WORK[name]
    wide = "ResNet" in name
    model = (ResNet18(width=16) if wide else SmallCNN()).train()
    x, y = torch.rand(batch, *((3, 32, 32) if wide else (1, 28, 28))), torch.arange(batch) % 10
    if what == "making PGD":
        return lambda: PGD(eps=0.1, steps=10)
    if what == "entering the block":
        oracle = InputGradient(model)
        return lambda: oracle.__enter__().__exit__()
    if what == "PGD-10":
        attack = PGD(eps=0.1, steps=10)
        return lambda: attack(model, x, y)
    loss = {
        "SCORPIO": SCORPIO(eps=0.1, mode="keep"),
        "TRADES": TRADES(eps=0.1, mode="keep"),
        "PGD-4 training": AdversarialTraining(PGD(eps=0.1, steps=4, mode="keep")),
        "CURE": CURE(mode="keep"),
    }[what]

    def step() -> None:
        model.zero_grad()
        loss(model, x, y).backward()

    return step


def main() -> None:
    """For each line (name, times) of the input: the least seconds of a call."""
    torch.set_num_threads(1)
    calls: dict[str, Callable[[], object]] = {}
    for line in sys.stdin:
        name, times = json.loads(line)
        if name not in calls:
            calls[name] = call(name)
        least = float("inf")
        for _ in range(times):
            start = time.perf_counter()
            calls[name]()
            least = min(least, time.perf_counter() - start)
        print(json.dumps(least), flush=True)


if __name__ == "__main__":
    main()
