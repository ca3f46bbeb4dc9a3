"""Host side of the kernels: tile sizes, per-sample tensors, device guard, and what a compiler must know.

Parameter names carry the types, so that a kernel's own signature is enough to compile it ahead of time:
``*_ptr`` is a pointer to the storage dtype (to the accumulation dtype for the per-sample ones; ``index_ptr``,
``label_ptr``, ``scale_ptr`` and those that the caller names have a dtype of their own), ``*_bits`` a number as in
:mod:`._math`, upper case a constexpr, anything else an integer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from soatfast.ops.constants import accumulate_dtype
from soatfast.ops.triton._math import bits
from soatfast.ops.triton._row import GENERAL, INF, ONE, TWO

Constexprs: TypeAlias = dict[str, Any]

ON_CHIP_BYTES = 65536  # registers for a row's tiles, in the accumulation dtype; a row that fits is read once
CHUNK = 2048  # entries a step of the streaming path

_ACC = {torch.float32: tl.float32, torch.float64: tl.float64}
_TRITON_NAME = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "i8",
    torch.int64: "i64",
}
_PER_SAMPLE = ("eps_ptr", "alpha_ptr", "gap_ptr", "rayleigh_ptr", "norm_ptr")
_FIXED = {"index_ptr": torch.int64, "label_ptr": torch.int64, "scale_ptr": torch.float32}


def norm_kind(p: float) -> int:
    """The constexpr NORM of an order p."""
    return {math.inf: INF.value, 1.0: ONE.value, 2.0: TWO.value}.get(p, GENERAL.value)


def exponents(p: float) -> tuple[int, int]:
    """q - 1 = 1/(p - 1) and -1/p as bits, for p in (1, inf); unused (0, 0) elsewhere."""
    return (bits(1 / (p - 1)), bits(-1 / p)) if 1 < p < math.inf else (0, 0)


def tile(entries: int, dtype: torch.dtype, kept: int = 1) -> Constexprs:
    """ON_CHIP, BLOCK and ACC for rows of ``entries``, of which ``kept`` tiles live across the reductions.

    A block is more than a warp: with one entry a lane, the compiler fuses a lane's square with the one that a shuffle
    brings, lanes get different sums of the same row, and leave a search at different steps.
    """
    acc = accumulate_dtype(dtype)
    block = max(64, triton.next_power_of_2(entries))
    on_chip = block * acc.itemsize * kept <= ON_CHIP_BYTES
    return {"ON_CHIP": on_chip, "BLOCK": block if on_chip else CHUNK, "ACC": _ACC[acc]}


def kept_by(p: float) -> int:
    """Tiles that live across a row's reduction: one, two where a general p keeps the powers too."""
    return 2 if norm_kind(p) == GENERAL.value else 1


def kept_in_box(p: float, in_box: bool, kept: int) -> int:
    """The same where ``kept`` live otherwise: the search for the multiplier of ball and box holds float64 tiles."""
    return 5 if in_box and p == 2 else kept


def warps(constexprs: Mapping[str, Any]) -> int:
    """Warps a program: a thread has 8 to 16 float32 entries of each tile, 32 at the longest rows on chip.

    It has 4 to 8 where registers are short: in chunks of a long row and in the searches of a projection.
    """
    width = constexprs["BLOCK"] * constexprs["ACC"].primitive_bitwidth // 32
    if not constexprs["ON_CHIP"]:
        return max(1, min(16, width // 256))
    if "EXACT" in constexprs and constexprs["NORM"] != INF.value:
        return max(1, min(16, width // 128))
    return max(1, min(16, max(min(4, width // 128), width // 512)))


def per_sample(value: Tensor | None) -> tuple[Tensor | None, int]:
    """The optional eps or alpha tensor and its stride: 0 when one number serves all samples."""
    return value, 0 if value is None or value.numel() == 1 else value.stride(0)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device: make it the tensor's, where it is another."""
    if tensor.is_cuda and tensor.device.index != torch.cuda.current_device():
        return torch.cuda.device(tensor.device)
    return contextlib.nullcontext()


def aot_source(
    kernel: Any,
    dtype: torch.dtype,
    constexprs: Constexprs,
    absent: tuple[str, ...] = (),
    unaligned: bool = False,
    own: Mapping[str, torch.dtype] | None = None,
) -> tuple[dict[str, str], Constexprs, dict]:
    """(signature, constexprs, attributes) for ``triton.compiler.ASTSource``.

    Args:
        kernel: the jitted function.
        dtype: storage dtype of the batch.
        constexprs: what the launcher passes as constexprs.
        absent: optional pointers passed as None.
        unaligned: without the promise that pointers and the row length are multiples of 16.
        own: pointers to another dtype than the batch's, as ``memory_ptr``.
    """
    pointed = {**dict.fromkeys(_PER_SAMPLE, accumulate_dtype(dtype)), **_FIXED, **(own or {})}
    signature, attributes = {}, {}
    values = dict(constexprs)
    for position, name in enumerate(kernel.arg_names):
        if name in values:
            signature[name] = "constexpr"
        elif name in absent:
            signature[name], values[name] = "constexpr", None
        elif name.endswith("_ptr"):
            signature[name] = "*" + _TRITON_NAME[pointed.get(name, dtype)]
        else:
            signature[name] = "i64" if name.endswith("_bits") else "i32"
        aligned = name.endswith("_ptr") or name == "entries"
        if aligned and signature[name] != "constexpr" and not unaligned:
            attributes[(position,)] = [["tt.divisibility", 16]]
    return signature, values, attributes
