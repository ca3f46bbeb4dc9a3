"""Cases and error budgets for the fused ops: one set for the C++ tests, the Triton tests and the benchmarks.

How to use it::

    for case in op_cases("lmo"):                       # op_cases("lmo", SMALL_SHAPES) for slow runs
        args = case.args(torch.bfloat16, "cpu")        # positional arguments of torch.ops.soatfast.lmo, made afresh
        outputs = call("lmo", torch.ops.soatfast.lmo, args)  # results, then the updated arguments; args stay
        check("lmo", torch.ops.soatfast.lmo, args)     # raises AssertionError with the worst element

* ``op_cases(op, shapes=SHAPES)`` is a list of :class:`Case`; ``case.id`` is a readable pytest id. The arguments are the
  raw op's (see ``soatfast.ops.contract.SCHEMAS``): (B, D) tensors, numbers, and per-sample eps or alpha tensors of
  shape (1,) or (B,) in the accumulation dtype. A case is deterministic: the same id gives the same numbers. Tensors
  stay below 1e5 elements. The last case of every parameter set is a batch of degenerate rows (:func:`degenerate_rows`).
* ``dtypes(op)`` are the dtypes that an op takes: the replay ops have no half types.
* ``check(op, kernel, args)`` calls the kernel, and the reference in the same dtype and in float64 on the CPU, and
  compares (:func:`compare` does the last part alone, on what :func:`call` gave)::

      |kernel - fp64| <= 2 (max_row |same-dtype reference - fp64| + eps(dtype) max_row |fp64|)

  (with eps(accumulate) max_row |x| in addition where the output is a point x + ...: its entries may cancel).
  The row's largest reference error is used, not the element's own, because one element of the reference may be right
  by luck. Where the same-dtype reference is not finite the kernel must be not finite in the same places. Where the
  result jumps (the sign for p = inf, the arg max for p = 1 in a Frank-Wolfe step) an element may differ only inside
  the boundary band: where the fp64 model gradient is within rounding of 0, or of the largest.
  A memory's rows must hold what some u within the budget of the fp64 u' is stored as, so an int8 entry may be one step
  off only at a jump of the rounding; rows that are not in the index must keep their bits.
* ``LAYOUTS`` maps a name to a function that gives a tensor of the same values in another memory layout.
* ``DTYPES``, ``SHAPES``, ``SMALL_SHAPES``, ``GENERAL_P`` (lmo, lp_norm, frank_wolfe_*, replay_*), ``BALL_P`` (others).
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .ops import reference
from .ops.constants import INIT_LMO, INIT_RAW, INIT_SCALED, accumulate_dtype
from .ops.contract import MEMORY_DTYPES
from .ops.quantise import remembered

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
SHAPES = ((0, 33), (1, 1), (3, 1), (3, 31), (1, 32), (3, 33), (3, 1000), (1, 4097), (3, 4097))
SMALL_SHAPES = ((0, 33), (3, 1), (3, 31), (1, 32), (3, 33), (1, 1000))
GENERAL_P = (1.0, 1.1, 1.5, 2.0, 3.0, 4.0, 10.0, math.inf)
BALL_P = (1.0, 2.0, math.inf)
EPS = {1.0: 2.0, 2.0: 0.5, math.inf: 0.1}  # radii that bind for the iterates of `_point`
BOUNDS = (0.0, 1.0)


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def _sliced(t: Tensor) -> Tensor:
    wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1] + 1), math.nan)
    wide[..., 1::2] = t
    return wide[..., 1::2]


def _offset(t: Tensor) -> Tensor:
    """Dense, but not aligned to more than one element."""
    return torch.cat([t.new_full((1,), math.nan), t.reshape(-1)])[1:].view(t.shape)


def _expanded(t: Tensor) -> Tensor:
    """The first sample repeated with stride 0."""
    return t[:1].expand(t.shape)


def _channels_last(t: Tensor) -> Tensor:
    return t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "transposed": _transposed,
    "sliced": _sliced,
    "offset": _offset,
    "expanded": _expanded,
    "channels_last": _channels_last,
}


@dataclass(frozen=True)
class Case:
    """One call of an op. ``id`` names it; ``args`` makes its positional arguments."""

    op: str
    id: str
    build: Callable[[torch.Generator, torch.dtype], tuple]

    def args(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> tuple:
        """The raw op's arguments in the given dtype, on the given device."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.op}-{self.id}".encode()))
        return tuple(a.to(device) if isinstance(a, Tensor) else a for a in self.build(generator, dtype))


def degenerate_rows(dtype: torch.dtype, size: int = 33) -> Tensor:
    """Gradients that break careless kernels, a row each: (16, size)."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    position = torch.arange(size)

    def put(row: Tensor, **values: float) -> Tensor:
        row = row.clone()
        for place, value in values.items():
            row[int(place[1:])] = value
        return row

    zero = torch.zeros(size, dtype=torch.float64)
    rows = [
        zero,
        torch.where(position % 2 == 0, 0.0, -0.0).double(),
        put(zero, i7=-3.0),  # one-hot
        torch.where(position % 2 == 0, 0.25, -0.25).double(),  # all tied
        put(0.1 * noise.clamp(-2, 2), i3=1.0, i9=-1.0, i30=1.0),  # three tied at the top
        put(noise, i4=math.nan, i32=math.nan),
        torch.full((size,), math.nan, dtype=torch.float64),
        put(noise, i5=math.inf),
        put(noise, i5=math.inf, i6=-math.inf, i7=math.nan),
        noise * torch.finfo(dtype).tiny / 8,  # denormal in its own dtype
        noise * torch.finfo(accumulate_dtype(dtype)).tiny / 8,
        noise * 1e30,
        noise * 1e-24,
        put(noise * 1e-24, i8=1e30),
        put(noise * 1e-12, i8=1.0),
        noise,
    ]
    return torch.stack(rows).to(dtype)


def _uniform(generator: torch.Generator, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Clean inputs in the box, some exactly on its faces."""
    x = torch.rand(*shape, generator=generator, dtype=torch.float64)
    return (1.2 * x - 0.1).clamp(*BOUNDS).to(dtype)


def _normal(generator: torch.Generator, shape: tuple[int, int], dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def _point(generator: torch.Generator, x: Tensor) -> Tensor:
    """An iterate around x that leaves the ball in some rows and the box in some entries."""
    reach = torch.tensor([0.3, 0.01, 1.0], dtype=torch.float64).repeat(x.shape[0])[: x.shape[0]]
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return (x.double() + reach.unsqueeze(1) * noise).to(x.dtype)


def _radius(kind: str, value: float, rows: int, dtype: torch.dtype) -> tuple[float, Tensor | None]:
    """eps or alpha as the ops take it: a number, or a tensor for all samples or for each."""
    wide = accumulate_dtype(dtype)
    if kind == "number":
        return value, None
    if kind == "one":
        return 0.0, torch.full((1,), value, dtype=wide)
    return 0.0, value * (0.25 + torch.arange(rows, dtype=wide) % 4)


def _gradient(generator: torch.Generator, shape: tuple[int, int] | None, dtype: torch.dtype) -> Tensor:
    return degenerate_rows(dtype) if shape is None else _normal(generator, shape, dtype, 1e-3)


def _lmo(shape, kind, p):
    def build(generator, dtype):
        g = _gradient(generator, shape, dtype)
        return (g, p, *_radius(kind, EPS.get(p, 0.5), g.shape[0], dtype))

    return build


def _lp_norm(shape, kind, p):
    return lambda generator, dtype: (_gradient(generator, shape, dtype), p)


def _in_box(kind, p):
    """The maximiser over ball and box takes turns with the kind of eps."""
    return p == math.inf and kind == "each"


def _box(kind, p):
    return BOUNDS if _in_box(kind, p) else (-math.inf, math.inf)


def _frank_wolfe_init(shape, kind, p, init, central):
    def build(generator, dtype):
        g = _gradient(generator, shape, dtype)
        x = _uniform(generator, g.shape, dtype)
        return (g, x, p, *_radius(kind, EPS.get(p, 0.5), g.shape[0], dtype), init, 1.05, central, *_box(kind, p))

    return build


def _frank_wolfe_step(shape, kind, p, central, last):
    def build(generator, dtype):
        g0 = _gradient(generator, shape, dtype)
        rows, size = g0.shape
        x = _uniform(generator, (rows, size), dtype)
        v = _normal(generator, (rows, size), dtype, 0.05)
        probes = 2 if central else 1
        g1 = (0.5 * g0.double()).to(dtype).repeat(probes, 1)
        if shape is not None:
            g1 = g1 + _normal(generator, (probes * rows, size), dtype, 1e-3)
        radius = _radius(kind, EPS.get(p, 0.5), rows, dtype)
        gamma = 1.0 if kind == "one" else 2 / 3
        return (g0, g1, v, x, p, *radius, gamma, 1.05, central, last, *BOUNDS, _in_box(kind, p))

    return build


def _degenerate_points(generator: torch.Generator, dtype: torch.dtype, huge: float) -> tuple[Tensor, Tensor]:
    """(x_adv, x): no move, one entry, ties, tiny and huge moves, everything pushed against the box."""
    size = 33
    x = _uniform(generator, (9, size), dtype)
    noise = torch.randn(size, generator=generator, dtype=torch.float64)
    one = torch.zeros(size, dtype=torch.float64)
    one[4] = 3.0
    move = torch.stack(
        [0 * one, one, torch.full_like(one, 0.5), noise * 1e-24, noise * 1e-3, noise * 1e3, noise * huge, noise, -noise]
    )
    x[7] = 1.0
    x[8] = 0.5
    return (x.double() + move).to(dtype).nan_to_num(), x


def _project(shape, kind, p, exact):
    def build(generator, dtype):
        if shape is None:
            # An exact L1 threshold is a difference of |x_adv - x| and the room: beyond 1/eps none is left of it.
            x_adv, x = _degenerate_points(generator, dtype, 1e4 if exact and p == 1 else 1e30)
        else:
            x = _uniform(generator, shape, dtype)
            x_adv = _point(generator, x)
        return (x_adv, x, p, *_radius(kind, EPS[p], x.shape[0], dtype), *BOUNDS, exact)

    return build


def _pgd_step(shape, kind, p, exact):
    def build(generator, dtype):
        g = _gradient(generator, shape, dtype)
        x = _uniform(generator, g.shape, dtype)
        x_adv = _point(generator, x)
        rows, size = g.shape
        alpha = _radius("each" if kind == "number" else "number", 0.25 * EPS[p], rows, dtype)
        return (x_adv, g, x, p, *_radius(kind, EPS[p], rows, dtype), *alpha, *BOUNDS, exact, -(-size // 10))

    return build


def _memory(
    generator: torch.Generator, rows: int, size: int, dtype: torch.dtype, p: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(memory (N, D) with N > rows, scale (N,) for int8, index (rows,) in no order); vectors of norm <= 1, some 0."""
    count = 2 * rows + 3
    u = torch.randn(count, size, generator=generator, dtype=torch.float64)
    if p == math.inf:
        u = u.clamp(-1, 1)  # a third of the entries are vertices
    else:
        u *= torch.rand(count, 1, generator=generator, dtype=torch.float64) / torch.linalg.vector_norm(
            u, p, dim=1, keepdim=True
        )
    u[::5] = 0
    index = torch.randperm(count, generator=generator)[:rows]
    if dtype != torch.int8:
        return u.to(dtype), None, index
    top = torch.ones(count, dtype=torch.float64) if p == math.inf else u.abs().amax(1)
    steps = 127 * u / torch.where(top > 0, top, 1.0).unsqueeze(1)
    if p == math.inf:
        top[1::3] = 0.5  # as a step of another norm leaves it
    return steps.trunc().to(torch.int8), top.float(), index


def _replay_radius(kind: str, p: float, rows: int, dtype: torch.dtype) -> tuple[float, Tensor | None]:
    """As the other ops' eps; of one for each sample, every fourth is 0: nothing moves and 0 is remembered."""
    number, tensor = _radius(kind, EPS.get(p, 0.5), rows, dtype)
    if kind == "each" and tensor is not None:
        tensor[1::4] = 0
    return number, tensor


def _replay_start(shape, kind, p, memory):
    def build(generator, dtype):
        rows, size = (16, 33) if shape is None else shape
        x = _uniform(generator, (rows, size), dtype)
        return (*_memory(generator, rows, size, memory, p), x, *_replay_radius(kind, p, rows, dtype), *BOUNDS)

    return build


def _replay_step(shape, kind, p, memory):
    def build(generator, dtype):
        g = _gradient(generator, shape, dtype)
        x = _uniform(generator, g.shape, dtype)
        rows, size = g.shape
        radius = _replay_radius(kind, p, rows, dtype)
        gamma = {"number": 0.5, "each": 0.3, "one": 1.0}[kind]
        return (*_memory(generator, rows, size, memory, p), g, x, p, *radius, gamma, *BOUNDS, _in_box(kind, p))

    return build


_FLAGS = (False, True)
_PARAMETERS: dict[str, tuple[Callable, dict[str, Sequence[Any]]]] = {
    "lmo": (_lmo, {"p": GENERAL_P}),
    "lp_norm": (_lp_norm, {"p": GENERAL_P}),
    "frank_wolfe_init": (
        _frank_wolfe_init,
        {"p": GENERAL_P, "init": (INIT_SCALED, INIT_LMO, INIT_RAW), "central": _FLAGS},
    ),
    "frank_wolfe_step": (_frank_wolfe_step, {"p": GENERAL_P, "central": _FLAGS, "last": _FLAGS}),
    "project": (_project, {"p": BALL_P, "exact": _FLAGS}),
    "pgd_step": (_pgd_step, {"p": BALL_P, "exact": _FLAGS}),
    "replay_start": (_replay_start, {"p": (2.0, math.inf), "memory": MEMORY_DTYPES}),
    "replay_step": (_replay_step, {"p": GENERAL_P, "memory": MEMORY_DTYPES}),
}
OPS = tuple(_PARAMETERS)
UPDATED = {"replay_step": (0, 1)}  # positions of the arguments that an op updates in place
_X_POSITION = {"frank_wolfe_init": 1, "frank_wolfe_step": 3, "project": 1, "pgd_step": 2}  # of x in the arguments


def op_cases(op: str, shapes: Iterable[tuple[int, int]] = SHAPES) -> list[Case]:
    """Every argument set of ``op`` on every shape, and on the degenerate rows; the kind of eps takes turns.

    >>> [case.id for case in op_cases("lp_norm", shapes=[(3, 31)])][:2]
    ['p=1.0-3x31', 'p=1.0-degenerate']
    """
    build, parameters = _PARAMETERS[op]
    turns = itertools.cycle(("number", "each", "one"))
    cases = []
    for values in itertools.product(*parameters.values()):
        label = "-".join(f"{name}={value}" for name, value in zip(parameters, values, strict=True))
        for shape in [*shapes, None]:
            size = "degenerate" if shape is None else f"{shape[0]}x{shape[1]}"
            cases.append(Case(op, f"{label}-{size}", build(shape, next(turns), *values)))
    return cases


def dtypes(op: str) -> tuple[torch.dtype, ...]:
    """The dtypes of ``DTYPES`` that an op takes for its batch.

    >>> dtypes("replay_step")
    (torch.float32, torch.float64)
    """
    return DTYPES[:2] if op.startswith("replay") else DTYPES


def call(op: str, kernel: Callable, args: tuple) -> tuple[Tensor, ...]:
    """The results of ``kernel(*args)``, and after them the arguments that it updated: copies, args stay as they are."""
    positions = UPDATED.get(op, ())
    own = tuple(a.clone() if i in positions and isinstance(a, Tensor) else a for i, a in enumerate(args))
    results = _as_tuple(kernel(*own))
    return (*results, *(own[i] for i in positions if own[i] is not None))


def check(op: str, kernel: Callable, args: tuple) -> None:
    """Call ``kernel(*args)`` and compare it with the reference in float64 under the budget (see the module's head)."""
    compare(op, call(op, kernel, args), args)


def compare(op: str, got: Tensor | tuple[Tensor, ...], args: tuple) -> None:
    """Compare what :func:`call` gave for ``args`` with the float64 reference under the budget."""
    if op.startswith("replay"):
        return _compare_replay(op, _as_tuple(got), args)
    function = getattr(reference, op)
    cpu = tuple(a.cpu() if isinstance(a, Tensor) else a for a in args)
    double = tuple(a.double() if isinstance(a, Tensor) else a for a in cpu)
    outputs = tuple(t.cpu() for t in _as_tuple(got))
    same, exact = _as_tuple(function(*cpu)), _as_tuple(function(*double))
    assert len(outputs) == len(same), f"{op}: {len(outputs)} outputs, expected {len(same)}"
    for index, (mine, twin) in enumerate(zip(outputs, same, strict=True)):
        assert mine.shape == twin.shape, f"{op}[{index}]: shape {tuple(mine.shape)}, expected {tuple(twin.shape)}"
        assert mine.dtype == twin.dtype, f"{op}[{index}]: {mine.dtype}, expected {twin.dtype}"
    band = scale = floor = None
    position = _X_POSITION.get(op)
    if position is not None:
        size = double[position].abs()
        p_position, exact_position = {"project": (2, -1), "pgd_step": (3, -2)}.get(op, (0, 0))
        if p_position and double[p_position] == 1 and double[exact_position]:
            size = torch.maximum(size, double[0].abs())  # the exact L1 threshold is as large as the move
        floor = torch.finfo(accumulate_dtype(cpu[0].dtype)).eps * size.amax(1, keepdim=True)
    if op == "frank_wolfe_step":
        exact, band, scale = _frank_wolfe_band(double, cpu[0].dtype, outputs, exact)
    for index, (mine, twin, truth) in enumerate(zip(outputs, same, exact, strict=True)):
        is_gap = mine.dim() == 1
        where = None if band is None or is_gap else band.expand(-(-mine.shape[0] // max(1, band.shape[0])), *band.shape)
        where = None if where is None else where.reshape(mine.shape)
        slack = scale if is_gap else floor
        if slack is not None and not is_gap:
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
    args: tuple, dtype: torch.dtype, outputs: tuple[Tensor, ...], exact: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Tensor | None, Tensor]:
    """Where a Frank-Wolfe step may jump: float64 results, band (B, D) or None, and rounding of the gap (B,).

    Rounding moves the model gradient G by a few eps(accumulate) times its terms. For p = inf the sign may flip where
    |G| is below that; for p = 1 the arg max may be any entry that near to the largest, and the one that the kernel
    took is put into the float64 result.
    """
    g0, g1, v, x, p, eps, eps_tensor, gamma, h, central, last, lower, upper, _ = args
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


def _largest(t: Tensor) -> Tensor:
    return t.amax(1) if t.numel() else t.new_zeros(t.shape[0])


def _flat(radius: float | Tensor) -> float | Tensor:
    return radius.reshape(-1) if isinstance(radius, Tensor) else radius


def _compare_replay(op: str, got: tuple[Tensor, ...], args: tuple) -> None:
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
