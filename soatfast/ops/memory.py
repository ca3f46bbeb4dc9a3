"""Frank-Wolfe with memory: the fused ops that continue each sample's perturbation from its last visit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from soatfast.ops import contract
from soatfast.ops.arguments import (
    Bounds,
    Layout,
    boxed_order,
    check_between,
    clamped,
    dtype_or_kind,
    kernel_box,
    per_sample,
)
from soatfast.ops.dispatch import kernel


def _replayed(
    memory: Tensor, index: Tensor, x: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """(memory (N, D), scale (N,), index (B,), x (B, D)) of a checked call; rows are in the memory's order."""
    if not isinstance(memory, Tensor) or memory.dtype not in contract.MEMORY_DTYPES:
        raise TypeError(f"memory must be float32, bfloat16 or int8, got {getattr(memory, 'dtype', type(memory))}")
    if not isinstance(x, Tensor) or x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x must be a float32 or float64 batch, got {dtype_or_kind(x)}")
    if memory.dim() != x.dim() or memory.dim() < 2 or memory.shape[1:] != x.shape[1:]:
        raise ValueError(f"memory and x must agree behind the first dimension, got {memory.shape} and {x.shape}")
    if not memory.is_contiguous():
        raise ValueError("memory must be contiguous: it is updated in place")
    if (scale is not None) != (memory.dtype == torch.int8):
        given = scale if scale is None else tuple(scale.shape)
        raise ValueError(f"an int8 memory needs scale, another takes none; got {memory.dtype} and scale {given}")
    if scale is not None and (scale.shape != memory.shape[:1] or scale.dtype != torch.float32):
        raise ValueError(f"scale must be float32 of shape ({len(memory)},), got {scale.dtype} {tuple(scale.shape)}")
    if not isinstance(index, Tensor) or index.dtype != torch.int64:
        raise TypeError(f"index must be an int64 tensor, got {getattr(index, 'dtype', type(index).__name__)}")
    if index.shape != x.shape[:1]:
        raise ValueError(f"index must have shape ({len(x)},), one for each sample, got {tuple(index.shape)}")
    for name, t in (("memory", memory), ("index", index), ("scale", scale)):
        if t is not None and t.device != x.device:
            raise ValueError(f"{name} is on {t.device}, expected {x.device}, the batch's")
    size = math.prod(memory.shape[1:])
    return memory.view(len(memory), size), scale, index, x.detach().reshape(len(x), size)


def _like(rows: Tensor, x: Tensor) -> Tensor:
    """rows (B, D) in x's shape and layout."""
    return rows.view(x.shape).contiguous(memory_format=Layout(x).format)


def replay_start(
    memory: Tensor,
    index: Tensor,
    x: Tensor,
    eps: float | Tensor,
    *,
    scale: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    r"""x + eps u, clamped to the box, with the remembered u = memory[index]: the point at which a replay step needs the
    gradient. Gather, dequantise, add and clamp in one launch.

    Args:
        memory: (N, ...) perturbations in units of eps; float32, bfloat16, or int8 for scale q / 127.
        index: (B,) int64, rows of the memory; not checked here (:class:`~soatfast.memory.PerturbationMemory` does).
        x: (B, ...) clean batch, float32 or float64.
        eps: radius; a number or a tensor of shape () or (B,).
        scale: (N,) float32, with int8 only.
        bounds: the box of valid inputs.

    >>> import torch
    >>> memory = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    >>> replay_start(memory, torch.tensor([1]), torch.tensor([[0.5, 0.1]]), 0.2)
    tensor([[0.7000, 0.0000]])
    """
    rows = _replayed(memory, index, x, scale)
    number, tensor = per_sample(eps, "eps", x)
    return clamped(_like(kernel("replay_start")(*rows, number, tensor, *kernel_box(bounds)), x), bounds)


def replay_step(
    memory: Tensor,
    index: Tensor,
    g: Tensor,
    x: Tensor,
    p: float,
    eps: float | Tensor,
    gamma: float = 0.5,
    *,
    scale: Tensor | None = None,
    bounds: Bounds = (0.0, 1.0),
    in_box: bool = False,
) -> Tensor:
    r"""One Frank-Wolfe step from the remembered perturbation; updates memory[index] and returns clamp(x + v').

        v = into_box(eps u);   s = lmo_p(g; eps);   v' = into_box(v + gamma (s - v));   u' = v'/eps,  u = memory[index]

    into_box(v) = clip(v, lower - x, upper - x). Gather, LMO, blend, clamps, quantise and scatter in one launch; g, x
    and the row are read once, row and x + v' written once. v' is in the ball, and so is what the memory gives back:
    int8 and bfloat16 round to nearest for p = inf (int8: halves away from 0), towards 0 for other p, int8 then in steps
    of the row's largest entry / 127 (:mod:`soatfast.ops.quantise`).
    The returned batch has v' as it was before it was rounded for the memory.

    Args:
        memory: (N, ...) perturbations in units of eps, contiguous, updated in place; float32, bfloat16 or int8.
        index: (B,) int64, rows of the memory, each at most once; not checked here.
        g: (B, ...) gradient at ``replay_start(memory, index, x, eps)``.
        x: (B, ...) clean batch, float32 or float64.
        p: order of the norm, 1 <= p <= inf.
        eps: radius; a number or a tensor of shape () or (B,).
        gamma: step size in [0, 1]; 1 forgets the past.
        scale: (N,) float32, updated in place, with int8 only.
        bounds: the box of valid inputs.
        in_box: take the s that maximises over ball and box (:func:`lmo` at x); p = 1, 2 or inf.

    >>> import math, torch
    >>> memory = torch.zeros(3, 2)
    >>> x, g = torch.tensor([[0.5, 0.5]]), torch.tensor([[2.0, -1.0]])
    >>> replay_step(memory, torch.tensor([1]), g, x, math.inf, 0.2)
    tensor([[0.6000, 0.4000]])
    >>> memory[1]
    tensor([ 0.5000, -0.5000])
    """
    gamma = check_between(gamma, "gamma", 0, 1)
    memory_rows, scale, index, x_rows = _replayed(memory, index, x, scale)
    if not isinstance(g, Tensor):
        raise TypeError(f"g must be a tensor, got {type(g).__name__}")
    if g.shape != x.shape or g.dtype != x.dtype or g.device != x.device:
        raise ValueError(f"g must be as x, {x.dtype} {tuple(x.shape)} on {x.device}, got {g.dtype} {tuple(g.shape)}")
    number, tensor = per_sample(eps, "eps", x)
    rows = kernel("replay_step")(
        memory_rows,
        scale,
        index,
        g.detach().reshape(x_rows.shape),
        x_rows,
        boxed_order(p, in_box),
        number,
        tensor,
        float(gamma),
        *kernel_box(bounds, in_box),
        in_box,
    )
    return clamped(_like(rows, x), bounds)
