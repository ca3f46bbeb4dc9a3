"""FISTA (Beck and Teboulle 2009) for a smooth function plus an elastic net on a box, a batch at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def prox(z: Tensor, step: float, l1: float, l2: float, lower: Tensor, upper: Tensor) -> Tensor:
    r"""argmin_u 1/2 ||u - z||^2 + step (l1 ||u||_1 + l2 ||u||_2^2) over lower <= u <= upper, in closed form.

    Entry by entry the function is convex, so its minimiser on an interval is that on the line,
    sgn(z) max(|z| - step l1, 0) / (1 + 2 step l2), clamped to the interval.

    >>> import torch
    >>> z = torch.tensor([0.05, -0.5, 2.0])
    >>> prox(z, step=0.5, l1=0.2, l2=1.0, lower=torch.tensor(-1.0), upper=torch.tensor(0.9))
    tensor([ 0.0000, -0.2000,  0.9000])
    """
    shrunk = z.sign() * (z.abs() - step * l1).clamp_min(0) / (1 + 2 * step * l2)
    return torch.minimum(torch.maximum(shrunk, lower), upper)


def fista(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    step_size: float,
    l1: float,
    l2: float,
    lower: Tensor,
    upper: Tensor,
) -> Tensor:
    r"""min_u f(u) + l1 ||u||_1 + l2 ||u||_2^2 over lower <= u <= upper, from the gradient of f alone.

    u_{k+1} = prox(w_k - a_k gradient(w_k)),  w_{k+1} = clamp(u_{k+1} + k/(k+3) (u_{k+1} - u_k)),
    a_k = step_size sqrt(1 - k/steps): the decay of CEM's code. ``gradient`` is called ``steps`` times, with points of
    the box only. An entry of the gradient that is NaN counts as 0.
    """
    u = w = start
    for k in range(steps):
        size = step_size * math.sqrt(1 - k / steps)
        slope = gradient(w)
        moved = prox(w - size * torch.where(slope.isnan(), 0, slope), size, l1, l2, lower, upper)
        w = torch.minimum(torch.maximum(moved + k / (k + 3) * (moved - u), lower), upper)
        u = moved
    return u
