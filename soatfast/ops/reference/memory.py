"""The twins of the ops on a perturbation memory. Rows, rules and names as in :mod:`.streaming`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from soatfast.ops.quantise import remember, remembered
from soatfast.ops.reference.streaming import box_lmo, column, into_box, scaled, unit_lmo


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
    v = column(eps, eps_tensor) * remembered(memory, scale, index, x.dtype)
    return (x + v).clamp(lower, upper)


def replay_step(
    memory: Tensor,
    scale: Tensor | None,
    index: Tensor,
    g: Tensor,
    x: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None,
    gamma: float,
    lower: float,
    upper: float,
    in_box: bool,
) -> Tensor:
    radius = torch.as_tensor(column(eps, eps_tensor), dtype=x.dtype, device=x.device)
    v = into_box(radius * remembered(memory, scale, index, x.dtype), x, lower, upper)
    r, _ = scaled(g)
    s = box_lmo(g, x, p, radius, lower, upper) if in_box else radius * unit_lmo(r, p)
    v = into_box(v + gamma * (s - v), x, lower, upper)
    inverse = 1 / torch.where(radius > 0, radius, 1.0)  # infinite for a denormal radius, which counts as none
    u = v * torch.where((radius > 0) & (inverse < math.inf), inverse, 0.0)
    remember(memory, scale, index, u.clamp(-1, 1), p)
    return (x + v).clamp(lower, upper)
