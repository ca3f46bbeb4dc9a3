"""project: x_adv into the ball around x and the box. Reads x_adv, x, writes one: 12 bytes an entry."""

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
def project_kernel(
    x_adv_ptr,  # [B, D] points
    x_ptr,  # [B, D] centres
    out_ptr,  # [B, D] result
    eps_ptr,  # [B], [1] or None
    eps_stride,
    entries,  # D
    eps_bits: tl.int64,
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
    lower, upper = scalar(lower_bits, ACC), scalar(upper_bits, ACC)
    project_row(
        x_adv_ptr,
        x_ptr,
        x_ptr,
        out_ptr,
        row,
        entries,
        eps,
        0,
        lower,
        upper,
        0,
        NORM,
        EXACT,
        False,
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


def project(
    x_adv: Tensor,
    x: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None,
    lower: float,
    upper: float,
    exact: bool,
) -> Tensor:
    x_adv, x = x_adv.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    batch, entries = x.shape
    if out.numel() == 0:
        return out
    meta = constexprs(entries, x.dtype, p, exact)
    with on_device(x):
        project_kernel[(batch,)](
            x_adv,
            x,
            out,
            *per_sample(eps_tensor),
            entries,
            bits(eps),
            bits(lower),
            bits(upper),
            **meta,
            num_warps=warps(meta),
        )
    return out
