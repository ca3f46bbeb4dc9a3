"""Every op on a real GPU (``make gpu-check``): numbers, opcheck, torch.compile, CUDA graphs, streams."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import soatfast.ops as ops
from soatfast.ops.contract import MEMORY_DTYPES
from soatfast.testing import DTYPES, OPS, Case, call, compare, dtypes, op_cases

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run `make gpu-check` where one is at hand"),
]

# On chip and streaming, aligned to 16 bytes and not: above 4096 entries the exact projections and the replay step
# stream, above 8192 the Frank-Wolfe step, above 16384 everything.
SHAPES = ((0, 33), (3, 1), (3, 33), (2, 3072), (3, 4097), (2, 8193), (3, 20000), (2, 20003))


def _raw(op: str) -> Callable:
    return getattr(torch.ops.soatfast, op)


def _cases(shapes: tuple[tuple[int, int], ...]) -> list[Case]:
    return [case for op in OPS for case in op_cases(op, shapes)]


@pytest.mark.parametrize("op", OPS)
def test_a_cuda_kernel_is_registered(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"soatfast::{op}", "CUDA")


def _every_float32_and_some_others() -> list[tuple[Case, torch.dtype]]:
    cases = _cases(SHAPES)
    pairs = [(case, torch.float32) for case in cases]
    for offset, dtype in enumerate(DTYPES):
        if dtype != torch.float32:
            pairs += [(case, dtype) for case in cases[offset::5] if dtype in dtypes(case.op)]
    return pairs


@pytest.mark.parametrize(
    ("case", "dtype"),
    _every_float32_and_some_others(),
    ids=lambda v: f"{v.op}-{v.id}" if isinstance(v, Case) else str(v),
)
def test_matches_the_float64_reference(case: Case, dtype: torch.dtype) -> None:
    args = case.args(dtype, "cuda")
    compare(case.op, call(case.op, _raw(case.op), args), args)


@pytest.mark.parametrize("case", _cases(((3, 4097),))[::3], ids=lambda case: f"{case.op}-{case.id}")
def test_two_runs_are_bit_identical(case: Case) -> None:
    args = case.args(torch.float32, "cuda")
    first, second = (call(case.op, _raw(case.op), args) for _ in "12")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("case", _cases(((0, 33), (3, 33)))[::3], ids=lambda case: f"{case.op}-{case.id}")
def test_opcheck(case: Case) -> None:
    torch.library.opcheck(_raw(case.op).default, case.args(torch.float32, "cuda"))


def _attack_step(g: Tensor, x: Tensor, eps: Tensor, alpha: Tensor) -> tuple[Tensor, ...]:
    """All ops in a row, as an attack would use them, with radii that live on the device."""
    s = ops.lmo(g, 2, eps)
    v, probe = ops.frank_wolfe_init(g, x, math.inf, eps)
    v, probe, gap = ops.frank_wolfe_step(g, probe - s, v, x, 3, eps, gamma=0.5, h=1.05, central=False)
    moved = ops.pgd_step(probe, g, x, 1, eps, alpha, exact=True)
    power = ops.power_step(g, probe, s, x, 0.5)
    slope = ops.cross_entropy_derivative(g.flatten(1), torch.arange(len(g), device=g.device), -1.0)
    return ops.project(moved + v, x, 2, eps, exact=True), gap, ops.lp_norm(g, 2), slope, *power


def _attack_inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(4, 3, 8, 8, generator=generator)
    x = torch.rand(4, 3, 8, 8, generator=generator)
    eps, alpha = 0.5 * torch.rand(4, generator=generator), torch.rand((), generator=generator)
    return g.cuda(), x.cuda(), eps.cuda(), alpha.cuda()


def _assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for mine, twin in zip(got, expected, strict=True):
        assert torch.equal(mine, twin)


def test_agrees_with_the_reference_backend() -> None:
    inputs = _attack_inputs(0)
    with ops.backend("reference"):
        expected = _attack_step(*inputs)
    for mine, twin in zip(_attack_step(*inputs), expected, strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-4, atol=1e-5)


def test_compiles_without_graph_breaks() -> None:
    compiled = torch.compile(_attack_step, fullgraph=True)
    for seed in (0, 1):
        inputs = _attack_inputs(seed)
        for mine, twin in zip(compiled(*inputs), _attack_step(*inputs), strict=True):
            torch.testing.assert_close(mine, twin, rtol=1e-5, atol=1e-6)


def test_cuda_graph_replays_with_new_contents_and_radii() -> None:
    static = _attack_inputs(0)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles the kernels before the capture
            _attack_step(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _attack_step(*static)
    for seed in (1, 2):
        fresh = _attack_inputs(seed)
        for buffer, value in zip(static, fresh, strict=True):
            buffer.copy_(value)
        graph.replay()
        _assert_same(captured, _attack_step(*fresh))


def test_runs_on_the_current_stream() -> None:
    """Work queued behind a slow fill on a side stream sees the filled values."""
    inputs = _attack_inputs(3)
    expected = _attack_step(*inputs)
    late = [torch.zeros_like(t) for t in inputs]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        for buffer, value in zip(late, inputs, strict=True):
            buffer.copy_(value)
        got = _attack_step(*late)
    side.synchronize()
    _assert_same(got, expected)


def test_no_op_synchronises_with_the_host() -> None:
    inputs = _attack_inputs(4)
    _attack_step(*inputs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        _attack_step(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("classes", [10, 20000])
def test_a_label_outside_the_row_makes_it_nan_and_no_other(classes: int) -> None:
    logits = torch.randn(4, classes, device="cuda")
    y = torch.tensor([1, -1, classes, 2**40], device="cuda")
    got = ops.cross_entropy_derivative(logits, y)
    assert got[1:].isnan().all()
    assert torch.equal(got[:1], ops.cross_entropy_derivative(logits[:1], y[:1])) and got[0].isfinite().all()


def test_channels_last_is_viewed_and_kept() -> None:
    g, x, eps, alpha = _attack_inputs(5)
    expected = _attack_step(g, x, eps, alpha)[0]
    last = torch.channels_last
    got = _attack_step(g.contiguous(memory_format=last), x.contiguous(memory_format=last), eps, alpha)[0]
    assert got.is_contiguous(memory_format=last)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


# Replay ops: a memory that is updated in place


def _memory(kind: torch.dtype, p: float, seed: int, entries: int = 3072) -> tuple[Tensor, Tensor | None]:
    """(memory (7, D), scale (7,) for int8) on the device."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.randn(7, entries, generator=generator).clamp(-1, 1) / (1 if p == math.inf else entries)
    if kind != torch.int8:
        return u.to(kind).cuda(), None
    top = u.abs().amax(1)
    return (127 * u / top.unsqueeze(1)).to(kind).cuda(), top.cuda()


def _batch(seed: int, entries: int = 3072) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(index, g, x, eps) of 3 samples on the device."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.randperm(7, generator=generator)[:3]
    g, x = torch.randn(3, entries, generator=generator), torch.rand(3, entries, generator=generator)
    return index.cuda(), g.cuda(), x.cuda(), (0.1 + torch.rand(3, generator=generator)).cuda()


def _replay(memory: Tensor, scale: Tensor | None, index: Tensor, g: Tensor, x: Tensor, eps: Tensor, p: float) -> Tensor:
    start = ops.replay_start(memory, index, x, eps, scale=scale)
    return start + ops.replay_step(memory, index, g, x, p, eps, 0.4, scale=scale)


every_memory = pytest.mark.parametrize("kind", MEMORY_DTYPES, ids=str)


@pytest.mark.parametrize("entries", [3072, 20003])
@pytest.mark.parametrize("p", [2.0, math.inf])
@every_memory
def test_a_replay_updates_its_rows_and_no_others(kind: torch.dtype, p: float, entries: int) -> None:
    memory, scale = _memory(kind, p, 0, entries)
    own = [t.clone() for t in (memory, scale) if t is not None]
    index, *batch = _batch(0, entries)
    _replay(own[0], own[1] if scale is not None else None, index, *batch, p)
    changed = (own[0] != memory).any(1)
    assert changed.nonzero().flatten().tolist() == sorted(index.tolist())
    if scale is not None:
        others = ~changed
        assert torch.equal(own[1][others], scale[others])


@every_memory
def test_replay_in_a_cuda_graph_follows_index_and_memory(kind: torch.dtype) -> None:
    """Each replay goes on from the memory that the last one left, as eager calls do."""
    memory, scale = _memory(kind, math.inf, 1)
    twin, twin_scale = memory.clone(), None if scale is None else scale.clone()
    static = _batch(1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):  # compiles the kernels before the capture
            _replay(memory, scale, *static, math.inf)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = _replay(memory, scale, *static, math.inf)
    for buffer, value in ((memory, twin), (scale, twin_scale)):
        if buffer is not None:
            buffer.copy_(value)
    for seed in (2, 3, 4):
        fresh = _batch(seed)
        for buffer, value in zip(static, fresh, strict=True):
            buffer.copy_(value)
        graph.replay()
        _assert_same((captured, memory), (_replay(twin, twin_scale, *fresh, math.inf), twin))
        if scale is not None:
            assert torch.equal(scale, twin_scale)


@every_memory
def test_replay_compiles_without_graph_breaks(kind: torch.dtype) -> None:
    compiled = torch.compile(_replay, fullgraph=True)
    for p in (2.0, math.inf):
        memory, scale = _memory(kind, p, 5)
        twin, twin_scale = memory.clone(), None if scale is None else scale.clone()
        batch = _batch(5)
        got, expected = compiled(memory, scale, *batch, p), _replay(twin, twin_scale, *batch, p)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(memory, twin), "the step's update reaches the memory"


def test_the_row_of_a_memory_beyond_2_to_the_31_entries() -> None:
    entries = 4096
    memory = torch.zeros((2**31 // entries + 2, entries), dtype=torch.int8, device="cuda")
    scale = torch.ones(len(memory), device="cuda")
    last = len(memory) - 1
    _, g, x, _ = _batch(6, entries)
    index = torch.tensor([last], device="cuda")
    ops.replay_step(memory, index, g[:1], x[:1], math.inf, 0.25, 1.0, scale=scale, bounds=(-9.0, 9.0))
    assert torch.equal(memory[last], (127 * g[0].sign()).to(torch.int8))
    assert not memory[:2].any()


def test_a_replay_does_not_synchronise_with_the_host() -> None:
    for kind in MEMORY_DTYPES:
        memory, scale = _memory(kind, math.inf, 7)
        batch = _batch(7)
        _replay(memory, scale, *batch, math.inf)
        torch.cuda.set_sync_debug_mode("error")
        try:
            _replay(memory, scale, *batch, math.inf)
        finally:
            torch.cuda.set_sync_debug_mode("default")
