"""Whether a statement about measured figures holds: an interval of a difference, held against a range."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from soatfast.commands.papers.measured import Measured

Verdict = Literal["holds", "does not hold", "not separable with these seeds", "not measured"]
HOLDS: Verdict = "holds"
FAILS: Verdict = "does not hold"
OPEN: Verdict = "not separable with these seeds"
MISSING: Verdict = "not measured"

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Part:
    """low < left - right < high, in points of accuracy.

    left, right: (method, attack) with the keys of METHODS and ATTACKS.
    """

    left: tuple[str, str]
    right: tuple[str, str]
    low: float = -math.inf
    high: float = math.inf

    def verdict(self, found: Measured) -> Verdict:
        """The sure answer where the interval of the difference lies on one side of the range's ends, else OPEN."""
        cells = [found.accuracy.get(method, {}).get(attack) for method, attack in (self.left, self.right)]
        if cells[0] is None or cells[1] is None:
            return MISSING
        low, high = difference(cells[0], cells[1], paired=self.left[0] == self.right[0])
        if high <= self.low or low >= self.high:
            return FAILS
        inside = (self.low == -math.inf or low > self.low) and (self.high == math.inf or high < self.high)
        return HOLDS if inside else OPEN


@dataclass(frozen=True)
class Cheaper:
    """A training step of `left` makes fewer backward passes than one of `right`. Counted, so no seed matters."""

    left: str
    right: str

    def verdict(self, found: Measured) -> Verdict:
        if self.left not in found.training or self.right not in found.training:
            return MISSING
        return HOLDS if found.training[self.left].backward < found.training[self.right].backward else FAILS


def difference(a: Sequence[float], b: Sequence[float], paired: bool) -> tuple[float, float]:
    """The 95 % interval of mean(a) - mean(b), by Student's t: of the pairs, or Welch's of two samples.

    Pairs are two attacks on the same models. One value has no spread: the interval is then all numbers.

    >>> low, high = difference([70.0, 71.0, 72.0], [60.0, 61.0, 63.0], paired=False)
    >>> round(low, 1), round(high, 1)
    (6.5, 12.8)
    """
    if min(len(a), len(b)) < 2:
        return -math.inf, math.inf
    if paired:
        gaps = [x - y for x, y in zip(a, b, strict=True)]
        centre, error, freedom = statistics.fmean(gaps), statistics.stdev(gaps) / math.sqrt(len(gaps)), len(gaps) - 1.0
    else:
        centre = statistics.fmean(a) - statistics.fmean(b)
        parts = [statistics.variance(v) / len(v) for v in (a, b)]
        error = math.sqrt(sum(parts))
        freedom = sum(parts) ** 2 / sum(s**2 / (len(v) - 1) for s, v in zip(parts, (a, b), strict=True)) if error else 1
    if error == 0:
        return centre, centre
    from scipy.stats import t  # takes a second to import

    reach = float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * error
    return centre - reach, centre + reach


def together(verdicts: Sequence[Verdict]) -> Verdict:
    """Of all parts: one that fails decides, then one that is missing, then one that is open."""
    return next((v for v in (FAILS, MISSING, OPEN) if v in verdicts), HOLDS)
