"""The twins of the ops on (B, D) rows: steps, projections, norms."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from soatfast.ops.constants import INIT_LMO, INIT_SCALED, accumulate_dtype

_LEAST = 1e-150  # of max|g|: below, where squares end, an entry counts as 0 for ball and box at p = 2


def _wide(t: Tensor) -> Tensor:
    return t.to(accumulate_dtype(t.dtype))


def column(value: float, tensor: Tensor | None) -> float | Tensor:
    """The scalar, or the per-sample tensor as a column (B, 1) or (1, 1)."""
    return value if tensor is None else tensor.reshape(-1, 1)


def scaled(g: Tensor) -> tuple[Tensor, Tensor]:
    """r = g / m with |r| <= 1 and m = max|g|, both finite; (0, 0) for a zero row. Shapes (B, D) and (B, 1)."""
    g = torch.nan_to_num(_wide(g))
    m = g.abs().amax(1, keepdim=True)
    return g / torch.where(m > 0, m, 1.0), m


def unit_lmo(r: Tensor, p: float) -> Tensor:
    """argmax of <r, s> over ||s||_p <= 1 for a scaled row r: sgn(r) |r|^(q-1) / (sum |r|^q)^(1/p)."""
    if p == math.inf:
        return r.sign()
    if p == 1:
        first = r.abs().argmax(1, keepdim=True)  # lowest index among ties
        return torch.zeros_like(r).scatter(1, first, r.gather(1, first).sign())
    if p == 2:
        return r * _safe_power(r.square().sum(1, keepdim=True), -0.5)
    q = p / (p - 1)
    size = r.abs()
    return r.sign() * size.pow(q - 1) * _safe_power(size.pow(q).sum(1, keepdim=True), -1 / p)


def _safe_power(s: Tensor, exponent: float) -> Tensor:
    return torch.where(s > 0, s, 1.0).pow(exponent)


def box_lmo(g: Tensor, x: Tensor, p: float, eps: float | Tensor, lower: float, upper: float) -> Tensor:
    """argmax of <g, s> over ||s||_p <= eps and x + s in the box (both wide); p is 1, 2 or inf.

    p = 1 and 2 in float64: entries far below the largest get what it cannot take, and their ratio may be small.
    """
    if p == math.inf:
        return into_box(eps * scaled(g)[0].sign(), x, lower, upper)
    r, _ = scaled(torch.nan_to_num(_wide(g)).double())
    radius = torch.as_tensor(eps, dtype=torch.float64, device=g.device).expand(g.shape[0], 1)
    room = torch.where(r > 0, upper - x.double(), torch.where(r < 0, x.double() - lower, 0.0)).clamp_min(0)
    room = torch.nan_to_num(room, nan=0.0, posinf=math.inf)
    moved = _filled(r.abs(), room, radius) if p == 1 else torch.minimum(_stretched(r.abs(), room, radius), room)
    return into_box((r.sign() * moved).to(x.dtype), x, lower, upper)


def _filled(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """eps spent on the largest entries first, each up to its room, of equal ones on the first: (B, D)."""
    order = size.argsort(dim=1, descending=True, stable=True)
    room = torch.minimum(room.gather(1, order), eps)  # [B, D] falling size; of an endless room eps is enough
    spent = room.cumsum(1) - room
    return torch.zeros_like(room).scatter(1, order, torch.minimum((eps - spent).clamp_min(0), room))


def _stretched(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """t size_i, with the t >= 0 for which sum_i min(t size_i, room_i)^2 = eps^2; all room where that is less. (B, D).

    Entries reach their room in the order of room_i / size_i: sort, and solve the quadratic between two corners.
    """
    size = torch.where(size > _LEAST, size, 0.0)
    corner, order = torch.where(size > 0, room / size, math.inf).sort(dim=1)
    capped = torch.where(corner < math.inf, room.gather(1, order).square(), 0.0).cumsum(1)
    free = size.gather(1, order).square().flip(1).cumsum(1).flip(1)
    start = torch.zeros_like(eps)
    capped = torch.cat([start, capped[:, :-1]], 1)  # [B, D] squares of the entries before this one, at their room
    t = ((eps.square() - capped).clamp_min(0) / torch.where(free > 0, free, 1.0)).sqrt()
    holds = (t <= corner) & (free > 0)  # the corner interval that holds its own solution
    found = holds.any(1, keepdim=True)
    t = t.gather(1, holds.to(torch.int8).argmax(1, keepdim=True))
    return torch.where(found, t * size, torch.where(size > 0, room, 0.0))


def lmo(
    g: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None = None,
    x: Tensor | None = None,
    lower: float = 0.0,
    upper: float = 1.0,
) -> Tensor:
    """With x over ball and box; p is then 1, 2 or inf."""
    r, _ = scaled(g)
    radius = column(eps, eps_tensor)
    s = radius * unit_lmo(r, p) if x is None else box_lmo(g, _wide(x), p, radius, lower, upper)
    return s.to(g.dtype)


def lp_norm(g: Tensor, p: float) -> Tensor:
    r, m = scaled(g)
    size = r.abs()
    if p == math.inf:
        return m.squeeze(1)
    if p == 1:
        return (m * size.sum(1, keepdim=True)).squeeze(1)
    return (m * size.pow(p).sum(1, keepdim=True).pow(1 / p)).squeeze(1)


def _probe(x: Tensor, v: Tensor, h: float, central: bool, dtype: torch.dtype) -> Tensor:
    """x + h v, and below it x - h v for central differences: (B, D) or (2B, D)."""
    forward = x + h * v
    return (torch.cat([forward, x - h * v]) if central else forward).to(dtype)


def into_box(s: Tensor, x: Tensor, lower: float, upper: float) -> Tensor:
    """s with x + s in the box; for s = eps sgn(g) still the maximiser of <g, s>, now over ball and box."""
    return torch.maximum(torch.minimum(s, upper - x), lower - x)


def frank_wolfe_init(
    g0: Tensor,
    x: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None,
    init: int,
    h: float,
    central: bool,
    lower: float,
    upper: float,
) -> tuple[Tensor, Tensor]:
    """lower = -inf and upper = inf where v need not keep x + v in the box."""
    radius = column(eps, eps_tensor)
    r, m = scaled(g0)
    if init == INIT_LMO:
        boxed = lower > -math.inf or upper < math.inf
        v = box_lmo(g0, _wide(x), p, radius, lower, upper) if boxed else radius * unit_lmo(r, p)
    elif init == INIT_SCALED:
        norm = lp_norm(r, p).unsqueeze(1)
        v = radius * r / torch.where(norm > 0, norm, 1.0)
    else:
        v = r * m
    v = into_box(v, _wide(x), lower, upper)
    return v.to(g0.dtype), _probe(_wide(x), v, h, central, g0.dtype)


def frank_wolfe_step(
    g0: Tensor,
    g1: Tensor,
    v: Tensor,
    x: Tensor,
    p: float,
    eps: float,
    eps_tensor: Tensor | None,
    gamma: float,
    h: float,
    central: bool,
    last: bool,
    lower: float,
    upper: float,
    in_box: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    wide_g0, wide_g1, wide_v, wide_x = _wide(g0), _wide(g1), _wide(v), _wide(x)
    if central:
        plus, minus = wide_g1[: g0.shape[0]], wide_g1[g0.shape[0] :]
        model_gradient = wide_g0 + (plus - minus) / (2 * h)
    else:
        model_gradient = wide_g0 + (wide_g1 - wide_g0) / h
    r, m = scaled(model_gradient)
    radius = column(eps, eps_tensor)
    s = box_lmo(model_gradient, wide_x, p, radius, lower, upper) if in_box else radius * unit_lmo(r, p)
    direction = s - wide_v
    gap = (m * (r * direction).sum(1, keepdim=True)).squeeze(1)
    v_new = wide_v + gamma * direction
    if last:
        probe = (wide_x + v_new).clamp(lower, upper).to(g0.dtype)
    else:
        probe = _probe(wide_x, v_new, h, central, g0.dtype)
    return v_new.to(g0.dtype), probe, gap


def power_step(g0: Tensor, g1: Tensor, u: Tensor, x: Tensor, h: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide_u = _wide(u)
    r, m = scaled((_wide(g1) - _wide(g0)) / h)  # H u = m r
    length = r.square().sum(1, keepdim=True).sqrt()
    fresh = torch.where(length > 0, r / torch.where(length > 0, length, 1.0), wide_u)
    rayleigh = m * (wide_u * r).sum(1, keepdim=True)
    probe = (_wide(x) + h * fresh).to(u.dtype)
    return fresh.to(u.dtype), probe, rayleigh.squeeze(1), (m * length).squeeze(1)


def cross_entropy_derivative(logits: Tensor, y: Tensor, sign: float) -> Tensor:
    label = y.unsqueeze(1)
    others = _wide(logits).softmax(1).scatter(1, label, 0.0)
    return (sign * others.scatter(1, label, -others.sum(1, keepdim=True))).to(logits.dtype)


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
    origin = _wide(x)
    delta = _project_delta(_wide(x_adv) - origin, origin, p, column(eps, eps_tensor), lower, upper, exact)
    return (origin + delta).clamp(lower, upper).to(x.dtype)


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
    origin = _wide(x)
    r, _ = scaled(g)
    if p == 1:
        size = r.abs()
        chosen = (size >= size.topk(k, dim=1).values[:, -1:]) & (size > 0)  # ties with the k-th largest included
        direction = r.sign() * chosen / chosen.sum(1, keepdim=True).clamp_min(1)
    else:
        direction = unit_lmo(r, p)
    moved = _wide(x_adv) + column(alpha, alpha_tensor) * direction
    delta = _project_delta(moved - origin, origin, p, column(eps, eps_tensor), lower, upper, exact)
    return (origin + delta).clamp(lower, upper).to(x.dtype)


def _project_delta(
    delta: Tensor, x: Tensor, p: float, eps: float | Tensor, lower: float, upper: float, exact: bool
) -> Tensor:
    """The ball step of a projection; the caller clamps x + delta to the box."""
    if p == math.inf:
        return delta.clamp(-eps, eps)  # type: ignore[arg-type]  # float or (B, 1) alike
    if p == 2 and not exact:
        norm = lp_norm(delta, 2).unsqueeze(1)
        return delta * torch.where(norm > eps, eps / norm, 1.0)
    radius = torch.as_tensor(eps, dtype=delta.dtype, device=delta.device).expand(delta.shape[0], 1)
    # Room up to the box in the direction of delta; without end when only the ball counts.
    room = torch.where(delta > 0, upper - x, x - lower) if exact else torch.full_like(delta, math.inf)
    size = delta.abs()
    if p == 1:
        return (delta.sign() * _shrunk(size.double(), room.double(), radius.double())).to(delta.dtype)
    return delta.sign() * torch.minimum(size * _shrinkage(size, room, radius), room)


def _shrunk(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """min(max(size_i - tau, 0), room_i) with the tau >= 0 for which they add up to eps, or 0 where they are less.

    The sum is piecewise linear in tau, with corners at size_i and size_i - room_i: sort them, add up, interpolate. tau
    is kept as its distance below a corner: after a far move it is as large as the move, and eps is lost in rounding.
    """
    corner = torch.cat([size, (size - room).clamp_min(0), torch.zeros_like(eps)], 1)
    slope = torch.cat([torch.ones_like(size), -torch.ones_like(size), torch.zeros_like(eps)], 1)
    corner, order = corner.sort(dim=1, descending=True, stable=True)
    slope = slope.gather(1, order).cumsum(1)
    total = torch.zeros_like(corner)
    total[:, 1:] = (slope[:, :-1] * (corner[:, :-1] - corner[:, 1:])).cumsum(1)
    after = (total < eps).sum(1, keepdim=True)  # first corner at which the sum reaches eps
    reached = after < corner.shape[1]
    before = (after - 1).clamp_min(0)
    below = torch.where(reached, (eps - total.gather(1, before)) / slope.gather(1, before).clamp_min(1), 0.0)
    base = torch.where(reached, corner.gather(1, before), 0.0)
    moved = torch.minimum((size - base + below).clamp_min(0), room)
    spent = moved.sum(1, keepdim=True)  # beyond 1e15 eps corners at size_i - room_i are rounded: the ball is kept
    return torch.where(spent > eps, moved * (eps / spent), moved)


def _shrinkage(size: Tensor, room: Tensor, eps: Tensor) -> Tensor:
    """t in [0, 1] with sum_i min(t size_i, room_i)^2 = eps^2, or 1 where that sum is below eps^2 at t = 1. (B, 1).

    Entries reach their room in the order of room_i / size_i: sort, and solve the quadratic between two corners.
    """
    scale = size.amax(1, keepdim=True)
    scale = torch.where(scale > 0, scale, 1.0)
    size, room, eps = size / scale, room / scale, eps / scale
    corner, order = torch.where(size > 0, room / size, math.inf).sort(dim=1)
    capped = torch.where(corner < math.inf, room.gather(1, order).square(), 0.0).cumsum(1)
    free = size.gather(1, order).square().flip(1).cumsum(1).flip(1)
    start = torch.zeros_like(eps)
    capped = torch.cat([start, capped], 1)  # [B, D + 1] squares of the entries that reached their room
    free = torch.cat([free, start], 1)  # [B, D + 1] squares of those that have not
    end = torch.cat([corner, torch.full_like(eps, math.inf)], 1)
    t = ((eps.square() - capped).clamp_min(0) / torch.where(free > 0, free, 1.0)).sqrt()
    t = torch.where(free > 0, t, math.inf)
    first = (t <= end).to(torch.int8).argmax(1, keepdim=True)  # the corner interval that holds its own solution
    return t.gather(1, first).clamp_max(1)
