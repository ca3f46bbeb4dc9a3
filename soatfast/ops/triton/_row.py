"""What the kernels share: one program works on one row (sample), whole on chip or chunk by chunk.

A row's statistics are a triple (m, total, first): m = max|g|, total = sum |g/m|^(exponent + 1), and, for p =
1, the first index of max|g|. The triples of two chunks merge into one, so a long row is reduced in one pass.
Everything that follows is elementwise in the triple, and therefore the same code for both paths.
"""

from __future__ import annotations

import triton
import triton.language as tl

from soatfast.ops.triton._math import clamp, power, reciprocal, root, sign

# norm kinds
INF = tl.constexpr(0)
ONE = tl.constexpr(1)
TWO = tl.constexpr(2)
GENERAL = tl.constexpr(3)

_LARGEST32 = tl.constexpr(3.4028234663852886e38)
_LARGEST64 = tl.constexpr(1.7976931348623157e308)
_SMALLEST32 = tl.constexpr(1.1754943508222875e-38)  # of the normal numbers
_SMALLEST64 = tl.constexpr(2.2250738585072014e-308)


@triton.jit
def load(pointer, offs, mask, ACC: tl.constexpr):
    """A tile in the accumulation dtype; 0 beyond the row's end."""
    return tl.load(pointer + offs, mask=mask, other=0.0).to(ACC)  # [BLOCK]


@triton.jit
def store(pointer, offs, value, mask):
    tl.store(pointer + offs, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def clean(g):
    """torch.nan_to_num: NaN to 0, infinities to the largest finite number."""
    if g.dtype == tl.float64:
        largest = tl.full([], _LARGEST64, tl.float64)
    else:
        largest = tl.full([], _LARGEST32, tl.float32)
    return clamp(tl.where(g == g, g, 0.0), -largest, largest)


@triton.jit
def model_gradient(g0_ptr, g1_ptr, base, far, offs, mask, inverse_h, CENTRAL: tl.constexpr, ACC: tl.constexpr):
    """G = g0 + (g1 - g0)/h, or g0 + (g1+ - g1-)/(2h); cleaned. [BLOCK]"""
    g0 = load(g0_ptr + base, offs, mask, ACC)
    g1 = load(g1_ptr + base, offs, mask, ACC)
    if CENTRAL:
        minus = load(g1_ptr + far, offs, mask, ACC)
        change = (g1 - minus) * inverse_h
    else:
        change = (g1 - g0) * inverse_h
    return clean(g0 + change)


@triton.jit
def inverse(m):
    """1/m, made finite for a zero or denormal m: a factor that brings a row of maximum m to 1 or below."""
    if m.dtype == tl.float64:
        smallest = tl.full([], _SMALLEST64, tl.float64)
    else:
        smallest = tl.full([], _SMALLEST32, tl.float32)
    return reciprocal(tl.where(m > smallest, m, smallest))


@triton.jit
def positive_or_one(m):
    return tl.where(m > 0, m, 1.0)


@triton.jit
def scaled(g, m):
    """g/m for |g| <= m without a division per entry: two factors, as 1/m alone overflows for a denormal m."""
    factor = inverse(m)
    return g * factor * reciprocal(positive_or_one(m * factor))


@triton.jit
def no_stats(ACC: tl.constexpr):
    """The triple of no entries at all."""
    return tl.zeros([], ACC), tl.zeros([], ACC), tl.zeros([], tl.int32)


@triton.jit
def row_stats(g, offs, exponent, NORM: tl.constexpr):
    """The triple of a tile g [BLOCK] of finite numbers, 0 where masked."""
    size = tl.abs(g)
    m = tl.max(size, 0)
    total = tl.zeros([], g.dtype)
    first = tl.zeros([], tl.int32)
    if NORM == ONE:
        first = tl.min(tl.where(size == m, offs, 2147483647), 0).to(tl.int32)
    if NORM != INF:
        total = tl.sum(_powered(scaled(size, m), exponent, NORM), 0)
    return m, total, first


@triton.jit
def merge_stats(m_a, total_a, first_a, m_b, total_b, first_b, exponent, NORM: tl.constexpr):
    """The triple of two chunks, a before b."""
    m = tl.where(m_b > m_a, m_b, m_a)
    first = tl.where(m_b > m_a, first_b, first_a)
    if NORM != INF:
        total_a = total_a * _powered(scaled(m_a, m), exponent, NORM)
        total_b = total_b * _powered(scaled(m_b, m), exponent, NORM)
    return m, total_a + total_b, first


@triton.jit
def _powered(size, exponent, NORM: tl.constexpr):
    """size^(exponent + 1) of a non-negative scaled number."""
    if NORM == ONE:
        value = size
    elif NORM == TWO:
        value = size * size
    else:
        value = size * power(size, exponent)
    return value


@triton.jit
def inverse_norm(total, root_exponent, NORM: tl.constexpr):
    """total^(-1/p) of the scaled sum, 1 for a zero row; root_exponent is -1/p."""
    total = positive_or_one(total)
    if NORM == ONE:
        value = reciprocal(total)
    elif NORM == TWO:
        value = reciprocal(root(total))
    else:
        value = power(total, root_exponent)
    return value


@triton.jit
def unit_lmo(g, offs, m, total, first, exponent, root_exponent, NORM: tl.constexpr):
    """argmax of <g, s> over ||s||_p <= 1: sgn(g) |g/m|^exponent total^(-1/p), exponent = q - 1. [BLOCK]"""
    if NORM == INF:
        value = sign(g)
    elif NORM == ONE:
        value = tl.where(offs == first, sign(g), 0.0)
    elif NORM == TWO:
        value = scaled(g, m) * inverse_norm(total, root_exponent, NORM)
    else:
        value = sign(g) * power(tl.abs(scaled(g, m)), exponent) * inverse_norm(total, root_exponent, NORM)
    return value


@triton.jit
def write_probe(probe_ptr, base, far, offs, mask, x, v, h, CENTRAL: tl.constexpr):
    """x + h v at the row and, for central differences, x - h v at its twin B rows below."""
    store(probe_ptr + base, offs, x + h * v, mask)
    if CENTRAL:
        store(probe_ptr + far, offs, x - h * v, mask)
