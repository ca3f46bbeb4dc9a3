"""frank_wolfe_step: model gradient, LMO, gap, step, next probe. 24 bytes an entry (forward Euler) or 32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.constants import accumulate_dtype
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
from soatfast.ops.triton._row import (
    INF,
    load,
    merge_stats,
    model_gradient,
    no_stats,
    row_stats,
    scaled,
    store,
    unit_lmo,
    write_probe,
)


@triton.jit
def _direction(
    g, v, x, offs, m, total, first, filled, eps, power, root, lower, upper, NORM: tl.constexpr, IN_BOX: tl.constexpr
):
    """s - v; filled are the numbers of ball and box for p < inf. [BLOCK]"""
    if IN_BOX and NORM != INF:
        s = box_lmo(g, x, offs, filled, eps, lower, upper, NORM)
    else:
        s = eps * unit_lmo(g, offs, m, total, first, power, root, NORM)
        if IN_BOX:
            s = clamp(s, lower - x, upper - x)
    return s - v


@triton.jit
def _write(
    v_out_ptr,
    probe_ptr,
    base,
    far,
    offs,
    mask,
    x,
    v,
    h,
    lower,
    upper,
    CENTRAL: tl.constexpr,
    LAST: tl.constexpr,
):
    """v' and its probe(s), or the clamped adversarial example."""
    store(v_out_ptr + base, offs, v, mask)
    if LAST:
        store(probe_ptr + base, offs, clamp(x + v, lower, upper), mask)
    else:
        write_probe(probe_ptr, base, far, offs, mask, x, v, h, CENTRAL)


@triton.jit
def frank_wolfe_step_kernel(
    g0_ptr,  # [B, D] gradient at x
    g1_ptr,  # [B, D] gradient at the probe, or [2B, D] when CENTRAL
    v_ptr,  # [B, D] perturbation
    x_ptr,  # [B, D] clean batch
    v_out_ptr,  # [B, D] new perturbation
    probe_ptr,  # [B, D], or [2B, D] when CENTRAL and not LAST
    gap_ptr,  # [B] <G, s - v>
    eps_ptr,  # [B], [1] or None
    eps_stride,
    batch,  # B
    entries,  # D
    eps_bits: tl.int64,
    gamma_bits: tl.int64,
    h_bits: tl.int64,
    lower_bits: tl.int64,
    upper_bits: tl.int64,
    power_bits: tl.int64,  # q - 1
    root_bits: tl.int64,  # -1/p
    NORM: tl.constexpr,
    CENTRAL: tl.constexpr,
    LAST: tl.constexpr,
    IN_BOX: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * entries
    far = (row + batch) * entries
    eps = sample_number(eps_bits, eps_ptr, eps_stride, row, ACC)
    gamma, h = scalar(gamma_bits, ACC), scalar(h_bits, ACC)
    lower, upper = scalar(lower_bits, ACC), scalar(upper_bits, ACC)
    power, root = scalar(power_bits, ACC), scalar(root_bits, ACC)
    inverse_h = reciprocal(2 * h if CENTRAL else h)
    source = (g0_ptr, g1_ptr, x_ptr, base, far, inverse_h, entries)
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        g = model_gradient(g0_ptr, g1_ptr, base, far, offs, mask, inverse_h, CENTRAL, ACC)
        m, total, first = row_stats(g, offs, power, NORM)
        v = load(v_ptr + base, offs, mask, ACC)
        x = load(x_ptr + base, offs, mask, ACC)
        filled = (0, 0, 0)
        if IN_BOX and NORM != INF:
            filled = box_numbers(g, x, source, m, eps, lower, upper, NORM, True, CENTRAL, ON_CHIP, BLOCK, ACC)
        direction = _direction(g, v, x, offs, m, total, first, filled, eps, power, root, lower, upper, NORM, IN_BOX)
        gap = m * tl.sum(scaled(g, m) * direction, 0)
        v += gamma * direction
        _write(v_out_ptr, probe_ptr, base, far, offs, mask, x, v, h, lower, upper, CENTRAL, LAST)
    else:
        m, total, first = no_stats(ACC)
        if NORM != INF:
            for start in range(0, entries, BLOCK):
                offs = start + tl.arange(0, BLOCK)  # [BLOCK]
                mask = offs < entries
                g = model_gradient(g0_ptr, g1_ptr, base, far, offs, mask, inverse_h, CENTRAL, ACC)
                m_b, total_b, first_b = row_stats(g, offs, power, NORM)
                m, total, first = merge_stats(m, total, first, m_b, total_b, first_b, power, NORM)
        filled = (0, 0, 0)
        if IN_BOX and NORM != INF:
            filled = box_numbers(0, 0, source, m, eps, lower, upper, NORM, True, CENTRAL, ON_CHIP, BLOCK, ACC)
        gap_by_m = tl.zeros([], ACC)  # gap/m, for p = inf with m the maximum so far (one pass)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            g = model_gradient(g0_ptr, g1_ptr, base, far, offs, mask, inverse_h, CENTRAL, ACC)
            v = load(v_ptr + base, offs, mask, ACC)
            x = load(x_ptr + base, offs, mask, ACC)
            if NORM == INF:
                m_b = tl.max(tl.abs(g), 0)
                grown = tl.where(m_b > m, m_b, m)
                gap_by_m *= scaled(m, grown)
                m = grown
            direction = _direction(g, v, x, offs, m, total, first, filled, eps, power, root, lower, upper, NORM, IN_BOX)
            v += gamma * direction
            _write(v_out_ptr, probe_ptr, base, far, offs, mask, x, v, h, lower, upper, CENTRAL, LAST)
            gap_by_m += tl.sum(scaled(g, m) * direction, 0)
        gap = m * gap_by_m
    tl.store(gap_ptr + row, gap)


def constexprs(
    entries: int, dtype: torch.dtype, p: float, central: bool, last: bool, in_box: bool = False
) -> Constexprs:
    rest = tile(entries, dtype, kept_in_box(p, in_box, 2))
    return {"NORM": norm_kind(p), "CENTRAL": central, "LAST": last, "IN_BOX": in_box, **rest}


def frank_wolfe_step(
    g0: Tensor,
    g1: Tensor,
    v: Tensor,
    x: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None,
    gamma: float,
    h: float,
    central: bool,
    last: bool,
    lower: float,
    upper: float,
    in_box: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    g0, g1, v, x = g0.contiguous(), g1.contiguous(), v.contiguous(), x.contiguous()
    batch, entries = g0.shape
    v_out = torch.empty_like(g0)
    probe = g0.new_empty((2 * batch if central and not last else batch, entries))
    gap = g0.new_empty((batch,), dtype=accumulate_dtype(g0.dtype))
    if v_out.numel() == 0:
        return v_out, probe, gap
    meta = constexprs(entries, g0.dtype, p, central, last, in_box)
    with on_device(g0):
        frank_wolfe_step_kernel[(batch,)](
            g0,
            g1,
            v,
            x,
            v_out,
            probe,
            gap,
            *per_sample(eps_tensor),
            batch,
            entries,
            bits(eps),
            bits(gamma),
            bits(h),
            bits(lower),
            bits(upper),
            *exponents(p),
            **meta,
            num_warps=warps(meta),
        )
    return v_out, probe, gap
