"""The CUDA kernels of the Krylov ops against the float64 twins, on shapes that take one and several blocks a sample."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from soatfast.ops import load
from soatfast.solvers.krylov import gmres
from tests.ops.krylov_calls import DTYPES, OPS, call, double, kernel, make_args, name_of, results_of, twin

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run `make gpu-check` where one is at hand"),
]
SHAPES = ((1, 1, 1), (3, 2, 5), (3, 7, 33), (128, 20, 3072), (2, 6, 150528), (300, 3, 70))  # B, m, D

every_op = pytest.mark.parametrize("op", OPS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def cuda(args: tuple) -> tuple:
    return tuple(a.cuda() if isinstance(a, Tensor) else a for a in args)


@every_op
def test_a_cuda_kernel_is_registered(op: str) -> None:
    if not load.parts["ops_cuda"].loaded:
        pytest.skip(f"no CUDA C++ library: {load.parts['ops_cuda'].reason}")
    assert load.served_by[name_of(op), "CUDA"] == "CUDA C++"


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_op
def test_matches_the_float64_twin(op: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    args = make_args(op, *shape, dtype)
    outputs = call(op, kernel(op), cuda(args))
    twins, exact = call(op, twin(op), args), call(op, twin(op), double(args))
    for mine, other, truth in zip(outputs, twins, exact, strict=True):
        if not mine.is_floating_point():
            assert torch.equal(mine.cpu(), other)
            continue
        error, allowed = (mine.cpu().double() - truth).abs().max(), (other.double() - truth).abs().max()
        scale = (8 if dtype == torch.float64 else 1) * torch.finfo(dtype).eps * truth.abs().max()
        assert error <= 2 * (allowed + scale), (op, shape, error, allowed)


@every_op
def test_two_runs_are_bit_identical(op: str) -> None:
    args = cuda(make_args(op, 2, 6, 150528, torch.float32))
    for one, other in zip(call(op, kernel(op), args), call(op, kernel(op), args), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_sample_changes_no_other(bad: float) -> None:
    args = cuda(make_args("arnoldi_step", 4, 6, 20000, torch.float32))
    dirty = (*args[:3], args[3].clone(), *args[4:])
    dirty[3][1, 7] = bad
    clean, spoiled = (call("arnoldi_step", kernel("arnoldi_step"), a) for a in (args, dirty))
    assert spoiled[1][args[5], :, 1].isnan().any() and spoiled[0].isfinite().all()
    others = [0, 2, 3]
    for one, other in zip(
        results_of("arnoldi_step", clean, others), results_of("arnoldi_step", spoiled, others), strict=True
    ):
        assert torch.equal(one, other)


@every_op
def test_opcheck(op: str) -> None:
    torch.library.opcheck(kernel(op), cuda(make_args(op, 3, 4, 33, torch.float32)))


def test_gmres_agrees_with_the_cpu_and_does_not_synchronise() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(8, 64, 64, generator=generator, dtype=torch.float64) / 8 + 2 * torch.eye(64, dtype=torch.float64)
    b = torch.randn(8, 64, generator=generator, dtype=torch.float64)
    expected = gmres(lambda v: (a @ v.unsqueeze(2)).squeeze(2), b, max_dim=20, rtol=1e-8)
    a, b = a.cuda(), b.cuda()

    def solve():
        return gmres(lambda v: (a @ v.unsqueeze(2)).squeeze(2), b, max_dim=20, rtol=1e-8, check_every=None)

    found = solve()
    torch.testing.assert_close(found.x.cpu(), expected.x, rtol=1e-9, atol=1e-9)
    assert torch.equal(found.iterations.cpu(), expected.iterations)
    torch.cuda.set_sync_debug_mode("error")
    try:
        solve()
    finally:
        torch.cuda.set_sync_debug_mode("default")
