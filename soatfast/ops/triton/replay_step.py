"""replay_step: one Frank-Wolfe step from the remembered perturbation, which it updates in place.

Bytes an entry of a float32 batch, with m those of the memory: reads g, x, u, writes u', x + v': 12 + 2m. A row that
does not fit on chip reads g once more for p < inf (16 + 2m), and all three once more for int8, whose scale max|u'|
must be known before the first entry is written (24 + 3m = 27).

An index outside the memory is undefined here, as in :mod:`.replay_start`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.triton._box import box_lmo, box_numbers
from soatfast.ops.triton._launch import (
    Constexprs,
    exponents,
    kept_in_box,
    norm_kind,
    on_device,
    per_sample,
    tile,
    warps,
)
from soatfast.ops.triton._math import bits, clamp, reciprocal, scalar
from soatfast.ops.triton._math import per_sample as sample_number
from soatfast.ops.triton._memory import check_dense, memory_row, recall, remember, row_scale, store_scale
from soatfast.ops.triton._row import (
    INF,
    clean,
    load,
    merge_stats,
    no_stats,
    positive_or_one,
    row_stats,
    store,
    unit_lmo,
)


@triton.jit
def _step(g, u, x, offs, stats, numbers, NORM: tl.constexpr, IN_BOX: tl.constexpr):
    """(u', x + v') of a clean tile g, elementwise in the row's statistics. 2 x [BLOCK]"""
    m, total, first, filled = stats
    eps, inverse_eps, gamma, lower, upper, power, root = numbers
    if IN_BOX and NORM != INF:
        s = box_lmo(g, x, offs, filled, eps, lower, upper, NORM)
    else:
        s = eps * unit_lmo(g, offs, m, total, first, power, root, NORM)
    low, high = lower - x, upper - x
    v = clamp(eps * u, low, high)
    if IN_BOX:
        s = clamp(s, low, high)
    v = clamp(v + gamma * (s - v), low, high)
    return clamp(v * inverse_eps, -1.0, 1.0), clamp(x + v, lower, upper)


@triton.jit
def _step_chunk(source, scale, offs, mask, stats, numbers, NORM: tl.constexpr, IN_BOX: tl.constexpr, ACC: tl.constexpr):
    """:func:`_step` of a chunk, read from memory."""
    memory_ptr, g_ptr, x_ptr = source
    g = clean(load(g_ptr, offs, mask, ACC))
    u = recall(memory_ptr, scale, offs, mask, ACC)
    x = load(x_ptr, offs, mask, ACC)
    return _step(g, u, x, offs, stats, numbers, NORM, IN_BOX)


@triton.jit
def _largest(u, mask):
    """max|u| over the row's entries: beyond its end a box without 0 makes u other than 0."""
    return tl.max(tl.where(mask, tl.abs(u), 0.0), 0)


@triton.jit
def replay_step_kernel(
    memory_ptr,  # [N, D] perturbations in units of eps; rows `index` are updated
    scale_ptr,  # [N] with int8, else None; rows `index` are updated
    index_ptr,  # [B] rows of the memory
    g_ptr,  # [B, D] gradient at clamp(x + eps u)
    x_ptr,  # [B, D] clean batch
    out_ptr,  # [B, D] clamp(x + v')
    eps_ptr,  # [B], [1] or None
    eps_stride,
    rows,  # N
    entries,  # D
    eps_bits: tl.int64,
    gamma_bits: tl.int64,
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
    slot = memory_row(index_ptr, row, rows)
    scale = row_scale(scale_ptr, slot, ACC)
    memory_ptr += slot * entries
    g_ptr += row * entries
    x_ptr += row * entries
    out_ptr += row * entries
    eps = sample_number(eps_bits, eps_ptr, eps_stride, row, ACC)
    inverse_eps = reciprocal(positive_or_one(eps))
    inverse_eps = tl.where((eps > 0) & (inverse_eps < float("inf")), inverse_eps, 0.0)  # none for a denormal eps
    power, root = scalar(power_bits, ACC), scalar(root_bits, ACC)
    numbers = (
        eps,
        inverse_eps,
        scalar(gamma_bits, ACC),
        scalar(lower_bits, ACC),
        scalar(upper_bits, ACC),
        power,
        root,
    )
    of_box = (g_ptr, g_ptr, x_ptr, 0, 0, eps, entries)
    top = tl.zeros([], tl.float32)  # max|u'|, the new scale of int8 for p < inf
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        g = clean(load(g_ptr, offs, mask, ACC))
        m, total, first = row_stats(g, offs, power, NORM)
        u = recall(memory_ptr, scale, offs, mask, ACC)
        x = load(x_ptr, offs, mask, ACC)
        filled = (0, 0, 0)
        if IN_BOX and NORM != INF:
            filled = box_numbers(g, x, of_box, m, eps, numbers[3], numbers[4], NORM, False, False, True, BLOCK, ACC)
        stats = (m, total, first, filled)
        u, x_adv = _step(g, u, x, offs, stats, numbers, NORM, IN_BOX)
        store(out_ptr, offs, x_adv, mask)
        if scale_ptr is not None and NORM != INF:
            top = _largest(u, mask).to(tl.float32)
        remember(memory_ptr, offs, u, top, mask, NORM, ACC)
    else:
        source = (memory_ptr, g_ptr, x_ptr)
        m, total, first = no_stats(ACC)
        if NORM != INF:
            for start in range(0, entries, BLOCK):
                offs = start + tl.arange(0, BLOCK)  # [BLOCK]
                g = clean(load(g_ptr, offs, offs < entries, ACC))
                m_b, total_b, first_b = row_stats(g, offs, power, NORM)
                m, total, first = merge_stats(m, total, first, m_b, total_b, first_b, power, NORM)
        filled = (0, 0, 0)
        if IN_BOX and NORM != INF:
            filled = box_numbers(0, 0, of_box, m, eps, numbers[3], numbers[4], NORM, False, False, False, BLOCK, ACC)
        stats = (m, total, first, filled)
        if scale_ptr is not None and NORM != INF:
            largest = tl.zeros([], ACC)
            for start in range(0, entries, BLOCK):
                offs = start + tl.arange(0, BLOCK)  # [BLOCK]
                mask = offs < entries
                u, _ = _step_chunk(source, scale, offs, mask, stats, numbers, NORM, IN_BOX, ACC)
                largest = tl.maximum(largest, _largest(u, mask))
            top = largest.to(tl.float32)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            u, x_adv = _step_chunk(source, scale, offs, mask, stats, numbers, NORM, IN_BOX, ACC)
            store(out_ptr, offs, x_adv, mask)
            remember(memory_ptr, offs, u, top, mask, NORM, ACC)
    if scale_ptr is not None:
        store_scale(scale_ptr, slot, top, NORM)


def constexprs(entries: int, dtype: torch.dtype, p: float, in_box: bool = False) -> Constexprs:
    return {"NORM": norm_kind(p), "IN_BOX": in_box, **tile(entries, dtype, kept_in_box(p, in_box, 3))}


def replay_step(
    memory: Tensor,
    scale: Tensor | None,
    index: Tensor,
    g: Tensor,
    x: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None,
    gamma: float,
    lower: float,
    upper: float,
    in_box: bool,
) -> Tensor:
    check_dense(memory, scale)
    index, g, x = index.contiguous(), g.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    batch, entries = x.shape
    if out.numel() == 0:
        return out
    meta = constexprs(entries, x.dtype, p, in_box)
    with on_device(x):
        replay_step_kernel[(batch,)](
            memory,
            scale,
            index,
            g,
            x,
            out,
            *per_sample(eps_tensor),
            memory.shape[0],
            entries,
            bits(eps),
            bits(gamma),
            bits(lower),
            bits(upper),
            *exponents(p),
            **meta,
            num_warps=warps(meta),
        )
    return out
