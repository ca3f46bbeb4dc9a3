"""The cases: every op's arguments, made from a seed."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soatfast.ops.constants import INIT_LMO, INIT_RAW, INIT_SCALED, accumulate_dtype
from soatfast.ops.contract import MEMORY_DTYPES

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
    build: Callable[[torch.Generator, torch.dtype], tuple[Any, ...]]

    def args(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> tuple[Any, ...]:
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


def _lmo(shape, kind, in_box, p):
    def build(generator, dtype):
        g = _gradient(generator, shape, dtype)
        ball = (p, *_radius(kind, EPS.get(p, 0.5), g.shape[0], dtype))
        return (_largest_finite(g), *ball, _uniform(generator, g.shape, dtype), *BOUNDS) if in_box else (g, *ball)

    return build


def _largest_finite(g: Tensor) -> Tensor:
    """Infinite entries as the largest of g's dtype, which they count as: in float64 they would count as more."""
    return torch.nan_to_num(g, nan=math.nan)


def _lp_norm(shape, kind, p):
    return lambda generator, dtype: (_gradient(generator, shape, dtype), p)


def _in_box(kind, p):
    """The maximiser over ball and box takes turns with the kind of eps."""
    return p in BALL_P and kind == "each"


def _box(kind, p):
    return BOUNDS if _in_box(kind, p) else (-math.inf, math.inf)


def _frank_wolfe_init(shape, kind, p, init, central):
    def build(generator, dtype):
        g = _gradient(generator, shape, dtype)
        g = _largest_finite(g) if _in_box(kind, p) else g
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
        g = _largest_finite(g) if _in_box(kind, p) else g
        x = _uniform(generator, g.shape, dtype)
        rows, size = g.shape
        radius = _replay_radius(kind, p, rows, dtype)
        gamma = {"number": 0.5, "each": 0.3, "one": 1.0}[kind]
        return (*_memory(generator, rows, size, memory, p), g, x, p, *radius, gamma, *BOUNDS, _in_box(kind, p))

    return build


def _power_step(shape, kind, h):
    def build(generator, dtype):
        if shape is None:
            g = degenerate_rows(dtype)
            g0, g1 = torch.cat([torch.zeros_like(g), g.flip(0)]), g.repeat(2, 1)
        else:
            g0, g1 = (_normal(generator, shape, dtype, 1e-3) for _ in "01")
        rows, size = g0.shape
        x = _uniform(generator, (rows, size), dtype)
        return (g0, g1, _normal(generator, (rows, size), dtype, size**-0.5), x, h)

    return build


def _confident_rows(dtype: torch.dtype, size: int = 33) -> Tensor:
    """Logits of which one rules the row, by more and more, and with some ruled out; (8, size)."""
    noise = torch.randn(size, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    rows = torch.stack([noise] * 8)
    rows[:, 7] += torch.tensor([5.0, 20.0, 40.0, 80.0, 95.0, 110.0, 800.0, 3e4], dtype=torch.float64)
    rows[1::2, ::3] = -math.inf
    return rows.to(dtype)


def _cross_entropy_derivative(shape, kind, sign):
    def build(generator, dtype):
        if shape is None:
            logits = torch.cat([degenerate_rows(dtype), _confident_rows(dtype).repeat(2, 1)])
        else:
            logits = _normal(generator, shape, dtype, 4.0)
        rows, size = logits.shape
        y = torch.randint(size, (rows,), generator=generator)
        if shape is None:
            y[16:24] = 7  # the class that rules; any other in the rest
        return logits, y, sign

    return build


_FLAGS = (False, True)
_PARAMETERS: dict[str, tuple[Callable[..., Any], dict[str, Sequence[Any]]]] = {
    "lmo": (_lmo, {"in_box": _FLAGS, "p": GENERAL_P}),
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
    "power_step": (_power_step, {"h": (1.0, 0.01)}),
    "cross_entropy_derivative": (_cross_entropy_derivative, {"sign": (1.0, -1.0, 0.3)}),
}
OPS = tuple(_PARAMETERS)


def op_cases(op: str, shapes: Iterable[tuple[int, int]] = SHAPES) -> list[Case]:
    """Every argument set of ``op`` on every shape, and on the degenerate rows; the kind of eps takes turns.

    >>> [case.id for case in op_cases("lp_norm", shapes=[(3, 31)])][:2]
    ['p=1.0-3x31', 'p=1.0-degenerate']
    """
    build, parameters = _PARAMETERS[op]
    turns = itertools.cycle(("number", "each", "one"))
    cases = []
    for values in itertools.product(*parameters.values()):
        named = dict(zip(parameters, values, strict=True))
        if named.get("in_box") and named["p"] not in BALL_P:
            continue
        label = "-".join(f"{name}={value}" for name, value in named.items() if (name, value) != ("in_box", False))
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
