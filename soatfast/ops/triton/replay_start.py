"""replay_start: x + eps u, clamped, u = memory[index]. Reads x, u, writes one: 8 + m bytes an entry, m of the memory.

An index outside the memory is undefined here, as a check would need a second launch or a trap: it is asserted with
TRITON_DEBUG=1 only, and by the class that owns the memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.triton._launch import Constexprs, on_device, per_sample, tile, warps
from soatfast.ops.triton._math import bits, clamp, scalar
from soatfast.ops.triton._math import per_sample as sample_number
from soatfast.ops.triton._memory import check_dense, memory_row, recall, row_scale
from soatfast.ops.triton._row import load, store


@triton.jit
def replay_start_kernel(
    memory_ptr,  # [N, D] perturbations in units of eps
    scale_ptr,  # [N] with int8, else None
    index_ptr,  # [B] rows of the memory
    x_ptr,  # [B, D] clean batch
    out_ptr,  # [B, D] clamp(x + eps u)
    eps_ptr,  # [B], [1] or None
    eps_stride,
    rows,  # N
    entries,  # D
    eps_bits: tl.int64,
    lower_bits: tl.int64,
    upper_bits: tl.int64,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * entries
    slot = memory_row(index_ptr, row, rows)
    scale = row_scale(scale_ptr, slot, ACC)
    memory_ptr += slot * entries
    eps = sample_number(eps_bits, eps_ptr, eps_stride, row, ACC)
    lower, upper = scalar(lower_bits, ACC), scalar(upper_bits, ACC)
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        x = load(x_ptr + base, offs, mask, ACC)
        u = recall(memory_ptr, scale, offs, mask, ACC)
        store(out_ptr + base, offs, clamp(x + eps * u, lower, upper), mask)
    else:
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            x = load(x_ptr + base, offs, mask, ACC)
            u = recall(memory_ptr, scale, offs, mask, ACC)
            store(out_ptr + base, offs, clamp(x + eps * u, lower, upper), mask)


def constexprs(entries: int, dtype: torch.dtype) -> Constexprs:
    return tile(entries, dtype)


def replay_start(
    memory: Tensor,
    scale: Tensor | None,
    index: Tensor,
    x: Tensor,
    eps: float,
    eps_tensor: Tensor | None,
    lower: float,
    upper: float,
) -> Tensor:
    check_dense(memory, scale)
    index, x = index.contiguous(), x.contiguous()
    out = torch.empty_like(x)
    batch, entries = x.shape
    if out.numel() == 0:
        return out
    meta = constexprs(entries, x.dtype)
    with on_device(x):
        replay_start_kernel[(batch,)](
            memory,
            scale,
            index,
            x,
            out,
            *per_sample(eps_tensor),
            memory.shape[0],
            entries,
            bits(eps),
            bits(lower),
            bits(upper),
            **meta,
            num_warps=warps(meta),
        )
    return out
