"""lmo: s = argmax of <g, s> over the L^p ball, or ball and box. Reads g (and x), writes s: 8 (12) bytes an entry."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.triton._box import box_lmo, box_numbers
from soatfast.ops.triton._launch import Constexprs, exponents, kept_by, norm_kind, on_device, per_sample, tile, warps
from soatfast.ops.triton._math import bits, clamp, scalar
from soatfast.ops.triton._math import per_sample as sample_number
from soatfast.ops.triton._row import INF, clean, load, merge_stats, no_stats, row_stats, store, unit_lmo


@triton.jit
def _entry(
    g, x, offs, m, total, first, filled, eps, power, root, lower, upper, NORM: tl.constexpr, IN_BOX: tl.constexpr
):
    """s of a clean tile, elementwise in the row's statistics and the numbers of ball and box. [BLOCK]"""
    if IN_BOX and NORM != INF:
        s = box_lmo(g, x, offs, filled, eps, lower, upper, NORM)
    else:
        s = eps * unit_lmo(g, offs, m, total, first, power, root, NORM)
        if IN_BOX:
            s = clamp(s, lower - x, upper - x)
    return s


@triton.jit
def lmo_kernel(
    g_ptr,  # [B, D] gradient
    x_ptr,  # [B, D] point of the box, or None
    s_ptr,  # [B, D] result
    eps_ptr,  # [B], [1] or None
    eps_stride,
    entries,  # D
    eps_bits: tl.int64,
    lower_bits: tl.int64,
    upper_bits: tl.int64,
    power_bits: tl.int64,  # q - 1
    root_bits: tl.int64,  # -1/p
    NORM: tl.constexpr,
    IN_BOX: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * entries
    eps = sample_number(eps_bits, eps_ptr, eps_stride, row, ACC)
    power, root = scalar(power_bits, ACC), scalar(root_bits, ACC)
    lower, upper = scalar(lower_bits, ACC), scalar(upper_bits, ACC)
    source = (g_ptr, g_ptr, x_ptr, base, 0, eps, entries)
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        g = clean(load(g_ptr + base, offs, mask, ACC))
        m, total, first = row_stats(g, offs, power, NORM)
        x, filled = 0, (0, 0, 0)
        if IN_BOX:
            x = load(x_ptr + base, offs, mask, ACC)
            if NORM != INF:
                filled = box_numbers(g, x, source, m, eps, lower, upper, NORM, False, False, ON_CHIP, BLOCK, ACC)
        s = _entry(g, x, offs, m, total, first, filled, eps, power, root, lower, upper, NORM, IN_BOX)
        store(s_ptr + base, offs, s, mask)
    else:
        m, total, first = no_stats(ACC)
        if NORM != INF:
            for start in range(0, entries, BLOCK):
                offs = start + tl.arange(0, BLOCK)  # [BLOCK]
                g = clean(load(g_ptr + base, offs, offs < entries, ACC))
                m_b, total_b, first_b = row_stats(g, offs, power, NORM)
                m, total, first = merge_stats(m, total, first, m_b, total_b, first_b, power, NORM)
        filled = (0, 0, 0)
        if IN_BOX and NORM != INF:
            filled = box_numbers(0, 0, source, m, eps, lower, upper, NORM, False, False, ON_CHIP, BLOCK, ACC)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            g = clean(load(g_ptr + base, offs, mask, ACC))
            x = 0
            if IN_BOX:
                x = load(x_ptr + base, offs, mask, ACC)
            s = _entry(g, x, offs, m, total, first, filled, eps, power, root, lower, upper, NORM, IN_BOX)
            store(s_ptr + base, offs, s, mask)


def constexprs(entries: int, dtype: torch.dtype, p: float, in_box: bool = False) -> Constexprs:
    kept = 2 if in_box and p < math.inf else kept_by(p)
    return {"NORM": norm_kind(p), "IN_BOX": in_box, **tile(entries, dtype, kept)}


def lmo(
    g: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None = None,
    x: Tensor | None = None,
    lower: float = 0.0,
    upper: float = 1.0,
) -> Tensor:
    g = g.contiguous()
    x = None if x is None else x.contiguous()
    s = torch.empty_like(g)
    batch, entries = g.shape
    if s.numel() == 0:
        return s
    meta = constexprs(entries, g.dtype, p, x is not None)
    with on_device(g):
        lmo_kernel[(batch,)](
            g,
            x,
            s,
            *per_sample(eps_tensor),
            entries,
            bits(eps),
            bits(lower),
            bits(upper),
            *exponents(p),
            **meta,
            num_warps=warps(meta),
        )
    return s
