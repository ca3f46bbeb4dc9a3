"""The row of a projection, shared by ``project`` and ``pgd_step``: one number, then an elementwise formula.

The perturbation delta = x_adv (+ alpha step_p(g)) - x is brought into the ball by one number of the row:

    p = inf   none: clamp(delta, -eps, eps)
    p = 2     t in [0, 1] with sum_i min(t |delta_i|, room_i)^2 = eps^2
    p = 1     tau >= 0    with sum_i min(max(|delta_i| - tau, 0), room_i) = eps

room_i is the distance to the box in delta's direction (EXACT), or without end. Sums over the row are taken of
the tile at hand (ON_CHIP), or chunk by chunk, made again from memory each time. What that needs is in two
tuples:
    source = (x_adv_ptr, g_ptr, x_ptr, base, entries)    where the row lies; base is its first index
    step   = (alpha, m, total, level, count)             what makes step_p(g) from g (see :func:`_step_stats`)

A NaN in x_adv or x stays where it is and counts as 0 in the sums.
"""

# ruff: noqa: SIM300 - branches on constexprs read better written out
from __future__ import annotations

import triton
import triton.language as tl

from soatfast.ops.triton._math import clamp, divide, no_less_than_zero, reciprocal, root, sign, smaller
from soatfast.ops.triton._row import (
    INF,
    ONE,
    TWO,
    clean,
    inverse,
    load,
    merge_stats,
    no_stats,
    positive_or_one,
    row_stats,
    scaled,
    store,
    unit_lmo,
)
from soatfast.ops.triton._select import kth_largest

_MAX_STEPS = tl.constexpr(64)  # of the search for tau: a bound, 4 to 10 are usual


@triton.jit
def project_row(
    x_adv_ptr,
    g_ptr,
    x_ptr,
    out_ptr,
    row,
    entries,
    eps,
    alpha,
    lower,
    upper,
    k,
    NORM: tl.constexpr,
    EXACT: tl.constexpr,
    STEP: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """One row: (STEP: move by alpha step_p(g),) bring into the ball, clamp to the box, store."""
    base = row * entries
    source = (x_adv_ptr, g_ptr, x_ptr, base, entries)
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        moved = load(x_adv_ptr + base, offs, mask, ACC)
        x = load(x_ptr + base, offs, mask, ACC)
        if STEP:
            g = clean(load(g_ptr + base, offs, mask, ACC))
            m, total, level, count = _step_stats(g, source, k, NORM, ON_CHIP, BLOCK, ACC)
            step = (alpha, m, total, level, count)
            moved += alpha * _unit_step(g, step, NORM)
        else:
            step = (0, 0, 0, 0, 0)
        delta = moved - x
        number = _row_number(delta, x, source, step, eps, lower, upper, NORM, EXACT, STEP, ON_CHIP, BLOCK, ACC)
        delta = _projected(delta, x, number, eps, lower, upper, NORM, EXACT)
        store(out_ptr + base, offs, clamp(x + delta, lower, upper), mask)
    else:
        if STEP:
            m, total, level, count = _step_stats(0, source, k, NORM, ON_CHIP, BLOCK, ACC)
            step = (alpha, m, total, level, count)
        else:
            step = (0, 0, 0, 0, 0)
        number = _row_number(0, 0, source, step, eps, lower, upper, NORM, EXACT, STEP, ON_CHIP, BLOCK, ACC)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            delta, x = _delta_chunk(source, step, offs, mask, NORM, STEP, ACC)
            delta = _projected(delta, x, number, eps, lower, upper, NORM, EXACT)
            store(out_ptr + base, offs, clamp(x + delta, lower, upper), mask)


@triton.jit
def _step_stats(g, source, k, NORM: tl.constexpr, ON_CHIP: tl.constexpr, BLOCK: tl.constexpr, ACC: tl.constexpr):
    """(m, total, level, count): the row's maximum and scaled sum of squares for p = 2, its k-th largest size
    and how many entries reach it for p = 1."""
    m, total, first = no_stats(ACC)
    level, count = tl.zeros([], ACC), tl.zeros([], ACC)
    _, g_ptr, _, base, entries = source
    if NORM == ONE:
        level, count = kth_largest(g, g_ptr + base, entries, k, ON_CHIP, BLOCK, ACC)
    elif NORM == TWO:
        if ON_CHIP:
            m, total, first = row_stats(g, 0, m, NORM)
        else:
            for start in range(0, entries, BLOCK):
                offs = start + tl.arange(0, BLOCK)  # [BLOCK]
                chunk = clean(load(g_ptr + base, offs, offs < entries, ACC))
                m_b, total_b, first_b = row_stats(chunk, offs, m, NORM)
                m, total, first = merge_stats(m, total, first, m_b, total_b, first_b, m, NORM)
    return m, total, level, count


@triton.jit
def _unit_step(g, step, NORM: tl.constexpr):
    """step_p(g): the unit LMO, but for p = 1 sgn(g)/count on the entries that reach the level. [BLOCK]"""
    _, m, total, level, count = step
    if NORM == ONE:
        chosen = (tl.abs(g) >= level) & (g != 0)
        value = tl.where(chosen, sign(g) * reciprocal(positive_or_one(count)), 0.0)
    else:
        value = unit_lmo(g, 0, m, total, 0, m, m, NORM)
    return value


@triton.jit
def _delta_chunk(source, step, offs, mask, NORM: tl.constexpr, STEP: tl.constexpr, ACC: tl.constexpr):
    """(delta, x) of a chunk; 0 beyond the row's end. 2 x [BLOCK]"""
    x_adv_ptr, g_ptr, x_ptr, base, _ = source
    moved = load(x_adv_ptr + base, offs, mask, ACC)
    x = load(x_ptr + base, offs, mask, ACC)
    if STEP:
        g = clean(load(g_ptr + base, offs, mask, ACC))
        moved += step[0] * _unit_step(g, step, NORM)
    return moved - x, x


@triton.jit
def _room(delta, x, lower, upper, EXACT: tl.constexpr):
    """Distance to the box in the direction of delta, or infinity. [BLOCK]"""
    if EXACT:
        room = tl.where(delta > 0, upper - x, x - lower)
    else:
        room = tl.full(delta.shape, float("inf"), delta.dtype)
    return room


@triton.jit
def _projected(delta, x, number, eps, lower, upper, NORM: tl.constexpr, EXACT: tl.constexpr):
    """delta in the ball, elementwise in the row's number. [BLOCK]"""
    if NORM == INF:
        value = clamp(delta, -eps, eps)
    else:
        if NORM == TWO:
            size = tl.abs(delta) * number[0]
        else:
            size = no_less_than_zero(_size(delta, number[2], eps, EXACT) - number[0])
        value = sign(delta) * smaller(size, _room(delta, x, lower, upper, EXACT))
        if NORM == ONE:
            value = value * number[1]
    return value


@triton.jit
def _size(delta, m, eps, EXACT: tl.constexpr):
    """|delta|; after a far move less max|delta| - eps, below which no entry moves when the box is not looked at.

    max|delta| - |delta| is exact where it is less than eps: |delta| - tau would lose eps in tau's rounding. [BLOCK]
    """
    size = tl.abs(delta)
    if EXACT == 0:
        size = tl.where(m > 2 * eps, no_less_than_zero(eps - (m - size)), size)
    return size


@triton.jit
def _row_number(
    delta,
    x,
    source,
    step,
    eps,
    lower,
    upper,
    NORM: tl.constexpr,
    EXACT: tl.constexpr,
    STEP: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """(t, 1, 0) for p = 2, (tau, share, max|delta|) for p = 1, tau of :func:`_size`; nothing to find for p = inf.

    In a box, after a move that is long beside eps, rounding of tau is no small part of eps: the share brings the row's
    norm back to it.
    """
    number = tl.zeros([], ACC)
    share, m = number + 1, number
    if NORM != INF:
        m, total = _delta_stats(delta, source, step, NORM, STEP, ON_CHIP, BLOCK, ACC)
        if NORM == TWO:
            scale = inverse(m)
            radius = eps * scale
            number = divide(scaled(eps, m), root(positive_or_one(total)))  # as if no entry met the box
            number = tl.where(number > 1, 1.0, number)
            if EXACT:
                # Newton from below: entries that have met the box stay there, so no step passes the solution,
                # and there are at most as many steps as entries; a handful in practice.
                target = radius * radius
                moving = number < 1
                while moving:
                    full, free = _row_sums(
                        delta,
                        x,
                        number,
                        scale,
                        lower,
                        upper,
                        source,
                        step,
                        NORM,
                        EXACT,
                        STEP,
                        ON_CHIP,
                        BLOCK,
                        ACC,
                        eps,
                    )
                    better = root(divide(no_less_than_zero(target - full), positive_or_one(free)))
                    better = tl.where((free > 0) & (better < 1), better, 1.0)
                    moving = (better > number) & (better < 1)
                    number = tl.where(better > number, better, number)
        else:
            # Newton on a decreasing, piecewise linear sum, inside a bracket that every step narrows.
            largest = m
            if EXACT == 0:
                largest = tl.where(m > 2 * eps, eps, m)
            low, high = tl.zeros([], ACC), largest + largest
            near = largest * (4.5e-16 if ACC == tl.float64 else 2.4e-7)
            norm, free = _row_sums(
                delta, x, number, m, lower, upper, source, step, NORM, EXACT, STEP, ON_CHIP, BLOCK, ACC, eps
            )
            moving = norm > eps
            steps = tl.zeros([], tl.int32)
            while moving:
                low = tl.where(norm > eps, number, low)
                high = tl.where(norm > eps, high, number)
                newton = number + divide(norm - eps, positive_or_one(free))
                found = tl.abs(newton - number) <= near
                halve = (newton <= low) | (newton >= high) | (steps % 4 == 3)
                number = tl.where(halve & (found == 0), low + (high - low) * 0.5, newton)
                norm, free = _row_sums(
                    delta, x, number, m, lower, upper, source, step, NORM, EXACT, STEP, ON_CHIP, BLOCK, ACC, eps
                )
                steps += 1
                moving = (found == 0) & (steps < _MAX_STEPS)
            share = tl.where((number > eps) & (norm > eps), divide(eps, positive_or_one(norm)), 1.0)
    return number, share, m


@triton.jit
def _delta_stats(
    delta,
    source,
    step,
    NORM: tl.constexpr,
    STEP: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    """max|delta| of the row and the sum of |delta / max|^p."""
    m, total, first = no_stats(ACC)
    if ON_CHIP:
        m, total, first = row_stats(clean(delta), 0, m, NORM)
    else:
        for start in range(0, source[4], BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            chunk, _ = _delta_chunk(source, step, offs, offs < source[4], NORM, STEP, ACC)
            m_b, total_b, first_b = row_stats(clean(chunk), offs, m, NORM)
            m, total, first = merge_stats(m, total, first, m_b, total_b, first_b, m, NORM)
    return m, total


@triton.jit
def _row_sums(
    delta,
    x,
    number,
    scale,
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
    eps,
):
    """:func:`_tile_sums` over the row."""
    if ON_CHIP:
        a, b = _tile_sums(delta, x, number, scale, lower, upper, eps, NORM, EXACT)
    else:
        a, b = tl.zeros([], ACC), tl.zeros([], ACC)
        for start in range(0, source[4], BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            chunk, centre = _delta_chunk(source, step, offs, offs < source[4], NORM, STEP, ACC)
            more_a, more_b = _tile_sums(chunk, centre, number, scale, lower, upper, eps, NORM, EXACT)
            a += more_a
            b += more_b
    return a, b


@triton.jit
def _tile_sums(delta, x, number, scale, lower, upper, eps, NORM: tl.constexpr, EXACT: tl.constexpr):
    """Two sums over a tile, given the number.

    p = 2: of (scale room)^2 over the entries that t puts at their room, of (scale delta)^2 over the others.
    p = 1: of min(max(size - tau, 0), room), size of :func:`_size` with max|delta| as scale, and how many of these are
    strictly between 0 and room.
    """
    delta = clean(delta)
    size = tl.abs(delta)
    room = _room(delta, x, lower, upper, EXACT)
    if NORM == TWO:
        full = size * number >= room
        r = tl.where(full, room, size) * scale
        a = tl.sum(tl.where(full, r * r, 0.0), 0)
        b = tl.sum(tl.where(full, 0.0, r * r), 0)
    else:
        rest = no_less_than_zero(_size(delta, scale, eps, EXACT) - number)
        a = tl.sum(smaller(rest, room), 0)
        b = tl.sum(((rest > 0) & (rest < room)).to(delta.dtype), 0)
    return a, b
