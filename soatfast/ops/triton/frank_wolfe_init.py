"""frank_wolfe_init: the start v and the probe x + h v. Reads g0, x, writes v, probe: 16 bytes an entry."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.constants import INIT_LMO, INIT_SCALED
from soatfast.ops.triton._box import box_lmo, box_numbers
from soatfast.ops.triton._launch import Constexprs, exponents, kept_by, norm_kind, on_device, per_sample, tile, warps
from soatfast.ops.triton._math import bits, clamp, scalar
from soatfast.ops.triton._math import per_sample as sample_number
from soatfast.ops.triton._row import (
    INF,
    clean,
    inverse_norm,
    load,
    merge_stats,
    no_stats,
    row_stats,
    scaled,
    store,
    unit_lmo,
    write_probe,
)

_LMO = tl.constexpr(INIT_LMO)
_SCALED = tl.constexpr(INIT_SCALED)


@triton.jit
def _start(
    g,
    x,
    offs,
    m,
    total,
    first,
    filled,
    eps,
    power,
    root,
    lower,
    upper,
    NORM: tl.constexpr,
    INIT: tl.constexpr,
    IN_BOX: tl.constexpr,
):
    """v of a clean tile g, elementwise in the row's statistics and the numbers of ball and box. [BLOCK]"""
    if INIT == _LMO and IN_BOX and NORM != INF:
        v = box_lmo(g, x, offs, filled, eps, lower, upper, NORM)
    elif INIT == _LMO:
        v = eps * unit_lmo(g, offs, m, total, first, power, root, NORM)
    elif INIT == _SCALED:  # eps g / ||g||_p
        v = eps * scaled(g, m)
        if NORM != INF:
            v = v * inverse_norm(total, root, NORM)
    else:
        v = g
    if IN_BOX:
        v = clamp(v, lower - x, upper - x)
    return v


@triton.jit
def frank_wolfe_init_kernel(
    g0_ptr,  # [B, D] gradient at x
    x_ptr,  # [B, D] clean batch
    v_out_ptr,  # [B, D] start
    probe_ptr,  # [B, D], or [2B, D] when CENTRAL
    eps_ptr,  # [B], [1] or None
    eps_stride,
    batch,  # B
    entries,  # D
    eps_bits: tl.int64,
    h_bits: tl.int64,
    lower_bits: tl.int64,
    upper_bits: tl.int64,
    power_bits: tl.int64,  # q - 1 for the LMO start, p - 1 for the scaled one
    root_bits: tl.int64,  # -1/p
    NORM: tl.constexpr,
    INIT: tl.constexpr,
    CENTRAL: tl.constexpr,
    IN_BOX: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * entries
    far = (row + batch) * entries
    eps = sample_number(eps_bits, eps_ptr, eps_stride, row, ACC)
    lower, upper = scalar(lower_bits, ACC), scalar(upper_bits, ACC)
    h, power, root = scalar(h_bits, ACC), scalar(power_bits, ACC), scalar(root_bits, ACC)
    source = (g0_ptr, g0_ptr, x_ptr, base, far, h, entries)
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        g = clean(load(g0_ptr + base, offs, mask, ACC))
        x = load(x_ptr + base, offs, mask, ACC)
        m, total, first = row_stats(g, offs, power, NORM)
        filled = (0, 0, 0)
        if INIT == _LMO and IN_BOX and NORM != INF:
            filled = box_numbers(g, x, source, m, eps, lower, upper, NORM, False, False, ON_CHIP, BLOCK, ACC)
        v = _start(g, x, offs, m, total, first, filled, eps, power, root, lower, upper, NORM, INIT, IN_BOX)
        store(v_out_ptr + base, offs, v, mask)
        write_probe(probe_ptr, base, far, offs, mask, x, v, h, CENTRAL)
    else:
        m, total, first = no_stats(ACC)
        if (INIT == _SCALED) or (INIT == _LMO and NORM != INF):
            for start in range(0, entries, BLOCK):
                offs = start + tl.arange(0, BLOCK)  # [BLOCK]
                g = clean(load(g0_ptr + base, offs, offs < entries, ACC))
                m_b, total_b, first_b = row_stats(g, offs, power, NORM)
                m, total, first = merge_stats(m, total, first, m_b, total_b, first_b, power, NORM)
        filled = (0, 0, 0)
        if INIT == _LMO and IN_BOX and NORM != INF:
            filled = box_numbers(0, 0, source, m, eps, lower, upper, NORM, False, False, ON_CHIP, BLOCK, ACC)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            g = clean(load(g0_ptr + base, offs, mask, ACC))
            x = load(x_ptr + base, offs, mask, ACC)
            v = _start(g, x, offs, m, total, first, filled, eps, power, root, lower, upper, NORM, INIT, IN_BOX)
            store(v_out_ptr + base, offs, v, mask)
            write_probe(probe_ptr, base, far, offs, mask, x, v, h, CENTRAL)


def constexprs(
    entries: int, dtype: torch.dtype, p: float, init: int, central: bool, in_box: bool = False
) -> Constexprs:
    rest = tile(entries, dtype, kept_by(p))
    return {"NORM": norm_kind(p), "INIT": init, "CENTRAL": central, "IN_BOX": in_box, **rest}


def frank_wolfe_init(
    g0: Tensor,
    x: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None,
    init: int,
    h: float,
    central: bool,
    lower: float,
    upper: float,
) -> tuple[Tensor, Tensor]:
    g0, x = g0.contiguous(), x.contiguous()
    batch, entries = g0.shape
    v = torch.empty_like(g0)
    probe = g0.new_empty((2 * batch if central else batch, entries))
    if v.numel() == 0:
        return v, probe
    power, root = exponents(p)
    if init == INIT_SCALED and p < math.inf:
        power = bits(p - 1)
    meta = constexprs(entries, g0.dtype, p, init, central, lower > -math.inf or upper < math.inf)
    with on_device(g0):
        frank_wolfe_init_kernel[(batch,)](
            g0,
            x,
            v,
            probe,
            *per_sample(eps_tensor),
            batch,
            entries,
            bits(eps),
            bits(h),
            bits(lower),
            bits(upper),
            power,
            root,
            **meta,
            num_warps=warps(meta),
        )
    return v, probe
