"""What the ports share: a network, batches that look like images, and the options."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn

import soatfast as sf

EPS, MEASURED = 8 / 255, ("small-cnn", "resnet18")


def options(described: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=described)
    parser.add_argument("--network", choices=MEASURED, default="small-cnn")
    parser.add_argument("--width", type=int, default=16, help="of the ResNet-18; 64 is the usual one")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3, help="optimizer steps")
    return parser.parse_args()


def network(name: str, width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return sf.train.ResNet18(width=width) if name == "resnet18" else sf.train.SmallCNN(in_channels=3, size=32)


def batches(size: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Smooth coloured patterns (size, 3, 32, 32) in [0, 1], one for each of ten classes, under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.nn.functional.interpolate(torch.rand(10, 3, 4, 4, generator=generator), 32, mode="bilinear")
    found = []
    for _ in range(count):
        y = torch.randint(10, (size,), generator=generator)
        noise = 0.2 * torch.randn(size, 3, 32, 32, generator=generator)
        found.append(((patterns[y] + noise).clamp(0, 1), y))
    return found


def begin(described: str | None) -> tuple[nn.Module, torch.optim.Optimizer, list[tuple[Tensor, Tensor]]]:
    """The network, its optimizer and the batches of a script that is run by itself."""
    chosen = options(described)
    model = network(chosen.network, chosen.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    return model, optimizer, batches(chosen.batch_size, chosen.steps)
