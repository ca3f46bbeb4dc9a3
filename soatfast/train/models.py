"""Classifiers for the training runs: SmallCNN (digits), FastVGG (small natural images), CIFAR ResNet-18, WRN-34-10.

All take images in [0, 1] and normalise inside (`Normalize`), so that eps, step sizes and bounds keep the unit
of a pixel everywhere outside the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """(x - mean) / std per channel, as the first layer of a model. Constants, not part of the state dict."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std):
            raise ValueError(f"mean and std must have the same length, got {len(mean)} and {len(std)}")
        if any(s <= 0 for s in std):
            raise ValueError(f"std must be positive, got {tuple(std)}")
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def _normalize(in_channels: int) -> nn.Module:
    """CIFAR's statistics for three channels; mean 1/2 and std 1/2 (that is [-1, 1]) for any other number."""
    if in_channels == 3:
        return Normalize(CIFAR_MEAN, CIFAR_STD)
    return Normalize([0.5] * in_channels, [0.5] * in_channels)


class SmallCNN(nn.Module):
    """Two strided 4x4 convolutions and two linear layers with ReLU: (B, C, size, size) -> (B, classes).

    Nothing in it depends on train/eval mode. With the default width of 16 it has 166 406 parameters (1
    channel, 10 classes); it is what the demo trains. The input is used as it is, in [0, 1].
    """

    def __init__(
        self, in_channels: int = 1, classes: int = 10, width: int = 16, hidden: int = 100, size: int = 28
    ) -> None:
        super().__init__()
        if size < 4:
            raise ValueError(f"size must be at least 4, got {size}")
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(2 * width * (size // 4) ** 2, hidden), nn.ReLU(), nn.Linear(hidden, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class FastBlock(nn.Module):
    """conv-pool-bn-gelu-conv-bn-gelu: half the height and width, ``planes`` channels."""

    def __init__(self, in_planes: int, planes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.gelu(self.bn1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.bn2(self.conv2(out)))


class FastVGG(nn.Module):
    """A small VGG made for speed on small images: (B, C, size, size) -> (B, classes).

    A 2x2 convolution to 3/4 ``width`` channels, three blocks of ``width``, 2 and 4 times as many, each of which halves
    the image, the largest value of each channel, and a linear layer. It follows the clean-accuracy record network
    airbench (Jordan 2024) without its whitened first layer and identity start: simpler, and level in one run
    (docs/natural-images.md). 295 096 parameters at the default width, 3 channels and 10 classes.
    """

    def __init__(self, in_channels: int = 3, classes: int = 10, width: int = 32, size: int = 32) -> None:
        super().__init__()
        if width < 4:
            raise ValueError(f"width must be at least 4, got {width}")
        if size < 9:
            raise ValueError(f"three halvings after a 2x2 convolution need images of at least 9x9 pixels, got {size}")
        self.normalize = _normalize(in_channels)
        self.conv = nn.Conv2d(in_channels, 3 * width // 4, 2)
        planes = (3 * width // 4, width, 2 * width, 4 * width)
        self.blocks = nn.Sequential(*(FastBlock(a, b) for a, b in itertools.pairwise(planes)))
        self.linear = nn.Linear(planes[-1], classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(F.gelu(self.conv(self.normalize(x)))).amax(dim=(2, 3)))


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn plus the shortcut, then ReLU (He et al. 2016a); 1x1 convolution where the shape
    changes.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_planes != planes:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 with the CIFAR stem (3x3, no pooling), 11 173 962 parameters for 10 classes."""

    def __init__(self, in_channels: int = 3, classes: int = 10, width: int = 64) -> None:
        super().__init__()
        self.normalize = _normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        planes = width
        for stage in range(4):
            for block in range(2):
                out_planes = width * 2**stage
                blocks.append(BasicBlock(planes, out_planes, stride=2 if stage > 0 and block == 0 else 1))
                planes = out_planes
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(planes, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(torch.relu(self.bn1(self.conv1(self.normalize(x)))))
        return self.linear(out.mean(dim=(2, 3)))


class WideBlock(nn.Module):
    """Pre-activation block of WideResNet: bn-relu-conv-bn-relu-conv plus the shortcut."""

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_planes)
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.shortcut: nn.Module | None = None
        if in_planes != planes:
            self.shortcut = nn.Conv2d(in_planes, planes, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = torch.relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(activated)
        return self.conv2(torch.relu(self.bn2(self.conv1(activated)))) + skip


class WideResNet(nn.Module):
    """WideResNet-depth-widen (Zagoruyko & Komodakis 2016); WRN-34-10 has 46 160 474 parameters."""

    def __init__(self, in_channels: int = 3, classes: int = 10, depth: int = 34, widen: int = 10) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, 28, 34, ...), got {depth}")
        self.normalize = _normalize(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        planes = 16
        for stage in range(3):
            for block in range((depth - 4) // 6):
                out_planes = 16 * widen * 2**stage
                blocks.append(WideBlock(planes, out_planes, stride=2 if stage > 0 and block == 0 else 1))
                planes = out_planes
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(planes)
        self.linear = nn.Linear(planes, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn(self.blocks(self.conv1(self.normalize(x)))))
        return self.linear(out.mean(dim=(2, 3)))


MODELS: dict[str, Callable[..., nn.Module]] = {
    "small-cnn": SmallCNN,
    "fast": FastVGG,
    "resnet18": ResNet18,
    "wrn-34-10": WideResNet,
}


def build_model(name: str, in_channels: int, classes: int, **options: int) -> nn.Module:
    """The model called `name` in MODELS with fresh weights from torch's global generator.

    `options` go to its constructor (`width` of SmallCNN, FastVGG and ResNet18, `size` of the first two, `depth` and
    `widen` of WideResNet).
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    if in_channels < 1 or classes < 2:
        raise ValueError(f"expected in_channels >= 1 and classes >= 2, got {in_channels} and {classes}")
    return MODELS[name](in_channels=in_channels, classes=classes, **options)


def model_options(name: str, width: int | None, size: int) -> dict[str, int]:
    """Options of :func:`build_model`: a width that is given, and the image size where the model asks for it."""
    options = {} if width is None else {"width": width}
    return {**options, "size": size} if name in ("small-cnn", "fast") else options
