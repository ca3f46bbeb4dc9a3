"""Presets of `soatfast compare`: other defaults for its options."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from soatfast.commands.compare import CompareConfig

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


def defaults(words: Sequence[str]) -> CompareConfig:
    """The defaults that a command line asks for by `--preset`: what else it says counts over them.

    >>> defaults(["compare", "--preset", "tables", "--seeds", "1"]).seeds
    3
    >>> defaults(["compare"]) == CompareConfig()
    True
    """
    wanted = [words[i + 1] for i, word in enumerate(words[:-1]) if word == "--preset"]
    wanted += [word.partition("=")[2] for word in words if word.startswith("--preset=")]
    return tables() if wanted == ["tables"] else CompareConfig()
