"""How a replay memory keeps u = v / eps, a point of the unit ball: (N, D) rows of float32, bfloat16 or int8.

What is written to the memory is in the ball again when it is read. For p = inf rounding to nearest keeps |u| <= 1 in
every format. For other p bfloat16 and int8 round towards 0, so that no entry grows. int8 is u = scale q / 127: for p =
inf the scale is 1 and halves round away from 0; for other p the scale is the row's largest entry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def remembered(memory: Tensor, scale: Tensor | None, index: Tensor, dtype: torch.dtype) -> Tensor:
    """u (B, D): the rows `index` in the arithmetic's dtype."""
    u = memory[index].to(dtype)
    return u if scale is None else u * (1 / 127) * scale[index].to(dtype).unsqueeze(1)


def remember(memory: Tensor, scale: Tensor | None, index: Tensor, u: Tensor, p: float) -> None:
    """Write u (B, D), of norm <= 1, to the rows `index`."""
    if scale is None:
        if memory.dtype == torch.bfloat16 and p != math.inf:
            u = (u.float().view(torch.int32) & -65536).view(torch.float32)  # drop the mantissa's lower half
        memory[index] = u.to(memory.dtype)
        return
    if p == math.inf:
        scale[index] = 1.0
        q = (u * 127 + u.sign() * 0.5).trunc()
    else:
        top = u.abs().amax(1, keepdim=True).to(torch.float32)
        scale[index] = top.squeeze(1)
        q = (u * 127 / torch.where(top > 0, top, 1.0).to(u.dtype)).trunc()
    memory[index] = q.clamp(-127, 127).to(torch.int8)
