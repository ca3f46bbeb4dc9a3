"""The interpreted replay kernels: numbers, what they leave alone in the memory, layouts, the public functions."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import soatfast.ops as ops
from soatfast.ops import reference
from soatfast.ops.contract import MEMORY_DTYPES
from soatfast.ops.quantise import remembered
from soatfast.testing import LAYOUTS, Case, call, check, dtypes, op_cases
from tests.ops.triton.interpreted import force_streaming, interpretable, launcher, only_interpreted, quiet

pytestmark = [only_interpreted, quiet]

REPLAY = ("replay_start", "replay_step")
SHAPES = ((0, 33), (3, 1), (2, 33), (1, 100))
both_paths = pytest.mark.parametrize("streaming", [False, True], ids=["onchip", "streaming"])
every_memory = pytest.mark.parametrize("kind", MEMORY_DTYPES, ids=lambda t: str(t).removeprefix("torch."))


def _cases(shapes: tuple[tuple[int, int], ...]) -> list[tuple[Case, torch.dtype]]:
    return [(case, dtype) for op in REPLAY for case in op_cases(op, shapes) for dtype in dtypes(op)]


def _name(value: object) -> str:
    return f"{value.op}-{value.id}" if isinstance(value, Case) else str(value).removeprefix("torch.")


def _step_args(kind: torch.dtype, p: float, bounds: tuple[float, float] = (0.0, 1.0), entries: int = 33) -> list:
    """Arguments of replay_step for 3 samples and a memory of 7 rows, every bit pattern in those of nobody."""
    generator = torch.Generator().manual_seed(6)
    u = torch.randn(7, entries, generator=generator).clamp(-1, 1) / (1 if p == math.inf else entries)
    scale = torch.full((7,), 1.0 if p == math.inf else 1 / entries) if kind == torch.int8 else None
    memory = u.to(kind) if scale is None else (127 * u / scale[0]).to(kind)
    index = torch.tensor([5, 0, 2])
    for row in (1, 3, 4, 6):
        bytes_of_row = memory[row].view(torch.uint8)
        bytes_of_row.copy_(torch.randint(256, bytes_of_row.shape, generator=generator))
        if scale is not None:
            scale[row] = math.nan
    g = torch.randn(3, entries, generator=generator)
    x = bounds[0] + (bounds[1] - bounds[0]) * torch.rand(3, entries, generator=generator)
    return [memory, scale, index, g, x, p, 0.3, None, 0.4, *bounds, False]


def _start_args(step: list) -> tuple:
    return (*step[:3], step[4], *step[6:8], *step[9:11])


def _bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.uint8)


# Numbers


@pytest.mark.parametrize(("case", "dtype"), _cases(SHAPES), ids=_name)
def test_matches_the_reference_on_chip(case: Case, dtype: torch.dtype) -> None:
    check(case.op, launcher(case.op), interpretable(case.args(dtype)))


@pytest.mark.parametrize(("case", "dtype"), _cases(((2, 33),)), ids=_name)
def test_matches_the_reference_in_chunks(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    force_streaming(monkeypatch)
    check(case.op, launcher(case.op), interpretable(case.args(dtype)))


@both_paths
@pytest.mark.parametrize("dtype", dtypes("replay_step"), ids=_name)
@every_memory
def test_linf_is_the_reference_bit_for_bit(
    kind: torch.dtype, dtype: torch.dtype, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elementwise and in the reference's order: memory, scale and x + v' are the same numbers.

    But for the degenerate rows in float32, where g / max|g| underflows in the reference and 1e-24 beside 1e30 has no
    sign: the kernel takes the sign of g, as float64 does.
    """
    if streaming:
        force_streaming(monkeypatch)
    for op in REPLAY:
        for case in op_cases(op, ((3, 33),)):
            whole = dtype == torch.float64 or "degenerate" not in case.id
            if f"p=inf-memory={kind}" in case.id and whole:
                args = interpretable(case.args(dtype))
                for mine, twin in zip(
                    call(op, launcher(op), args), call(op, getattr(reference, op), args), strict=True
                ):
                    assert torch.equal(mine, twin), case.id


@both_paths
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_the_scale_is_of_the_rows_own_entries(p: float, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A box without 0 makes u' large beyond the row's end, where x reads as 0."""
    if streaming:
        force_streaming(monkeypatch)
    args = _step_args(torch.int8, p, bounds=(0.5, 1.0))
    _, memory, scale = call("replay_step", launcher("replay_step"), tuple(args))
    double = (*args[:3], args[3].double(), args[4].double(), *args[5:])
    exact = call("replay_step", reference.replay_step, double)
    index = args[2]
    torch.testing.assert_close(scale[index], exact[2][index], rtol=1e-5, atol=0)
    assert (memory[index].abs().amax(1) >= 126).all()
    assert (memory[index].int() - exact[1][index].int()).abs().max() <= 1


@both_paths
@every_memory
def test_what_is_stored_stays_in_the_ball(kind: torch.dtype, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if streaming:
        force_streaming(monkeypatch)
    for p in (2.0, 3.0, math.inf):
        args = _step_args(kind, p)
        args[8], args[9], args[10] = 1.0, -10.0, 10.0  # to the sphere
        _, memory, *scale = call("replay_step", launcher("replay_step"), tuple(args))
        u = remembered(memory, scale[0] if scale else None, args[2], torch.float64)
        norm = torch.linalg.vector_norm(u, ord=p, dim=1)
        assert (norm > 0.9).all() and (norm <= 1 + 1e-6).all(), (p, norm)


@every_memory
def test_a_radius_of_zero_forgets(kind: torch.dtype) -> None:
    """Also where x is outside the box, so that v' is not 0."""
    for p in (2.0, math.inf):
        args = _step_args(kind, p)
        args[4][1, :5] += 1.0
        args[6], args[7] = 0.0, torch.tensor([0.3, 0.0, 0.3])
        x_adv, memory, *_ = call("replay_step", launcher("replay_step"), tuple(args))
        torch.testing.assert_close(x_adv[1], args[4][1].clamp(0, 1), rtol=0, atol=1e-7)
        assert not memory[0].any() and memory[5].any() and memory[2].any()


# What a call leaves alone


@both_paths
@pytest.mark.parametrize("p", [1.0, 2.0, math.inf])
@every_memory
def test_rows_outside_the_index_keep_their_bits(
    kind: torch.dtype, p: float, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streaming:
        force_streaming(monkeypatch)
    args = _step_args(kind, p)
    before = [_bits(t).clone() for t in args[:2] if t is not None]
    launcher("replay_start")(*_start_args(args))
    after = [_bits(t) for t in args[:2] if t is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "a start changes nothing"
    launcher("replay_step")(*args)
    for old, new in zip(before, [_bits(t) for t in args[:2] if t is not None], strict=True):
        same = (old == new).view(7, -1).all(1)
        assert same[[1, 3, 4, 6]].all()
    assert not (before[0] == _bits(args[0])).view(7, -1).all(1)[args[2]].any(), "the samples' rows are updated"


@both_paths
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@every_memory
def test_a_bad_sample_leaves_the_others_alone(
    kind: torch.dtype, value: float, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streaming:
        force_streaming(monkeypatch)
    for p in (1.0, 2.0, 3.0, math.inf):
        args = _step_args(kind, p)
        good = call("replay_step", launcher("replay_step"), tuple(args))
        args[3] = args[3].clone()
        args[3][1] = value
        spoiled = call("replay_step", launcher("replay_step"), tuple(args))
        assert torch.equal(good[0][[0, 2]], spoiled[0][[0, 2]])
        assert spoiled[0].isfinite().all()
        for before, after in zip(good[1:], spoiled[1:], strict=True):
            assert torch.equal(before[[5, 2]], after[[5, 2]])
            assert after[args[2]].isfinite().all()


def test_the_row_of_a_memory_beyond_2_to_the_31_entries() -> None:
    """In pages of which only the last row's are ever touched."""
    entries = 4096
    memory = torch.empty((2**31 // entries + 2, entries), dtype=torch.int8)
    scale = torch.empty(len(memory))
    last = len(memory) - 1
    memory[last], scale[last] = 127, 1.0
    generator = torch.Generator().manual_seed(8)
    g, x = torch.randn(1, entries, generator=generator), torch.rand(1, entries, generator=generator)
    index = torch.tensor([last])
    start = launcher("replay_start")(memory, scale, index, x, 0.25, None, 0.0, 1.0)
    assert torch.equal(start, (x + 0.25 * torch.full_like(x, 127) * (1 / 127)).clamp(0, 1))
    launcher("replay_step")(memory, scale, index, g, x, math.inf, 0.25, None, 1.0, -9.0, 9.0, False)
    assert torch.equal(memory[last], (127 * g[0].sign()).to(torch.int8))


# Layouts, arguments, the public functions


@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset", "expanded"])
@every_memory
def test_any_layout_of_batch_and_index(kind: torch.dtype, layout: str) -> None:
    change = LAYOUTS[layout]
    for p in (2.0, math.inf):
        args = _step_args(kind, p)
        args[3], args[4] = change(args[3]), change(args[4])
        dense = [args[0], args[1], args[2], args[3].contiguous(), args[4].contiguous(), *args[5:]]
        spread = torch.stack([args[2], torch.full_like(args[2], -1)], 1)[:, 0]  # stride 2
        assert not spread.is_contiguous()
        args[2] = spread
        got = call("replay_step", launcher("replay_step"), tuple(args))
        for mine, twin in zip(got, call("replay_step", launcher("replay_step"), tuple(dense)), strict=True):
            assert torch.equal(_bits(mine), _bits(twin))
        start = launcher("replay_start")
        assert torch.equal(start(*_start_args(args)), start(*_start_args(dense)))


@every_memory
def test_a_memory_that_is_not_aligned(kind: torch.dtype) -> None:
    args = _step_args(kind, math.inf)
    expected = call("replay_step", launcher("replay_step"), tuple(args))
    storage = torch.zeros(args[0].numel() + 1, dtype=kind)
    storage[1:] = args[0].flatten()
    args[0] = storage[1:].view(7, 33)
    launcher("replay_step")(*args)
    assert torch.equal(_bits(args[0]), _bits(expected[1])) and storage[0] == 0


@pytest.mark.parametrize("op", REPLAY)
def test_a_memory_that_is_not_dense_is_refused(op: str) -> None:
    for position in (0, 1):
        args = _step_args(torch.int8, math.inf)
        args[position] = args[position].repeat_interleave(2, 0)[::2]
        with pytest.raises(ValueError, match="contiguous"):
            launcher(op)(*(args if op == "replay_step" else _start_args(args)))


@every_memory
def test_per_sample_radii_are_rows_of_scalar_calls(kind: torch.dtype) -> None:
    args = _step_args(kind, 2.0)
    args[6], args[7] = 0.0, torch.tensor([0.1, 0.0, 0.3])
    together = call("replay_step", launcher("replay_step"), tuple(args))
    for i in range(3):
        alone = list(args)
        alone[2], alone[3], alone[4] = (t[i : i + 1] for t in args[2:5])
        alone[6], alone[7] = args[7][i].item(), None
        x_adv, *updated = call("replay_step", launcher("replay_step"), tuple(alone))
        assert torch.equal(x_adv, together[0][i : i + 1])
        for mine, twin in zip(updated, together[1:], strict=True):
            assert torch.equal(mine[args[2][i]], twin[args[2][i]])


@every_memory
def test_channels_last_through_the_public_functions(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory keeps the order of (C, H, W) whatever that of the batch; the result has the batch's layout."""
    generator = torch.Generator().manual_seed(4)
    x, g = (torch.rand(2, 3, 4, 5, generator=generator).contiguous(memory_format=torch.channels_last) for _ in "12")
    u = torch.rand(6, 3, 4, 5, generator=generator) / 60
    scale = torch.full((6,), 1 / 60) if kind == torch.int8 else None
    memory = u.to(kind) if scale is None else (127 * 60 * u).to(kind)
    index = torch.tensor([4, 1])

    def run() -> tuple[Tensor, ...]:
        rows, own = memory.clone(), None if scale is None else scale.clone()
        start = ops.replay_start(rows, index, x, 0.5, scale=own)
        moved = ops.replay_step(rows, index, g - 0.5, x, 2, 0.5, scale=own)
        return (start, moved, rows.float()) if own is None else (start, moved, rows.float(), own)

    with ops.backend("reference"):
        expected = run()
    monkeypatch.setattr(importlib.import_module("soatfast.ops.memory"), "kernel", launcher)
    step = 1.0 if kind == torch.int8 else 1e-2 if kind == torch.bfloat16 else 1e-6  # of the memory's rounding
    for position, (mine, twin) in enumerate(zip(run(), expected, strict=True)):
        torch.testing.assert_close(mine, twin, rtol=1e-5, atol=step if position == 2 else 1e-6)
        assert mine.stride() == twin.stride()


@pytest.mark.parametrize("op", REPLAY)
def test_the_results_have_the_shapes_of_the_fakes(op: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    run: Callable = launcher(op)
    for case in op_cases(op, ((0, 33), (3, 5)))[::5]:
        for dtype in dtypes(op):
            args = case.args(dtype)
            with FakeTensorMode() as mode:
                fake = tuple(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args)
                promised = getattr(torch.ops.soatfast, op)(*fake)
            mine = call(op, run, args)[0]
            assert (mine.shape, mine.dtype, mine.stride()) == (promised.shape, promised.dtype, promised.stride())
