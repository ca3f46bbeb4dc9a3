"""Presets of `soatfast compare` and `soatfast train`: other defaults for their options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from soatfast.commands.compare import CompareConfig
from soatfast.commands.train import TrainingConfig
from soatfast.train.config import TrainConfig
from soatfast.train.subject import Subject

TABLES_METHODS = (
    "standard",
    "pgd10",
    "gradient-penalty",
    "cure",
    "scorpio-fe1",
    "scorpio-cd1",
    "pgd3",
    "scorpio-ball",
    "scorpio-cd",
    "pgd7",
    "trades",
    "soar",
    "stn",
    "soat-newton",
    "soat",
    "haat",
)
"""Rows of the papers' tables; soat is the trust-region one, which no paper has."""
TABLES_ATTACKS = (
    *("clean", "fgsm", "pgd20", "pgd40", "ul", "tl", "um", "tm", "um20", "um40", "um100"),
    *("quadratic", "asod", "soae", "soae-tr", "haat"),
)
"""Columns of the papers' tables. AutoAttack takes longer than all of them together: name it where it is wanted."""


def tables() -> CompareConfig:
    """The papers' grid on small data: three seeds, digits; ResNet-18 where a GPU is there, else the small CNN."""
    return CompareConfig(
        preset="tables",
        run_dir=Path("runs/tables"),
        methods=TABLES_METHODS,
        attacks=TABLES_ATTACKS,
        seeds=3,
        model="resnet18" if torch.cuda.is_available() else "small-cnn",
    )


def quick() -> CompareConfig:
    """A result in seconds: 8x8 digits, three methods, few epochs. Its figures show what a table looks like, no more."""
    return CompareConfig(
        preset="quick",
        run_dir=Path("runs/quick"),
        methods=("standard", "pgd10", "scorpio"),
        attacks=("clean", "fgsm", "pgd40"),
        data="digits8",
        eps=0.1,
        train_samples=600,
        test_samples=200,
        train=TrainConfig(epochs=4, batch_size=50, lr=3e-3, eps_ramp_epochs=2),
    )


def fast() -> TrainingConfig:
    """The fastest known road to a robust CIFAR-10 model at Linf 8/255: docs/natural-images.md."""
    return TrainingConfig(
        preset="fast",
        run_dir=Path("runs/fast"),
        method="replay-wide",
        eps=8 / 255,
        subject=Subject(data="cifar10", model="fast"),
        train=fast_recipe(),
    )


def fast_recipe() -> TrainConfig:
    """How the preset trains. bfloat16 where the hardware computes in it: elsewhere it is slower than float32."""
    quick = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
    return TrainConfig(
        epochs=6,
        batch_size=128,
        lr=0.2,
        optimizer="sgd",
        nesterov=True,
        weight_decay=5e-4,
        schedule="triangle",
        average=0.995,
        eps_ramp_epochs=0,
        precision="bf16" if quick else "no",
        channels_last=True,
        crop_padding=4,
        flip=True,
    )


def defaults(words: Sequence[str]) -> CompareConfig | TrainingConfig:
    """The defaults that a command line asks for by `--preset`: what else it says counts over them.

    >>> defaults(["compare", "--preset", "tables", "--seeds", "1"]).seeds
    3
    >>> defaults(["compare"]) == CompareConfig(), defaults(["train"]) == TrainingConfig()
    (True, True)
    >>> defaults(["train", "--preset=fast"]).subject.model
    'fast'
    """
    wanted = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--preset"]
    wanted += [word.partition("=")[2] for word in words if word.startswith("--preset=")]
    if words[:1] == ["train"]:
        return fast() if wanted == ["fast"] else TrainingConfig()
    made = {"tables": tables, "quick": quick}.get(wanted[0] if len(wanted) == 1 else "", CompareConfig)
    return made()
