"""cross_entropy_derivative: softmax with the label's entry minus the sum of the others. 8 bytes an entry.

A row longer than a tile is read three times. A label outside the row makes it NaN: nothing is read at a label.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.triton._launch import Constexprs, on_device, tile, warps
from soatfast.ops.triton._math import bits, divide, exponential, scalar
from soatfast.ops.triton._row import store


@triton.jit
def _logits(pointer, offs, mask, ACC: tl.constexpr):
    """A tile in the accumulation dtype; -inf, a probability of 0, beyond the row's end."""
    return tl.load(pointer + offs, mask=mask, other=-float("inf")).to(ACC)  # [BLOCK]


@triton.jit
def _masses(e, offs, label):
    """Sum of the other classes' exponentials, and that of the label."""
    chosen = offs == label
    return tl.sum(tl.where(chosen, 0.0, e), 0), tl.sum(tl.where(chosen, e, 0.0), 0)


@triton.jit
def _factor(sign, others, chosen, label, entries):
    """sign over the sum of all exponentials; NaN for a label outside the row."""
    factor = divide(sign, others + chosen)
    return tl.where((label >= 0) & (label < entries), factor, float("nan"))


@triton.jit
def cross_entropy_derivative_kernel(
    logits_ptr,  # [B, K]
    label_ptr,  # [B]
    out_ptr,  # [B, K]
    entries,  # K
    sign_bits: tl.int64,
    ON_CHIP: tl.constexpr,
    BLOCK: tl.constexpr,
    ACC: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    base = row * entries
    label = tl.load(label_ptr + row)
    sign = scalar(sign_bits, ACC)
    if ON_CHIP:
        offs = tl.arange(0, BLOCK)  # [BLOCK]
        mask = offs < entries
        z = _logits(logits_ptr + base, offs, mask, ACC)
        e = exponential(z - tl.max(z, 0))
        others, chosen = _masses(e, offs, label)
        factor = _factor(sign, others, chosen, label, entries)
        store(out_ptr + base, offs, tl.where(offs == label, -others, e) * factor, mask)
    else:
        top = tl.full([], -float("inf"), ACC)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            top = tl.maximum(top, tl.max(_logits(logits_ptr + base, offs, offs < entries, ACC), 0))
        others, chosen = tl.zeros([], ACC), tl.zeros([], ACC)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            e = exponential(_logits(logits_ptr + base, offs, offs < entries, ACC) - top)
            others_b, chosen_b = _masses(e, offs, label)
            others += others_b
            chosen += chosen_b
        factor = _factor(sign, others, chosen, label, entries)
        for start in range(0, entries, BLOCK):
            offs = start + tl.arange(0, BLOCK)  # [BLOCK]
            mask = offs < entries
            e = exponential(_logits(logits_ptr + base, offs, mask, ACC) - top)
            store(out_ptr + base, offs, tl.where(offs == label, -others, e) * factor, mask)


def constexprs(entries: int, dtype: torch.dtype) -> Constexprs:
    return tile(entries, dtype)


def cross_entropy_derivative(logits: Tensor, y: Tensor, sign: float) -> Tensor:
    logits, y = logits.contiguous(), y.contiguous()
    out = torch.empty_like(logits)
    batch, entries = logits.shape
    if out.numel() == 0:
        return out
    meta = constexprs(entries, logits.dtype)
    with on_device(logits):
        cross_entropy_derivative_kernel[(batch,)](logits, y, out, entries, bits(sign), **meta, num_warps=warps(meta))
    return out
