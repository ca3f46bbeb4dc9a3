"""The Krylov ops: against NumPy's QR and least squares, float64, and what holds for every op."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soatfast import ops
from soatfast.ops import reference
from soatfast.ops.constants import ACTIVE, BREAKDOWN, CONVERGED, NONFINITE, SINGULAR
from tests.ops.krylov_calls import (
    DTYPES,
    OF_SAMPLES,
    SHAPES,
    UPDATED,
    call,
    double,
    every_dtype,
    every_op,
    kernel,
    make_args,
    name_of,
    results_of,
    samples,
    twin,
)

# Numbers


@every_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_op
def test_kernel_is_within_the_budget(op: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    for column in {0, min(shape[1:]) // 2, min(shape[1], shape[2] - 1) - 1} - {-1}:
        args = make_args(op, *shape, dtype, column)
        outputs = call(op, kernel(op), args)
        twins, exact = call(op, twin(op), args), call(op, twin(op), double(args))
        for mine, other, truth in zip(outputs, twins, exact, strict=True):
            assert mine.dtype == other.dtype and mine.shape == other.shape
            if not mine.is_floating_point():
                assert torch.equal(mine, other)
                continue
            error, allowed = (mine.double() - truth).abs().max(), (other.double() - truth).abs().max()
            # In float64 the twin is the truth itself: what is allowed there are a few roundings of a sum of D terms.
            scale = (8 if dtype == torch.float64 else 1) * torch.finfo(dtype).eps * truth.abs().max()
            assert error <= 2 * (allowed + scale), (op, shape, column, error, allowed)


@every_dtype
def test_arnoldi_step_is_a_qr_step(dtype: torch.dtype) -> None:
    basis, hessenberg, norms, w, status, j = make_args("arnoldi_step", 2, 7, 33, dtype)[:6]
    ops.arnoldi_step(basis, hessenberg, norms, w, status, j)
    h, norm = hessenberg[j].t(), norms[j]
    tolerance = 50 * torch.finfo(dtype).eps
    for i in range(2):
        known, vector = basis[i, : j + 1].double().numpy(), w[i].double().numpy()
        np.testing.assert_allclose(h[i, : j + 1].double().numpy(), known @ vector, atol=tolerance * 6)
        q, r = np.linalg.qr(np.column_stack([known.T, vector]))
        sign = np.sign(r[-1, -1])
        np.testing.assert_allclose(float(h[i, j + 1]), abs(r[-1, -1]), rtol=tolerance)
        np.testing.assert_allclose(basis[i, j + 1].double().numpy(), sign * q[:, -1], atol=tolerance)
        np.testing.assert_allclose(float(norm[i]), np.linalg.norm(vector), rtol=tolerance)
        assert not h[i, j + 2 :].any()


@every_dtype
@pytest.mark.parametrize("nearly", [1e-2, 1e-4])
def test_the_basis_stays_orthogonal_where_one_pass_would_lose_it(dtype: torch.dtype, nearly: float) -> None:
    """w almost in the span: one pass of classical Gram-Schmidt leaves eps / nearly."""
    basis, hessenberg, norms, w, status, j = make_args("arnoldi_step", 2, 7, 1000, dtype)[:6]
    inside = basis[:, : j + 1].sum(1)
    ops.arnoldi_step(basis, hessenberg, norms, inside + nearly * w / 30, status, j)
    products = basis[:, : j + 2] @ basis[:, : j + 2].transpose(1, 2)
    assert (products - torch.eye(j + 2, dtype=dtype)).abs().max() < 20 * torch.finfo(dtype).eps


@every_dtype
def test_a_vector_of_the_span_exhausts_the_space(dtype: torch.dtype) -> None:
    basis, hessenberg, norms, _, status, j = make_args("arnoldi_step", 2, 7, 33, dtype)[:6]
    ops.arnoldi_step(basis, hessenberg, norms, basis[:, : j + 1].sum(1), status, j)
    h, norm = hessenberg[j].t(), norms[j]
    assert not basis[:, j + 1].any()
    torch.testing.assert_close(h[:, : j + 1], torch.ones(2, j + 1, dtype=dtype))
    assert (h[:, j + 1] <= 10 * torch.finfo(dtype).eps * norm).all()


@pytest.mark.parametrize("size", [1e-40, 1e-24, 1e24, 3e36])
def test_tiny_and_huge_products_neither_underflow_nor_overflow(size: float) -> None:
    args = make_args("arnoldi_step", 2, 3, 33, torch.float32)
    j = args[5]
    plain, h, norms = call("arnoldi_step", kernel("arnoldi_step"), args)
    scaled = (*args[:3], (args[3].double() * size).float(), *args[4:])
    basis, scaled_h, scaled_norms = call("arnoldi_step", kernel("arnoldi_step"), scaled)
    rtol = 1e-5 if size > 1e-30 else 1e-2  # float32 denormals have few digits
    torch.testing.assert_close(basis, plain, rtol=rtol, atol=rtol)
    torch.testing.assert_close(scaled_norms[j].double(), norms[j].double() * size, rtol=rtol, atol=0)
    torch.testing.assert_close(scaled_h[j].double() / size, h[j].double(), rtol=rtol, atol=10 * rtol)


def hessenberg_states(rows: int, m: int, dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.triu(torch.randn(rows, m + 1, m, generator=generator, dtype=torch.float64), diagonal=-1)
    matrix[:, range(1, m + 1), range(m)] = matrix[:, range(1, m + 1), range(m)].abs() + 0.1
    state = [torch.zeros(shape, dtype=dtype) for shape in ((m, m, rows), (m, 2, rows), (m + 1, rows))]
    state[2][0] = 2.0
    return matrix.to(dtype), [*state, torch.zeros(rows, dtype=torch.int32), torch.zeros(rows, dtype=torch.int32)]


def turn(matrix: Tensor, state: list[Tensor], target: float = 0.0, rcond: float = 0.0, count: int = 1) -> Tensor:
    """All columns of (B, m + 1, m), `count` a call; the residuals (B, m)."""
    rows, _, m = matrix.shape
    targets = torch.full((rows,), target, dtype=matrix.dtype)
    hessenberg = matrix.permute(2, 1, 0).contiguous()
    norms = torch.linalg.vector_norm(hessenberg, dim=1)
    residuals = [
        ops.givens_step(*state, hessenberg, norms, targets, column=j, count=min(count, m - j), rcond=rcond)
        for j in range(0, m, count)
    ]
    return torch.cat(residuals).t()


@every_dtype
@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("rows", [5, 37])  # 37: packs of lanes, and samples beyond them
def test_givens_steps_and_the_solve_are_least_squares(dtype: torch.dtype, count: int, rows: int) -> None:
    m = 8
    matrix, state = hessenberg_states(rows, m, dtype)
    residuals = turn(matrix, state, count=count)
    y = ops.triangular_solve(state[0], state[2], state[3]).t()
    tolerance = 1e4 * torch.finfo(dtype).eps
    for i in range(rows):
        a = matrix[i].double().numpy()
        for j in range(m):
            right = np.zeros(j + 2)
            right[0] = 2.0
            best, *_ = np.linalg.lstsq(a[: j + 2, : j + 1], right, rcond=None)
            left = np.linalg.norm(right - a[: j + 2, : j + 1] @ best)
            assert abs(float(residuals[i, j]) - left) <= tolerance * max(left, 1e-3)
        np.testing.assert_allclose(y[i].double().numpy(), best, rtol=tolerance, atol=tolerance)
        r = state[0][:, :, i].double().numpy()
        np.testing.assert_allclose(r.T @ r, a.T @ a, atol=tolerance * 10)
    assert (state[3] == m).all()
    assert (residuals.diff(dim=1) <= 0).all(), "the residual never grows"


def test_a_numerically_singular_column_is_rejected() -> None:
    matrix, state = hessenberg_states(3, 6, torch.float64)
    matrix[1, :, 3] = matrix[1, :, 2]  # the same column again, and nothing below
    matrix[1, 4, 3] = 1e-9
    turn(matrix, state, rcond=1e-6)
    assert state[4].tolist() == [ACTIVE, SINGULAR, ACTIVE]
    assert state[3].tolist() == [6, 3, 6]
    y = ops.triangular_solve(state[0], state[2], state[3])
    assert not y[3:, 1].any() and y.abs().max() < 1e3


def test_status_of_every_end() -> None:
    matrix, state = hessenberg_states(4, 5, torch.float64)
    matrix[1, 3, 2] = 0.0  # the space of sample 1 is exhausted after column 2, so its residual is 0 there
    matrix[2, :, 1] = math.nan
    matrix[3] = 0.0
    residuals = turn(matrix, state)
    assert state[4].tolist() == [ACTIVE, CONVERGED, NONFINITE, SINGULAR]
    assert state[3].tolist() == [5, 3, 1, 0]
    assert residuals[3].tolist() == [2.0] * 5 and residuals.isfinite().all()
    matrix, state = hessenberg_states(1, 5, torch.float64)
    matrix[0, 3, 2] = 1e-16  # exhausted, but the residual of it is not 0
    turn(matrix, state)
    assert state[4].tolist() == [BREAKDOWN] and state[3].tolist() == [3]


@every_dtype
def test_krylov_combine_is_a_sum(dtype: torch.dtype) -> None:
    basis, y, x0 = make_args("krylov_combine", 3, 6, 1000, dtype)
    y[3:, 1] = 0
    expected = torch.einsum("mb,bmd->bd", y.double(), basis[:, :-1].double())
    torch.testing.assert_close(ops.krylov_combine(basis, y).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ops.krylov_combine(basis, y, x0).double(), expected + x0, rtol=1e-5, atol=1e-5)


@every_dtype
def test_arnoldi_start_is_a_unit_vector(dtype: torch.dtype) -> None:
    basis, r, x, probe, step = make_args("arnoldi_start", 3, 4, 1000, dtype)
    r[1] = 0
    norm = ops.arnoldi_start(basis, r, x=x, probe=probe, step=step)
    expected = torch.nn.functional.normalize(r.double(), dim=1)
    tolerance = 50 * torch.finfo(dtype).eps
    torch.testing.assert_close(basis[:, 0].double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(norm.double(), r.double().norm(dim=1), rtol=tolerance, atol=0)
    torch.testing.assert_close(probe.double(), x.double() + step * expected, rtol=tolerance, atol=tolerance)
    other = basis.clone()
    torch.testing.assert_close(ops.arnoldi_start(other, r), norm, rtol=0, atol=0)
    huge = ops.arnoldi_start(basis, r * 1e30)
    torch.testing.assert_close(huge.double(), norm.double() * 1e30, rtol=1e-6, atol=0)


def test_a_difference_step_is_the_three_things_it_replaces() -> None:
    *state, g1, status, j, g0, x, probe, step = make_args("difference_step", 2, 5, 40)
    mine, plain = ([t.clone() for t in state] for _ in range(2))
    ops.arnoldi_step(*mine, g1, status, j, base=g0, x=x, probe=probe, step=step)
    ops.arnoldi_step(*plain, (g1 - g0) * (1 / step), status, j)
    assert all(torch.equal(a, b) for a, b in zip(mine, plain, strict=True))
    assert torch.equal(probe, x + step * mine[0][:, j + 1])


# White box


@given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
def test_host_hypotenuse(a: float, b: float) -> None:
    host = pytest.importorskip("soatfast._host")
    assert math.isclose(host.hypotenuse(a, b), math.hypot(a, b), rel_tol=1e-15, abs_tol=5e-324)


def test_host_cores_are_the_ops() -> None:
    host = pytest.importorskip("soatfast._host")
    matrix, state = hessenberg_states(1, 5, torch.float64, seed=3)
    triangle, rotations, rhs = np.zeros((5, 5)), np.zeros((5, 2)), np.zeros(6)
    rhs[0] = 2.0
    residuals = turn(matrix, state, rcond=1e-12)
    iterations, status = 0, ACTIVE
    for j in range(5):
        h = matrix[0, :, j].contiguous().numpy()
        residual, iterations, status = host.givens(
            triangle, rotations, rhs, iterations, status, h, np.linalg.norm(h), 0.0, j, 1e-12
        )
        np.testing.assert_allclose(residual, float(residuals[0, j]), rtol=1e-13)
    np.testing.assert_allclose(triangle, state[0][:, :, 0].numpy(), rtol=1e-13)
    y = host.back_substitution(triangle, rhs, iterations)
    np.testing.assert_allclose(np.triu(triangle) @ y, rhs[:5], rtol=1e-12, atol=1e-13)


# Registration, compilation, layouts


@every_dtype
@every_op
def test_opcheck(op: str, dtype: torch.dtype) -> None:
    for shape in ((3, 4, 33), (0, 4, 33)):
        torch.library.opcheck(kernel(op), make_args(op, *shape, dtype))


PUBLIC: dict[str, Callable] = {
    "arnoldi_start": lambda *a: ops.arnoldi_start(*a[:2], x=a[2], probe=a[3], step=a[4]),
    "arnoldi_step": lambda *a: ops.arnoldi_step(*a[:6]),
    "difference_step": lambda *a: ops.arnoldi_step(*a[:6], base=a[6], x=a[7], probe=a[8], step=a[9]),
    "givens_step": lambda *a: ops.givens_step(*a[:8], column=a[8], count=a[9], rcond=a[10]),
    "triangular_solve": ops.triangular_solve,
    "krylov_combine": ops.krylov_combine,
}


@pytest.mark.parametrize("dynamic", [False, True])
@every_op
def test_public_function_compiles_without_a_break(op: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(PUBLIC[op], fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 3):
        args = make_args(op, rows, 5, 40)
        for mine, eager in zip(call(op, compiled, args), call(op, PUBLIC[op], args), strict=True):
            assert torch.equal(mine, eager)


@every_op
def test_backend_reference_serves(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args, seen, original = make_args(op, 3, 5, 40), [], twin(op)
    monkeypatch.setattr(reference, name_of(op), lambda *a: seen.append(1) or original(*a))
    with ops.backend("reference"):
        call(op, PUBLIC[op], args)
    call(op, PUBLIC[op], args)
    assert len(seen) == 1


@every_op
def test_strided_inputs_give_the_same(op: str) -> None:
    args = make_args(op, 3, 5, 40)
    other = tuple(
        torch.stack([a, a], -1)[..., 0] if isinstance(a, Tensor) and i not in UPDATED.get(op, (2,)) else a
        for i, a in enumerate(args)
    )
    dense = {"arnoldi_step": 4, "difference_step": 4, "triangular_solve": 2}  # whole numbers
    if op in dense:
        other = (*other[: dense[op]], args[dense[op]], *other[dense[op] + 1 :])
    for mine, plain in zip(call(op, kernel(op), other), call(op, kernel(op), args), strict=True):
        assert torch.equal(mine, plain)


# Independence


@pytest.mark.native
@every_op
def test_a_batch_is_its_samples_bit_for_bit(op: str) -> None:
    for dtype in DTYPES:
        args = make_args(op, 37, 6, 777, dtype)
        if op == "givens_step":
            args[4].fill_(ACTIVE)
        whole = call(op, kernel(op), args)
        for i in range(37):
            one = slice(i, i + 1)
            alone = call(op, kernel(op), samples(op, args, one))
            for mine, all_ in zip(alone, results_of(op, whole, one), strict=True):
                assert torch.equal(mine, all_)


@every_op
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_sample_changes_no_other_and_enters_no_state(op: str, bad: float) -> None:
    args = make_args(op, 4, 5, 40)
    spoiled = {"arnoldi_step": 3, "difference_step": 3, "givens_step": 5}.get(op, 1)
    dirty = list(args)
    dirty[spoiled] = args[spoiled].clone()
    if spoiled in OF_SAMPLES.get(op, ()):
        dirty[spoiled][1] = bad
    else:
        dirty[spoiled][..., 1] = bad
    clean = call(op, kernel(op), args)
    results = call(op, kernel(op), tuple(dirty))
    others = [0, 2, 3]
    for mine, other in zip(results_of(op, results, others), results_of(op, clean, others), strict=True):
        assert torch.equal(mine, other)
    if op == "arnoldi_start":
        norm, basis, probe = results
        assert norm[1].isnan() and not basis[1, 0].any() and torch.equal(probe[1], args[2][1])
    if op in ("arnoldi_step", "difference_step"):
        basis, hessenberg, norms, *probe = results
        assert hessenberg[args[5], :, 1].isnan().any() and norms[args[5], 1].isnan()
        assert all(t.isfinite().all() for t in (basis, *probe))
    if op == "givens_step":
        assert all(t.isfinite().all() for t in results)
        assert results[5][1] == NONFINITE and results[4][1] == args[3][1]


def test_a_sample_that_is_done_is_left_alone() -> None:
    for dtype in DTYPES:
        args = make_args("givens_step", 4, 5, 40, dtype)
        for before, after in zip(args[:5], call("givens_step", kernel("givens_step"), args)[1:], strict=True):
            assert torch.equal(before[..., 2:], after[..., 2:])
        basis, hessenberg, norms, w, status, j = make_args("arnoldi_step", 4, 5, 40, dtype)[:6]
        w[2:] = math.nan
        ops.arnoldi_step(basis, hessenberg, norms, w, status, j)
        assert not hessenberg[j, :, 2:].any() and not norms[j, 2:].any() and not basis[2:, j + 1].any()


@pytest.mark.native
@every_op
def test_threads_do_not_change_a_bit(op: str, restored_threads: None) -> None:
    args = make_args(op, 64, 20, 1500)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(call(op, kernel(op), args))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_op
def test_every_element_is_written(op: str, poisoned_memory: None) -> None:
    for output in call(op, kernel(op), make_args(op, 4, 5, 40)):
        assert output.isfinite().all()


# Bad input


def test_bad_arguments_say_what_was_expected() -> None:
    basis, hessenberg, norms, w, status, j = make_args("arnoldi_step", 3, 5, 40)[:6]
    columns = (hessenberg, norms)
    with pytest.raises(ValueError, match=r"w must have shape \(3, 40\), got \(3, 39\)"):
        ops.arnoldi_step(basis, *columns, w[:, 1:], status, j)
    with pytest.raises(ValueError, match=r"hessenberg must have shape \(5, 6, 3\), got \(3, 6, 5\)"):
        ops.arnoldi_step(basis, hessenberg.permute(2, 1, 0), norms, w, status, j)
    with pytest.raises(TypeError, match=r"w must be a tensor of torch.float64, got torch.float32"):
        ops.arnoldi_step(basis, *columns, w.float(), status, j)
    with pytest.raises(TypeError, match=r"status must be a tensor of torch.int32"):
        ops.arnoldi_step(basis, *columns, w, status.long(), j)
    with pytest.raises(ValueError, match="x and probe come together"):
        ops.arnoldi_step(basis, *columns, w, status, j, x=w)
    with pytest.raises(ValueError, match=r"base must have shape \(3, 40\)"):
        ops.arnoldi_step(basis, *columns, w, status, j, base=w[:, 1:])
    with pytest.raises(ValueError, match=r"probe must be contiguous"):
        ops.arnoldi_start(basis, w, x=w, probe=torch.empty(40, 3, dtype=w.dtype).t())
    with pytest.raises(ValueError, match=r"step must be > 0, got 0"):
        ops.arnoldi_start(basis, w, step=0.0)
    with pytest.raises(ValueError, match=r"column must lie in 0..4, got 5"):
        ops.arnoldi_step(basis, *columns, w, status, 5)
    with pytest.raises(ValueError, match="contiguous"):
        ops.arnoldi_step(basis.transpose(1, 2).contiguous().transpose(1, 2), *columns, w, status, j)
    with pytest.raises(TypeError, match="float32 or float64"):
        ops.arnoldi_step(basis.half(), *columns, w.half(), status, j)
    with pytest.raises(ValueError, match=r"basis must have shape \(B, m \+ 1, D\)"):
        ops.krylov_combine(basis[0], w)
    args = make_args("givens_step", 3, 5, 40)
    with pytest.raises(ValueError, match="rcond must be >= 0"):
        ops.givens_step(*args[:8], column=2, rcond=-1.0)
    with pytest.raises(ValueError, match=r"count must lie in 1..3, got 4"):
        ops.givens_step(*args[:8], column=2, count=4, rcond=0.0)
    with pytest.raises(ValueError, match=r"triangle must have shape \(5, 5, 3\)"):
        ops.triangular_solve(args[0][:, 1:].contiguous(), args[2], args[3])


@pytest.mark.native
def test_more_columns_than_there_are_are_refused() -> None:
    args = make_args("givens_step", 3, 5, 40)
    with pytest.raises(RuntimeError, match=r"iterations must lie in 0..5, got 100000000"):
        far = torch.full((3,), 10**8, dtype=torch.int32)
        ops.givens_step(*args[:3], far, *args[4:8], column=2, rcond=0.0)
    triangle, rhs, _ = make_args("triangular_solve", 3, 5, 40)
    with pytest.raises(RuntimeError, match=r"iterations must lie in 0..5"):
        ops.triangular_solve(triangle, rhs, torch.full((3,), 6, dtype=torch.int32))


def test_a_block_that_is_not_used_may_hold_anything() -> None:
    basis, y, x0 = make_args("krylov_combine", 3, 6, 33)
    y[4:] = 0
    expected = ops.krylov_combine(basis, y, x0)
    basis[:, 4:] = math.nan
    for backend in ("auto", "reference"):
        with ops.backend(backend):  # type: ignore[arg-type]
            torch.testing.assert_close(ops.krylov_combine(basis, y, x0), expected)
