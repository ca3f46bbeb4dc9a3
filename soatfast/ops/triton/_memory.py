"""Rows of a perturbation memory in units of eps, as :mod:`soatfast.ops.quantise` keeps them: gather and scatter."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.triton._math import clamp, reciprocal, sign
from soatfast.ops.triton._row import INF, positive_or_one

_STEP = tl.constexpr(1 / 127)


@triton.jit
def memory_row(index_ptr, row, rows):
    """index[row] as int64: N D exceeds 2^31. Whether it is in [0, rows) is asserted with TRITON_DEBUG=1 only."""
    slot = tl.load(index_ptr + row).to(tl.int64)
    tl.device_assert((slot >= 0) & (slot < rows), "index outside the memory")
    return slot


@triton.jit
def row_scale(scale_ptr, slot, ACC: tl.constexpr):
    """The scale of a row of int8, 1 without one."""
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + slot).to(ACC)
    else:
        scale = tl.full([], 1.0, ACC)
    return scale


@triton.jit
def _places(memory_ptr, offs, ACC: tl.constexpr):
    """Pointers to a tile's entries, of which a thread takes as many side by side as 16 bytes hold of the batch.

    It would take 16 bytes of a narrow memory, and then as many entries of the batch: with gaps between the threads'
    loads, and stores that go through shared memory.
    """
    return tl.max_contiguous(memory_ptr + offs, 2 if tl.float64 == ACC else 4)


@triton.jit
def recall(memory_ptr, scale, offs, mask, ACC: tl.constexpr):
    """u of a tile of the row at memory_ptr. [BLOCK]"""
    u = tl.load(_places(memory_ptr, offs, ACC), mask=mask, other=0.0).to(ACC)
    if memory_ptr.dtype.element_ty == tl.int8:
        u = u * tl.full([], _STEP, ACC) * scale
    return u


@triton.jit
def _quotient(a, b):
    """a / b, correctly rounded where it is 1 or more: :func:`.divide` for one b > 0 and many a, |a| <= 127 b.

    Without the branches of a float32 division, around which registers spill: two corrections by the exact residual
    (Markstein), which a power of two keeps from underflow.
    """
    if a.dtype == tl.float64:
        q = a / b
    else:
        lift = tl.where(b < 1e-30, 1.2676506002282294e30, 1.0).to(tl.float32)  # 2^100
        a, b = a * lift, b * lift
        inverse = reciprocal(b)
        q = a * inverse
        q = tl.fma(tl.fma(-q, b, a), inverse, q)
        q = tl.fma(tl.fma(-q, b, a), inverse, q)
    return q


@triton.jit
def remember(memory_ptr, offs, u, top, mask, NORM: tl.constexpr, ACC: tl.constexpr):
    """Write a tile u to the row at memory_ptr. top = max|u| of the row, in float32, for int8 and p < inf."""
    if memory_ptr.dtype.element_ty == tl.int8:
        if NORM == INF:
            u = u * 127 + sign(u) * 0.5
        else:
            u = _quotient(u * 127, positive_or_one(top).to(u.dtype))
        u = clamp(u, -127.0, 127.0)  # the conversion truncates
    elif memory_ptr.dtype.element_ty == tl.bfloat16:
        # Rounded by hand, as a conversion rounds to nearest on a GPU and truncates in the interpreter.
        pattern = u.to(tl.float32).to(tl.int32, bitcast=True)
        if NORM == INF:
            pattern += 0x7FFF + ((pattern >> 16) & 1)  # to nearest, ties to even
        u = (pattern & -0x10000).to(tl.float32, bitcast=True)  # towards 0
    tl.store(_places(memory_ptr, offs, ACC), u.to(memory_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_scale(scale_ptr, slot, top, NORM: tl.constexpr):
    """Every warp reads the old scale and one writes the new: not before all have read."""
    tl.debug_barrier()
    if NORM == INF:
        tl.store(scale_ptr + slot, 1.0)
    else:
        tl.store(scale_ptr + slot, top)


def check_dense(memory: Tensor, scale: Tensor | None) -> None:
    """A copy of a strided memory would be updated in its place."""
    if not memory.is_contiguous() or not (scale is None or scale.is_contiguous()):
        raise ValueError("memory and scale must be contiguous: they are indexed by rows and updated in place")
