"""Every op on a real GPU (``make gpu-check``): numbers, opcheck, torch.compile, CUDA graphs, streams."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import soatfast.ops as ops
from soatfast.testing import DTYPES, OPS, Case, compare, op_cases

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run `make gpu-check` where one is at hand"),
]

# On chip and streaming, aligned to 16 bytes and not: above 4096 entries the exact projections stream, above
# 8192 the Frank-Wolfe step, above 16384 everything.
SHAPES = ((0, 33), (3, 1), (3, 33), (2, 3072), (3, 4097), (2, 8193), (3, 20000), (2, 20003))


def _raw(op: str) -> Callable:
    return getattr(torch.ops.soatfast, op)


def _outputs(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


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
            pairs += [(case, dtype) for case in cases[offset::5]]
    return pairs


@pytest.mark.parametrize(
    ("case", "dtype"),
    _every_float32_and_some_others(),
    ids=lambda v: f"{v.op}-{v.id}" if isinstance(v, Case) else str(v),
)
def test_matches_the_float64_reference(case: Case, dtype: torch.dtype) -> None:
    args = case.args(dtype, "cuda")
    compare(case.op, _raw(case.op)(*args), args)


@pytest.mark.parametrize("case", _cases(((3, 4097),))[::3], ids=lambda case: f"{case.op}-{case.id}")
def test_two_runs_are_bit_identical(case: Case) -> None:
    args = case.args(torch.float32, "cuda")
    first, second = _outputs(_raw(case.op)(*args)), _outputs(_raw(case.op)(*args))
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
    return ops.project(moved + v, x, 2, eps, exact=True), gap, ops.lp_norm(g, 2)


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


def test_channels_last_is_viewed_and_kept() -> None:
    g, x, eps, alpha = _attack_inputs(5)
    expected = _attack_step(g, x, eps, alpha)[0]
    last = torch.channels_last
    got = _attack_step(g.contiguous(memory_format=last), x.contiguous(memory_format=last), eps, alpha)[0]
    assert got.is_contiguous(memory_format=last)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
