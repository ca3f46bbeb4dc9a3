"""PGD with engine "folded" against eager and against as many bare passes, by network and batch.

`python -m benchmarks.folded_passes`: the ways take turns, and medians are of the turns. Bare passes are a forward and
`torch.autograd.grad` to the input, of a model whose parameters are frozen. Each folded attack includes its folding.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from soatfast.attacks import PGD
from soatfast.gradients.folded import foldable
from soatfast.train.models import ResNet18, SmallCNN, WideResNet

ENGINES = ("eager", "folded", "channels_last", "channels_last+folded")


def networks() -> dict[str, Callable[[], nn.Module]]:
    found: dict[str, Callable[[], nn.Module]] = {
        "small-cnn": lambda: SmallCNN(3, size=32),
        "resnet18 of width 16": lambda: ResNet18(width=16),
        "WRN-16-1": lambda: WideResNet(depth=16, widen=1),
    }
    try:
        import timm
    except ImportError:
        return found
    return found | {
        "timm mobilenetv3_small_050": lambda: timm.create_model("mobilenetv3_small_050", num_classes=10),
    }


def bare(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        leaf = x.detach().requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="part of a network's name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| network | batch | folded | ms of bare passes | {' | '.join(ENGINES)} |")
    for name, make in networks().items():
        if arguments.only not in name:
            continue
        torch.manual_seed(0)
        model = make().eval().requires_grad_(False)
        count = foldable(model)
        for batch in arguments.batches:
            x, y = torch.rand(batch, 3, 32, 32), torch.arange(batch) % 10
            ways: dict[str, Callable[[], object]] = {
                "bare": lambda x=x, y=y, model=model: bare(model, x, y, arguments.steps)
            }
            for engine in ENGINES:
                attack = PGD(eps=8 / 255, steps=arguments.steps, random_start=False, engine=engine)  # type: ignore[arg-type]
                ways[engine] = lambda x=x, y=y, model=model, attack=attack: attack(model, x, y)
            times: dict[str, list[float]] = {way: [] for way in ways}
            for turn in range(arguments.rounds + 1):
                for way, run in ways.items():
                    start = time.perf_counter()
                    run()
                    if turn:
                        times[way].append(time.perf_counter() - start)
            medians = {way: statistics.median(found) for way, found in times.items()}
            ratios = " | ".join(f"{medians[engine] / medians['bare']:.2f}" for engine in ENGINES)
            folded = f"{count.folded} of {count.total}"
            print(f"| {name} | {batch} | {folded} | {1e3 * medians['bare']:.0f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
