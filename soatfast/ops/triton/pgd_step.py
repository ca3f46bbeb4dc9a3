"""pgd_step: x_adv + alpha step_p(g), projected. Reads x_adv, g, x, writes one: 16 bytes an entry."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.triton._ball import project_row
from soatfast.ops.triton._launch import Constexprs, norm_kind, on_device, per_sample, tile, warps
from soatfast.ops.triton._math import bits, scalar
from soatfast.ops.triton._math import per_sample as sample_number


@triton.jit
def pgd_step_kernel(
    x_adv_ptr,  # [B, D] iterate
    g_ptr,  # [B, D] gradient at the iterate
    x_ptr,  # [B, D] clean batch
    out_ptr,  # [B, D] next iterate
    eps_ptr,  # [B], [1] or None
    eps_stride,
    alpha_ptr,  # [B], [1] or None
    alpha_stride,
    entries,  # D
    k,  # entries moved for p = 1
    eps_bits: tl.int64,
    alpha_bits: tl.int64,
    lower_bits: tl.int64,
    upper_bits: tl.int64,
    NORM: tl.constexpr,
    EXACT: tl.constexpr,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    eps = sample_number(eps_bits, eps_ptr, eps_stride, row, ACC)
    alpha = sample_number(alpha_bits, alpha_ptr, alpha_stride, row, ACC)
    lower, upper = scalar(lower_bits, ACC), scalar(upper_bits, ACC)
    project_row(
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
        NORM,
        EXACT,
        True,
        ON_CHIP,
        BLOCK,
        ACC,
    )


def constexprs(entries: int, dtype: torch.dtype, p: float, exact: bool) -> Constexprs:
    return {
        "NORM": norm_kind(p),
        "EXACT": exact,
        **tile(entries, dtype, kept=4 if exact and p < math.inf else 2),
    }


def pgd_step(
    x_adv: Tensor,
    g: Tensor,
    x: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None,
    alpha: float,
    alpha_tensor: Tensor | None,
    lower: float,
    upper: float,
    exact: bool,
    k: int,
) -> Tensor:
    x_adv, g, x = x_adv.contiguous(), g.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    batch, entries = x.shape
    if out.numel() == 0:
        return out
    meta = constexprs(entries, x.dtype, p, exact)
    with on_device(x):
        pgd_step_kernel[(batch,)](
            x_adv,
            g,
            x,
            out,
            *per_sample(eps_tensor),
            *per_sample(alpha_tensor),
            entries,
            k,
            bits(eps),
            bits(alpha),
            bits(lower),
            bits(upper),
            **meta,
            num_warps=warps(meta),
        )
    return out
