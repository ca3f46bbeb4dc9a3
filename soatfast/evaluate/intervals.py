"""What chance leaves open: the interval of an accuracy, and two models on the same samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from torch import Tensor

LEVEL = 0.95


def interval(correct: int, samples: int) -> tuple[float, float]:
    """The 95 % interval (low, high) of a share p = correct/samples: Wilson (1927).

        (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n),   z = 1.96

    >>> low, high = interval(90, 100)
    >>> round(low, 4), round(high, 4)
    (0.8256, 0.9448)
    """
    if samples < 1:
        raise ValueError(f"an interval needs at least one sample, got {samples}")
    if not 0 <= correct <= samples:
        raise ValueError(f"correct must lie in 0..{samples}, got {correct}")
    z, p = NormalDist().inv_cdf((1 + LEVEL) / 2), correct / samples
    middle = p + z * z / (2 * samples)
    half = z * math.sqrt(p * (1 - p) / samples + (z / (2 * samples)) ** 2)
    scale = 1 + z * z / samples
    low, high = (middle - half) / scale, (middle + half) / scale
    return (0.0 if correct == 0 else low), (1.0 if correct == samples else high)


def in_percent(share: tuple[float, float]) -> str:
    """An interval of shares as tables show it.

    >>> in_percent((0.8256, 0.9448))
    '82.6 to 94.5'
    """
    return f"{100 * share[0]:.1f} to {100 * share[1]:.1f}"


@dataclass(frozen=True)
class Paired:
    """Two models, or attacks, on the same samples.

    difference: accuracy of the first minus that of the second. first_only, second_only: samples that only the first,
    only the second is right on. p_value: of McNemar's exact test that both are as often right.
    """

    difference: float
    first_only: int
    second_only: int
    p_value: float


def paired(first: np.ndarray | Tensor, second: np.ndarray | Tensor) -> Paired:
    """Compare `correct` (N,) of two evaluations of the same samples in the same order, by McNemar's exact test (SciPy).

    Only samples on which they differ tell: of n such the number that the first is right on is binomial (n, 1/2) where
    both are equally good.

    >>> paired(np.array([True] * 8 + [False] * 2), np.array([False] * 6 + [True] * 2 + [False] * 2))
    Paired(difference=0.6, first_only=6, second_only=0, p_value=0.03125)

    Raises:
        TypeError: not arrays of bools. ValueError: other shapes than (N,) and (N,), or no samples.
    """
    from scipy import stats  # half a second: no import of the package should pay it

    a, b = _flags(first), _flags(second)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"expected two arrays (N,) of the same samples, got shapes {a.shape} and {b.shape}")
    only = int((a & ~b).sum()), int((~a & b).sum())
    p_value = float(stats.binomtest(only[0], sum(only)).pvalue) if sum(only) else 1.0
    return Paired((only[0] - only[1]) / len(a), *only, p_value)


def _flags(correct: Any) -> np.ndarray:
    found = np.asarray(correct.cpu() if isinstance(correct, Tensor) else correct)
    if found.dtype != np.bool_:
        raise TypeError(f"expected an array of bools, True where a sample is right, got {found.dtype}")
    return found
