"""The maximiser over ball and box, p = 1 and 2: two numbers of the row, then an elementwise formula.

    p = 1   a level of |g| and an index: entries above it, and those at it before the index, are filled; the one at the
            index gets what is left of eps
    p = 2   the factor t with sum_i min(t |g_i|, room_i)^2 = eps^2

Sums over the row are taken of the tile at hand (ON_CHIP), or chunk by chunk, made again from memory each time, of
    source = (g_ptr, g1_ptr, x_ptr, base, far, inverse_h, entries)
where g is the gradient, or with MODEL that of the quadratic model. They are float64: what is left of eps is a
difference, and |g| may span more than a float32's range. For p = inf the maximiser is the ball's, clamped.
"""

# ruff: noqa: SIM300 - branches on constexprs read better written out
from __future__ import annotations

import triton
import triton.language as tl

from soatfast.ops.triton._math import clamp, divide, root, sign
from soatfast.ops.triton._row import ONE, clean, load, model_gradient

_LEAST = tl.constexpr(1e-150)  # of max|g|: below, where squares end, an entry counts as 0 for p = 2
_NEAR = tl.constexpr(1.0 + 1e-15)
_MAX_STEPS = tl.constexpr(200)  # of the search for the factor: a bound, 3 to 8 are usual
_ABOVE, _TIED, _BEFORE, _START, _STEP = (tl.constexpr(k) for k in range(5))  # kinds of sums


@triton.jit
def box_numbers(
    g,
    x,
    source,
    m,
    eps,
    lower,
    upper,
    NORM: tl.constexpr,
    MODEL: tl.constexpr,
    CENTRAL: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """(level, edge, rest) for p = 1, (factor, 0, unit) for p = 2; m = max|g|."""
    box = (g, x, source, eps, lower, upper)
    if NORM == ONE:
        number, edge, rest = _fill(box, m, MODEL, CENTRAL, ON_CHIP, BLOCK, ACC)
    else:
        number, edge, rest = _stretch(box, m, MODEL, CENTRAL, ON_CHIP, BLOCK, ACC)
    return number, edge, rest


@triton.jit
def box_lmo(g, x, offs, numbers, eps, lower, upper, NORM: tl.constexpr):
    """s of a clean tile, elementwise in the row's numbers. [BLOCK]"""
    number, edge, rest = numbers
    if NORM == ONE:
        size = tl.abs(g)
        full = (size > number) | ((size == number) & (offs < edge))
        last = (size == number) & ((offs == edge) | (edge < 0))
        value = tl.where(full, eps, tl.where(last, rest.to(g.dtype), 0.0)) * sign(g)
    else:
        size = _relative(g, rest)
        value = tl.where(size > 0, size * number, 0.0).to(g.dtype) * sign(g)  # infinite: clamped to the room
    return clamp(value, lower - x, upper - x)


@triton.jit
def _fill(box, m, MODEL: tl.constexpr, CENTRAL: tl.constexpr, ON_CHIP: tl.constexpr, BLOCK: tl.constexpr, ACC):
    """The level bit by bit, as non-negative floats order like their bits; the index by halving.

    edge -1: only one entry is at the level."""
    eps, entries = box[3].to(tl.float64), box[2][6]
    if ACC == tl.float64:
        pattern = tl.zeros([], tl.int64)
        bit = tl.full([], 1 << 62, tl.int64)
    else:
        pattern = tl.zeros([], tl.int32)
        bit = tl.full([], 1 << 30, tl.int32)
    while bit > 0:
        level = (pattern | bit).to(ACC, bitcast=True)
        if level <= m:  # a NaN's pattern is not
            room, _ = _sums(box, level, 0, 0, _ABOVE, MODEL, CENTRAL, ON_CHIP, BLOCK, ACC)
            pattern = tl.where(room >= eps, pattern | bit, pattern)
        bit = bit >> 1
    level = pattern.to(ACC, bitcast=True)
    above, tied = _sums(box, level, 0, 0, _TIED, MODEL, CENTRAL, ON_CHIP, BLOCK, ACC)
    rest = eps - above
    edge = tl.full([], -1, tl.int32)
    if (tied > 1) & (level > 0):
        edge += 1
        end = edge + entries
        spent = rest * 0
        while edge < end:
            middle = edge + (end - edge + 1) // 2
            taken, _ = _sums(box, level, middle, 0, _BEFORE, MODEL, CENTRAL, ON_CHIP, BLOCK, ACC)
            fits = taken <= rest
            edge = tl.where(fits, middle, edge)
            end = tl.where(fits, end, middle - 1)
            spent = tl.where(fits, taken, spent)
        rest -= spent
    nothing = (m > 0) & (eps > 0)
    level = tl.where(nothing, level, float("inf"))
    return level, edge, rest


@triton.jit
def _stretch(box, m, MODEL: tl.constexpr, CENTRAL: tl.constexpr, ON_CHIP: tl.constexpr, BLOCK: tl.constexpr, ACC):
    """Newton's steps from below: entries that have reached their room keep it, so no step passes the root. After 16
    of them every second one is a bisection by ratio."""
    wide, eps = m.to(tl.float64), box[3].to(tl.float64)
    unit = divide(tl.full([], 1.0, tl.float64), tl.where(wide > 1e-300, wide, 1e-300))
    most, total = _sums(box, 0, 0, unit, _START, MODEL, CENTRAL, ON_CHIP, BLOCK, ACC)
    t = divide(tl.full([], 1.0, tl.float64), root(tl.where(total > 0, total, 1.0)))
    low, high = t, tl.full([], float("inf"), tl.float64)
    steps = tl.zeros([], tl.int32)
    moving = (most > 1) & (wide > 0) & (eps > 0)
    while moving:
        free, capped = _sums(box, t, 0, unit, _STEP, MODEL, CENTRAL, ON_CHIP, BLOCK, ACC)
        over = t * t * free + capped > 1
        left = tl.where(capped < 1, 1.0 - capped, 0.0)
        better = tl.where(free > 0, root(divide(left, tl.where(free > 0, free, 1.0))), 0.0)
        high = tl.where(over, t, high)
        low = tl.where((over == 0) & (better > low), better, low)
        found = ((over == 0) & (better <= t * _NEAR)) | (high <= low * _NEAR)
        middle = tl.where(high < float("inf"), low * root(divide(high, low)), low * 16)
        t = tl.where(over | ((steps > 16) & (steps % 2 == 1)), middle, low)
        steps += 1
        moving = (found == 0) & (steps < _MAX_STEPS)
    factor = tl.where(most > 1, low * eps, float("inf"))
    return tl.where((wide > 0) & (eps > 0), factor, 0.0), steps * 0, unit


@triton.jit
def _relative(g, unit):
    """|g| in units of max|g|, in float64; 0 where it is below the least. [BLOCK]"""
    size = tl.abs(g).to(tl.float64) * unit
    return tl.where(size > _LEAST, size, 0.0)


@triton.jit
def _sums(
    box,
    number,
    edge,
    unit,
    KIND: tl.constexpr,
    MODEL: tl.constexpr,
    CENTRAL: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """:func:`_tile_sums` over the row."""
    g, x, source, eps, lower, upper = box
    g_ptr, g1_ptr, x_ptr, base, far, inverse_h, entries = source
    if ON_CHIP:
        a, b = _tile_sums(g, x, tl.arange(0, BLOCK), number, edge, unit, eps, lower, upper, KIND)
    else:
        a, b = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            if MODEL:
                chunk = model_gradient(g_ptr, g1_ptr, base, far, offs, mask, inverse_h, CENTRAL, ACC)
            else:
                chunk = clean(load(g_ptr + base, offs, mask, ACC))
            centre = load(x_ptr + base, offs, mask, ACC)
            more_a, more_b = _tile_sums(chunk, centre, offs, number, edge, unit, eps, lower, upper, KIND)
            a += more_a
            b += more_b
    return a, b


@triton.jit
def _tile_sums(g, x, offs, number, edge, unit, eps, lower, upper, KIND: tl.constexpr):
    """Two float64 sums over a tile, by kind.

    p = 1: room of |g| >= number; room of |g| > number and how many are equal; room of those equal before the edge.
    p = 2: squares of all shares room / eps, and of all sizes; squares of the sizes that number leaves below their
    share, and of the shares of the others.
    """
    wide = x.to(tl.float64)
    room = tl.where(g > 0, upper.to(tl.float64) - wide, wide - lower.to(tl.float64))
    room = tl.where((g != 0) & (room > 0), room, 0.0)
    size = tl.abs(g)
    b = tl.zeros([], tl.float64)
    if KIND == _ABOVE:
        a = tl.sum(tl.where(size >= number, room, 0.0), 0)
    elif KIND == _TIED:
        a = tl.sum(tl.where(size > number, room, 0.0), 0)
        b = tl.sum((size == number).to(tl.float64), 0)
    elif KIND == _BEFORE:
        a = tl.sum(tl.where((size == number) & (offs < edge), room, 0.0), 0)
    else:
        r = _relative(g, unit)
        share = tl.where(r > 0, divide(room, eps.to(tl.float64)), 0.0)
        if KIND == _START:
            a = tl.sum(share * share, 0)
            b = tl.sum(r * r, 0)
        else:
            below = number * r < share
            a = tl.sum(tl.where(below, r * r, 0.0), 0)
            b = tl.sum(tl.where(below, 0.0, share * share), 0)
    return a, b
