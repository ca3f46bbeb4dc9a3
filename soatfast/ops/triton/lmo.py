"""lmo: s = eps argmax of <g, s> over the unit L^p ball, per sample. Reads g, writes s: 8 bytes an entry."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.triton._launch import Constexprs, exponents, kept_by, norm_kind, on_device, per_sample, tile, warps
from soatfast.ops.triton._math import bits, scalar
from soatfast.ops.triton._math import per_sample as sample_number
from soatfast.ops.triton._row import INF, clean, load, merge_stats, no_stats, row_stats, store, unit_lmo


@triton.jit
def lmo_kernel(
    g_ptr,  # [B, D] gradient
    s_ptr,  # [B, D] result
    eps_ptr,  # [B], [1] or None
    eps_stride,
    entries,  # D
    eps_bits: tl.int64,
    power_bits: tl.int64,  # q - 1
    root_bits: tl.int64,  # -1/p
    NORM: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * entries
    eps = sample_number(eps_bits, eps_ptr, eps_stride, row, ACC)
    power, root = scalar(power_bits, ACC), scalar(root_bits, ACC)
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        g = clean(load(g_ptr + base, offs, mask, ACC))
        m, total, first = row_stats(g, offs, power, NORM)
        store(s_ptr + base, offs, eps * unit_lmo(g, offs, m, total, first, power, root, NORM), mask)
    else:
        m, total, first = no_stats(ACC)
        if NORM != INF:
            for start in range(0, entries, BLOCK):
                offs = start + tl.arange(0, BLOCK)  # [BLOCK]
                g = clean(load(g_ptr + base, offs, offs < entries, ACC))
                m_b, total_b, first_b = row_stats(g, offs, power, NORM)
                m, total, first = merge_stats(m, total, first, m_b, total_b, first_b, power, NORM)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            g = clean(load(g_ptr + base, offs, mask, ACC))
            store(s_ptr + base, offs, eps * unit_lmo(g, offs, m, total, first, power, root, NORM), mask)


def constexprs(entries: int, dtype: torch.dtype, p: float) -> Constexprs:
    return {"NORM": norm_kind(p), **tile(entries, dtype, kept_by(p))}


def lmo(g: Tensor, p: float, eps: float, eps_tensor: Tensor | None = None) -> Tensor:
    g = g.contiguous()
    s = torch.empty_like(g)
    batch, entries = g.shape
    if s.numel() == 0:
        return s
    meta = constexprs(entries, g.dtype, p)
    with on_device(g):
        lmo_kernel[(batch,)](
            g, s, *per_sample(eps_tensor), entries, bits(eps), *exponents(p), **meta, num_warps=warps(meta)
        )
    return s
