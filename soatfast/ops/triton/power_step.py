"""power_step: H u by a finite difference, its norm and Rayleigh quotient, u', next probe. 24 bytes an entry."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.constants import accumulate_dtype
from soatfast.ops.triton._launch import Constexprs, on_device, tile, warps
from soatfast.ops.triton._math import bits, reciprocal, root, scalar
from soatfast.ops.triton._row import TWO, clean, inverse_norm, load, merge_stats, no_stats, row_stats, scaled, store


@triton.jit
def _product(g0_ptr, g1_ptr, base, offs, mask, inverse_h, ACC: tl.constexpr):
    """H u = (g1 - g0)/h; cleaned. [BLOCK]"""
    g0 = load(g0_ptr + base, offs, mask, ACC)
    g1 = load(g1_ptr + base, offs, mask, ACC)
    return clean((g1 - g0) * inverse_h)


@triton.jit
def _advance(product, u_ptr, x_ptr, u_out_ptr, probe_ptr, base, offs, mask, m, total, h, ACC: tl.constexpr):
    """Writes u' and its probe; <u, H u>/m of the tile."""
    r = scaled(product, m)
    u = load(u_ptr + base, offs, mask, ACC)
    fresh = tl.where(m > 0, r * inverse_norm(total, 0, TWO), u)
    store(u_out_ptr + base, offs, fresh, mask)
    store(probe_ptr + base, offs, load(x_ptr + base, offs, mask, ACC) + h * fresh, mask)
    return tl.sum(u * r, 0)


@triton.jit
def power_step_kernel(
    g0_ptr,  # [B, D] gradient at x
    g1_ptr,  # [B, D] gradient at x + h u
    u_ptr,  # [B, D] unit vectors
    x_ptr,  # [B, D] points
    u_out_ptr,  # [B, D] H u / ||H u||
    probe_ptr,  # [B, D] x + h u'
    rayleigh_ptr,  # [B] <u, H u>
    norm_ptr,  # [B] ||H u||
    entries,  # D
    h_bits: tl.int64,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * entries
    h = scalar(h_bits, ACC)
    inverse_h = reciprocal(h)
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        product = _product(g0_ptr, g1_ptr, base, offs, mask, inverse_h, ACC)
        m, total, _ = row_stats(product, offs, 0, TWO)
        rayleigh = _advance(product, u_ptr, x_ptr, u_out_ptr, probe_ptr, base, offs, mask, m, total, h, ACC)
    else:
        m, total, first = no_stats(ACC)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            product = _product(g0_ptr, g1_ptr, base, offs, offs < entries, inverse_h, ACC)
            m_b, total_b, first_b = row_stats(product, offs, 0, TWO)
            m, total, first = merge_stats(m, total, first, m_b, total_b, first_b, 0, TWO)
        rayleigh = tl.zeros([], ACC)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            product = _product(g0_ptr, g1_ptr, base, offs, mask, inverse_h, ACC)
            rayleigh += _advance(product, u_ptr, x_ptr, u_out_ptr, probe_ptr, base, offs, mask, m, total, h, ACC)
    tl.store(rayleigh_ptr + row, m * rayleigh)
    tl.store(norm_ptr + row, m * root(total))


def constexprs(entries: int, dtype: torch.dtype) -> Constexprs:
    return tile(entries, dtype, 2)


def power_step(g0: Tensor, g1: Tensor, u: Tensor, x: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g0, g1, u, x = g0.contiguous(), g1.contiguous(), u.contiguous(), x.contiguous()
    batch, entries = g0.shape
    u_out, probe = torch.empty_like(g0), torch.empty_like(g0)
    rayleigh = g0.new_empty((batch,), dtype=accumulate_dtype(g0.dtype))
    norm = torch.empty_like(rayleigh)
    if u_out.numel() == 0:
        return u_out, probe, rayleigh, norm
    meta = constexprs(entries, g0.dtype)
    with on_device(g0):
        power_step_kernel[(batch,)](
            g0, g1, u, x, u_out, probe, rayleigh, norm, entries, bits(h), **meta, num_warps=warps(meta)
        )
    return u_out, probe, rayleigh, norm
