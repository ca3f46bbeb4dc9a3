"""What a projection's row is made of, and its L1 threshold after a far move; see :mod:`._ball`."""

# ruff: noqa: SIM300 - branches on constexprs read better written out
from __future__ import annotations

import triton
import triton.language as tl

from soatfast.ops.triton._math import divide, no_less_than_zero, reciprocal, sign, smaller
from soatfast.ops.triton._row import ONE, clean, load, positive_or_one, unit_lmo

_MAX_ROUNDS = tl.constexpr(8)  # a bound, 2 or 3 are usual


@triton.jit
def unit_step(g, step, NORM: tl.constexpr):
    """step_p(g): the unit LMO, but for p = 1 sgn(g)/count on the entries that reach the level. [BLOCK]"""
    _, m, total, level, count = step
    if NORM == ONE:
        chosen = (tl.abs(g) >= level) & (g != 0)
        value = tl.where(chosen, sign(g) * reciprocal(positive_or_one(count)), 0.0)
    else:
        value = unit_lmo(g, 0, m, total, 0, m, m, NORM)
    return value


@triton.jit
def delta_chunk(source, step, offs, mask, NORM: tl.constexpr, STEP: tl.constexpr, ACC: tl.constexpr):
    """(delta, x) of a chunk; 0 beyond the row's end. 2 x [BLOCK]"""
    x_adv_ptr, g_ptr, x_ptr, base, _ = source
    moved = load(x_adv_ptr + base, offs, mask, ACC)
    x = load(x_ptr + base, offs, mask, ACC)
    if STEP:
        g = clean(load(g_ptr + base, offs, mask, ACC))
        moved += step[0] * unit_step(g, step, NORM)
    return moved - x, x


@triton.jit
def room_of(delta, x, lower, upper, EXACT: tl.constexpr):
    """Distance to the box in the direction of delta, or infinity. [BLOCK]"""
    if EXACT:
        room = tl.where(delta > 0, upper - x, x - lower)
    else:
        room = tl.full(delta.shape, float("inf"), delta.dtype)
    return room


@triton.jit
def split_threshold(
    base,
    delta,
    x,
    eps,
    lower,
    upper,
    source,
    step,
    NORM: tl.constexpr,
    EXACT: tl.constexpr,
    STEP: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """tau of a far move as base + middle + rest, all float64.

    tau itself is as large as the move, and its rounding would be larger than eps; the differences |delta_i| - base of
    the entries that move are exact. Each round finds what is missing from those and adds it to the base, until the
    base holds all of tau that a double can; one more finds what the middle lacks.
    """
    target = eps.to(tl.float64)
    reach = 1e-3 * base + target
    near = target * (2.8e-17 if ACC == tl.float64 else 1.5e-8)
    low, high, rest, middle = -reach, reach, target * 0, target * 0
    refined = reach < 0
    steps, rounds = tl.zeros([], tl.int32), tl.zeros([], tl.int32)
    moving = reach > 0
    while moving:
        norm, free = _split_sums(
            delta, x, base, middle, rest, lower, upper, source, step, NORM, EXACT, STEP, ON_CHIP, BLOCK, ACC
        )
        low = tl.where(norm > target, rest, low)
        high = tl.where(norm > target, high, rest)
        better = rest + divide(norm - target, positive_or_one(free))
        outside = (free == 0) | (better < low) | (better > high)
        better = tl.where(outside | ((steps > 16) & (steps % 2 == 1)), low + (high - low) * 0.5, better)
        found = (tl.abs(better - rest) <= near) | (steps >= 199)
        rest = better
        steps += 1
        if found:
            total = base + rest
            last = (total == base) | (rounds >= _MAX_ROUNDS)
            moving = (last == 0) | (refined == 0)
            if moving:
                middle = tl.where(last, rest, middle)
                base = tl.where(last, base, total)
                refined = last
                low, high, rest = -reach, reach, target * 0
                steps = rounds * 0
            rounds += 1
    return base, middle, rest


@triton.jit
def _split_sums(
    delta,
    x,
    base,
    middle,
    rest,
    lower,
    upper,
    source,
    step,
    NORM: tl.constexpr,
    EXACT: tl.constexpr,
    STEP: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """Over the row: the sum of min(max(|delta| - base - middle - rest, 0), room), and how many lie inside."""
    if ON_CHIP:
        a, b = _split_tile_sums(delta, x, base, middle, rest, lower, upper, EXACT)
    else:
        a, b = tl.zeros([], tl.float64), tl.zeros([], tl.float64)
        for start in range(0, source[4], BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            chunk, centre = delta_chunk(source, step, offs, offs < source[4], NORM, STEP, ACC)
            more_a, more_b = _split_tile_sums(chunk, centre, base, middle, rest, lower, upper, EXACT)
            a += more_a
            b += more_b
    return a, b


@triton.jit
def _split_tile_sums(delta, x, base, middle, rest, lower, upper, EXACT: tl.constexpr):
    delta = clean(delta)
    left = no_less_than_zero(tl.abs(delta).to(tl.float64) - base - middle - rest)
    room = room_of(delta, x, lower, upper, EXACT).to(tl.float64)
    return tl.sum(smaller(left, room), 0), tl.sum(((left > 0) & (left < room)).to(tl.float64), 0)
