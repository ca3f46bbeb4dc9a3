"""The error budget: what a kernel may differ by from the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from soatfast.ops import reference
from soatfast.ops.constants import accumulate_dtype
from soatfast.ops.quantise import remembered
from soatfast.ops.reference.streaming import box_lmo

UPDATED = {"replay_step": (0, 1)}  # positions of the arguments that an op updates in place
_X_POSITION = {"frank_wolfe_init": 1, "frank_wolfe_step": 3, "project": 1, "pgd_step": 2, "power_step": 3}  # of x


def call(op: str, kernel: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The results of ``kernel(*args)``, and after them the arguments that it updated: copies, args stay as they are."""
    positions = UPDATED.get(op, ())
    own = tuple(a.clone() if i in positions and isinstance(a, Tensor) else a for i, a in enumerate(args))
    results = _as_tuple(kernel(*own))
    return (*results, *(own[i] for i in positions if own[i] is not None))


def check(op: str, kernel: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Call ``kernel(*args)`` and compare it with the reference in float64 under the budget (see the package's head)."""
    compare(op, call(op, kernel, args), args)


def compare(op: str, got: Tensor | tuple[Tensor, ...], args: tuple[Any, ...]) -> None:
    """Compare what :func:`call` gave for ``args`` with the float64 reference under the budget."""
    if op.startswith("replay"):
        return _compare_replay(op, _as_tuple(got), args)
    function = getattr(reference, op)
    cpu = tuple(a.cpu() if isinstance(a, Tensor) else a for a in args)
    double = tuple(a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for a in cpu)
    outputs = tuple(t.cpu() for t in _as_tuple(got))
    same, exact = _as_tuple(function(*cpu)), _as_tuple(function(*double))
    assert len(outputs) == len(same), f"{op}: {len(outputs)} outputs, expected {len(same)}"
    for index, (mine, twin) in enumerate(zip(outputs, same, strict=True)):
        assert mine.shape == twin.shape, f"{op}[{index}]: shape {tuple(mine.shape)}, expected {tuple(twin.shape)}"
        assert mine.dtype == twin.dtype, f"{op}[{index}]: {mine.dtype}, expected {twin.dtype}"
    band = floor = None
    slacks: dict[int, Tensor] = {}  # of per-sample results
    position = _X_POSITION.get(op)
    if position is not None:
        size = double[position].abs()
        p_position, exact_position = {"project": (2, -1), "pgd_step": (3, -2)}.get(op, (0, 0))
        if p_position and double[p_position] == 1 and double[exact_position]:
            size = torch.maximum(size, double[0].abs())  # the exact L1 threshold is as large as the move
        floor = torch.finfo(accumulate_dtype(cpu[0].dtype)).eps * size.amax(1, keepdim=True)
    if op == "frank_wolfe_step":
        exact, band, slacks[2] = _frank_wolfe_band(double, cpu[0].dtype, outputs, exact)
    elif op == "power_step":
        slacks[2] = _rayleigh_slack(double, cpu[0].dtype)
    for index, (mine, twin, truth) in enumerate(zip(outputs, same, exact, strict=True)):
        single = mine.dim() == 1
        where = None if band is None or single else band.expand(-(-mine.shape[0] // max(1, band.shape[0])), *band.shape)
        where = None if where is None else where.reshape(mine.shape)
        slack = slacks.get(index) if single else floor
        if slack is not None and not single:
            slack = slack.repeat(mine.shape[0] // max(1, slack.shape[0]), 1)[: mine.shape[0]]
        _assert_within(f"{op}[{index}]", mine, twin, truth, where, slack)


def _as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(value)


def _assert_within(
    name: str, got: Tensor, same: Tensor, exact: Tensor, band: Tensor | None = None, slack: Tensor | None = None
) -> None:
    finite = same.isfinite()
    odd = got.isfinite() != finite
    if band is not None:
        odd &= ~band
    assert not odd.any(), f"{name}: finite in other places than the reference, first at {odd.nonzero()[0].tolist()}"
    if not got.numel():
        return
    keep = finite if band is None else finite & ~band
    exact = torch.where(keep, exact, 0.0)
    difference = torch.where(keep, got.double() - exact, 0.0).abs()
    twin = torch.where(keep, same.double() - exact, 0.0).abs()
    info = torch.finfo(got.dtype)
    if got.dim() == 2:
        budget = twin.amax(1, keepdim=True) + info.eps * exact.abs().amax(1, keepdim=True)
    else:
        budget = twin + info.eps * exact.abs()
    if slack is not None:
        budget = budget + slack
    # In float64 the reference is no better than the kernel: allow both a few roundings.
    factor = 16.0 if got.dtype == torch.float64 else 2.0
    budget = factor * budget + info.tiny * info.eps
    excess = difference - budget
    assert (excess <= 0).all(), _worst(name, got, exact, difference, budget)


def _worst(name: str, got: Tensor, exact: Tensor, difference: Tensor, budget: Tensor) -> str:
    budget = budget.expand_as(difference)
    ratio = difference / budget
    flat = int(ratio.argmax())
    place = [int(i) for i in torch.unravel_index(torch.tensor(flat), difference.shape)]
    return (
        f"{name}: {int((difference > budget).sum())} of {got.numel()} outside the budget; worst at {place}: "
        f"got {got.flatten()[flat].item()!r}, float64 {exact.flatten()[flat].item()!r}, "
        f"off by {ratio.flatten()[flat].item():.3g} budgets"
    )


def _frank_wolfe_band(
    args: tuple[Any, ...], dtype: torch.dtype, outputs: tuple[Tensor, ...], exact: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor]:
    """Where a Frank-Wolfe step may jump: float64 results, band (B, D) or None, and rounding of the gap (B,).

    Rounding moves the model gradient G by a few eps(accumulate) times its terms. For p = inf the sign may flip where
    |G| is below that; for p = 1 the arg max may be any entry that near to the largest, and the one that the kernel
    took is put into the float64 result; over ball and box the entries that near to where eps runs out may change
    places.
    """
    g0, g1, v, x, p, eps, eps_tensor, gamma, h, central, last, lower, upper, in_box = args
    rows = g0.shape[0]
    if central:
        change, terms = (g1[:rows] - g1[rows:]) / (2 * h), (g1[:rows].abs() + g1[rows:].abs()) / (2 * h)
    else:
        change, terms = (g1 - g0) / h, (g1.abs() + g0.abs()) / h
    model = torch.nan_to_num(g0 + change)
    unit = torch.finfo(accumulate_dtype(dtype)).eps
    wobble = 4 * unit * torch.nan_to_num(g0.abs() + terms)
    v_new, probe, gap = exact
    radius = eps if eps_tensor is None else eps_tensor.reshape(-1, 1)
    band = None
    if p == math.inf:
        band = model.abs() <= wobble
        band &= model != 0  # an exact zero has an exact answer in every precision
    elif p == 1 and rows and in_box:
        size = model.abs()
        s = box_lmo(model, x, p, radius, lower, upper)
        moved = torch.where(s != 0, size, math.inf)
        level, at = moved.min(1, keepdim=True)  # |G| at which eps runs out
        band = (size - level).abs() <= wobble + wobble.gather(1, at)
        band &= band.sum(1, keepdim=True) > 1  # one entry alone has no other to change places with
    elif p == 1 and rows:
        close = model.abs() + wobble >= model.abs().amax(1, keepdim=True) - wobble
        got_s = (outputs[0].double() - (1 - gamma) * v) * model.sign()
        taken = torch.where(close, got_s, -math.inf).argmax(1, keepdim=True)
        largest = model.abs().amax(1, keepdim=True)
        ambiguous = (close.sum(1, keepdim=True) > 1) & (model.abs().gather(1, taken) < largest)
        s = torch.zeros_like(model).scatter(1, taken, model.gather(1, taken).sign()) * radius
        other = v + gamma * (s - v)
        v_new = torch.where(ambiguous, other, v_new)
        if last:
            other_probe = (x + other).clamp(lower, upper)
        else:
            other_probe = torch.cat([x + h * other, x - h * other]) if central else x + h * other
        probe = torch.where(ambiguous.repeat(probe.shape[0] // rows, 1), other_probe, probe)
    direction = v.abs() + (radius if p != 1 else 0.0)
    slack = (wobble * direction).sum(1)
    if p == 1:
        slack = slack + _largest(wobble) * _flat(radius)
    return (v_new, probe, gap), band, slack


def _rayleigh_slack(args: tuple[Any, ...], dtype: torch.dtype) -> Tensor:
    """Rounding of <u, H u> (B,): its terms may cancel."""
    g0, g1, u, _, h = args
    product = torch.nan_to_num((g1 - g0) / h)
    return (4 * torch.finfo(accumulate_dtype(dtype)).eps * product * u).abs().sum(1)


def _largest(t: Tensor) -> Tensor:
    return t.amax(1) if t.numel() else t.new_zeros(t.shape[0])


def _flat(radius: float | Tensor) -> float | Tensor:
    return radius.reshape(-1) if isinstance(radius, Tensor) else radius


def _compare_replay(op: str, got: tuple[Tensor, ...], args: tuple[Any, ...]) -> None:
    """x_adv, and where the op updates them memory and scale, against a float64 run that rounds nothing for a memory."""
    cpu = tuple(a.cpu() if isinstance(a, Tensor) else a for a in args)
    memory, scale, index, *others = cpu
    x_adv, *updated = (t.cpu() for t in got)
    x = others[0] if op == "replay_start" else others[1]
    rows = torch.arange(len(memory))
    runs = []
    for dtype in (x.dtype, torch.float64):
        u = remembered(memory, scale, rows, dtype)
        rest = [a.to(dtype) if isinstance(a, Tensor) else a for a in others]
        runs.append((getattr(reference, op)(u, None, index, *rest), u[index]))
    (same, same_u), (exact, exact_u) = runs
    info = torch.finfo(x.dtype)
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype, f"{op}: {x_adv.dtype} {tuple(x_adv.shape)}"
    _assert_within(f"{op}[x_adv]", x_adv, same, exact, None, info.eps * x.double().abs().amax(1, keepdim=True))
    assert len(updated) == (0 if op == "replay_start" else 1 if scale is None else 2), f"{op}: {len(got)} outputs"
    if not updated:
        return
    p = float(cpu[5])
    untouched = torch.ones(len(memory), dtype=torch.bool).index_fill(0, index, False)
    for before, after in zip((memory, scale), updated, strict=False):
        assert after.shape == before.shape and after.dtype == before.dtype, f"{op}: {after.dtype} {after.shape}"
        kept = [t[untouched].view(torch.uint8) for t in (before, after)]
        assert torch.equal(*kept), f"{op}: a row of the memory that is not in the index was changed"
    factor = 16.0 if x.dtype == torch.float64 else 2.0  # as in _assert_within
    error = (same_u - exact_u).abs().amax(1, keepdim=True)
    budget = factor * (error + info.eps * exact_u.abs().amax(1, keepdim=True)) + info.tiny
    steps = None
    if scale is not None:
        steps = updated[1][index].double().unsqueeze(1)
        top = torch.ones_like(budget) if p == math.inf else exact_u.abs().amax(1, keepdim=True)
        slack = 0.0 if p == math.inf else budget + torch.finfo(torch.float32).eps * top
        assert ((steps - top).abs() <= slack).all(), f"{op}[scale]: {steps.tolist()}, expected {top.tolist()}"
    stored = updated[0][index].double()
    low, high = (_stored((exact_u + s * budget).clamp(-1, 1), memory.dtype, steps, p) for s in (-1, 1))
    wrong = ~((low <= stored) & (stored <= high))
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        expected = f"{low[*place].item()!r} to {high[*place].item()!r}"
        message = f"{int(wrong.sum())} of {stored.numel()} entries, first {place}: {stored[*place].item()!r}"
        raise AssertionError(f"{op}[memory]: {message}, expected {expected}")


def _stored(u: Tensor, dtype: torch.dtype, scale: Tensor | None, p: float) -> Tensor:
    """What a memory holds for u (B, D): monotone in u, so the ends of an interval of u give those of the entries."""
    if dtype == torch.bfloat16 and p != math.inf:
        u = (u.float().view(torch.int32) & -65536).view(torch.float32)
    if scale is None:
        return u.to(dtype).double()
    if p == math.inf:
        return (u * 127 + u.sign() * 0.5).trunc()
    return (u * 127 / torch.where(scale > 0, scale, 1.0)).trunc().clamp(-127, 127)
