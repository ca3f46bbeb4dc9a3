"""The k-th largest |g| of a row, exactly, without sorting."""

# ruff: noqa: SIM300 - branches on constexprs read better written out
from __future__ import annotations

import triton
import triton.language as tl

from soatfast.ops.triton._row import clean, load


@triton.jit
def kth_largest(g, row_ptr, entries, k, ON_CHIP: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """The k-th largest |g| of the row, and how many entries are not 0 and at least that.

    Non-negative floats order like their bit patterns: the pattern is found bit by bit from the top, as the
    largest one that k entries reach.
    """
    if ACC == tl.float64:
        pattern = tl.zeros([], tl.int64)
        bit = tl.full([], 1 << 62, tl.int64)
    else:
        pattern = tl.zeros([], tl.int32)
        bit = tl.full([], 1 << 30, tl.int32)
    while bit > 0:
        level = (pattern | bit).to(ACC, bitcast=True)  # may be a NaN's pattern: no entry reaches it
        enough = _at_least(g, row_ptr, entries, level, ON_CHIP, BLOCK, ACC) >= k
        pattern = tl.where(enough, pattern | bit, pattern)
        bit = bit >> 1
    nonzero = tl.where(pattern > 0, pattern, 1).to(ACC, bitcast=True)
    count = _at_least(g, row_ptr, entries, nonzero, ON_CHIP, BLOCK, ACC)
    return pattern.to(ACC, bitcast=True), count.to(ACC)


@triton.jit
def _at_least(g, row_ptr, entries, level, ON_CHIP: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """How many |g| of the row are at least the level > 0."""
    if ON_CHIP:
        number = tl.sum((tl.abs(g) >= level).to(tl.int32), 0)
    else:
        number = tl.zeros([], tl.int32)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            chunk = clean(load(row_ptr, offs, offs < entries, ACC))
            number += tl.sum((tl.abs(chunk) >= level).to(tl.int32), 0)
    return number
