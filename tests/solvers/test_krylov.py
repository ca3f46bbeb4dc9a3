"""gmres and arnoldi against SciPy, pinv and closed forms, a sample at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soatfast import ops
from soatfast.solvers import spaces
from soatfast.solvers.krylov import GMRESResult, Status, arnoldi, gmres
from tests.solvers.systems import KINDS, D, equal, product, scipy_history, system

# Against SciPy


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("kind", KINDS)
def test_residual_history_is_scipys(kind: str, backend: str) -> None:
    a, b = system(kind)
    with ops.backend(backend):  # type: ignore[arg-type]
        result = gmres(product(a), b, max_dim=D, rtol=1e-14)
    length = torch.linalg.vector_norm(b, dim=1)
    torch.testing.assert_close(result.history[:, 0], length)
    for i in range(len(b)):
        theirs = np.array(scipy_history(a[i], b[i], D))
        mine = (result.history[i, 1:] / length[i]).numpy()
        steps = int(np.argmax(theirs < 1e-10)) if (theirs < 1e-10).any() else len(theirs)  # up to convergence
        assert steps >= 2 and (kind == "repeated" or steps >= 10)
        difference = np.log10(mine[:steps]) - np.log10(theirs[:steps])
        assert np.abs(difference).max() < 1e-9, (kind, i, np.abs(difference).max())
        x, _ = scipy.sparse.linalg.gmres(a[i].numpy(), b[i].numpy(), rtol=1e-12, restart=D, maxiter=1)
        np.testing.assert_allclose(result.x[i].numpy(), x, atol=1e-9 * np.abs(x).max())


def test_restarted_history_is_scipys() -> None:
    a, b = system("spd")
    result = gmres(product(a), b, max_dim=5, rtol=1e-8, restarts=6)
    assert result.history.shape == (4, 31)
    for i in range(len(b)):
        theirs = np.array(scipy_history(a[i], b[i], 5, 6))
        mine = (result.history[i, 1:] / torch.linalg.vector_norm(b[i])).numpy()
        steps = int(np.argmax(theirs < 1e-6))  # behind it b - A x has no 9 digits left
        assert steps > 10
        assert np.abs(np.log10(mine[:steps]) - np.log10(theirs[:steps])).max() < 1e-9
    assert result.converged.all()
    left = b - product(a)(result.x)
    assert (torch.linalg.vector_norm(left, dim=1) <= 1.01e-8 * torch.linalg.vector_norm(b, dim=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_solution_is_the_pseudo_inverses(kind: str, dtype: torch.dtype) -> None:
    a, b = system(kind, dtype=dtype)
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    result = gmres(product(a), b, max_dim=D, rtol=rtol)
    expected = (torch.linalg.pinv(a.double(), rtol=1e-5) @ b.double().unsqueeze(2)).squeeze(2)
    assert result.converged.all()
    torch.testing.assert_close(result.x.double(), expected, rtol=0, atol=50 * rtol * float(expected.abs().max()))


# Special matrices


def test_a_zero_right_hand_side_needs_nothing() -> None:
    a, b = system("spd")
    b[1] = 0
    result = gmres(product(a), b, x0=torch.ones_like(b), max_dim=D, rtol=1e-10)
    assert not result.x[1].any() and result.iterations[1] == 0 and result.status[1] == Status.CONVERGED
    assert result.converged.all()


def test_zero_matrix() -> None:
    b = torch.randn(3, 5)
    result = gmres(torch.zeros_like, b, max_dim=3, rtol=1e-3)
    assert not result.x.any() and result.status.tolist() == [Status.SINGULAR] * 3
    assert result.iterations.tolist() == [0] * 3
    torch.testing.assert_close(result.residual, torch.linalg.vector_norm(b, dim=1))


@pytest.mark.parametrize("factor", [3.0, -1.0])
def test_multiples_of_the_identity_take_one_step(factor: float) -> None:
    b = torch.randn(3, 5, dtype=torch.float64)
    result = gmres(lambda v: factor * v, b, max_dim=4, rtol=1e-12)
    torch.testing.assert_close(result.x, b / factor)
    assert result.iterations.tolist() == [1] * 3 and result.converged.all()


def test_iterations_are_at_most_the_distinct_eigenvalues() -> None:
    a, b = system("repeated")
    result = gmres(product(a), b, max_dim=D, rtol=1e-10)
    assert (result.iterations == 3).all() and result.converged.all()


def test_one_eigenvector_and_no_tolerance() -> None:
    a, _ = system("spd")
    values, vectors = torch.linalg.eigh(a)
    result = gmres(product(a), vectors[:, :, 3].contiguous(), max_dim=D, rtol=0.0)
    torch.testing.assert_close(result.x, vectors[:, :, 3] / values[:, 3:4], rtol=0, atol=1e-12)
    assert (result.residual < 1e-13).all()


def test_an_exhausted_space_short_of_the_target_is_a_breakdown() -> None:
    """The product is exact, the residual is rounding, and the target is 0."""
    b = torch.tensor([[0.6, 0.8, 0.0, 0.0]], dtype=torch.float64)
    swap = torch.tensor([[1.0, 2, 0, 0], [2, -1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    result = gmres(lambda v: v @ swap, b, max_dim=4, rtol=0.0)
    assert result.iterations.tolist() == [2]
    assert result.status[0] in (Status.BREAKDOWN, Status.CONVERGED) and result.residual[0] < 1e-15


def test_noise_outside_the_range_does_not_blow_up_the_solution() -> None:
    """Rank 9 and 1e-3 of noise in b, the normal case of a network with ReLUs.

    The first direction outside the range is known to eps / 1e-3 only, and that is its pivot: rcond is above it.
    """
    generator = torch.Generator().manual_seed(1)
    j = torch.randn(8, 9, 60, generator=generator, dtype=torch.float64)
    a = j.transpose(1, 2) @ j
    x = torch.randn(8, 60, generator=generator, dtype=torch.float64)
    b = (a @ x.unsqueeze(2)).squeeze(2)
    noisy = b + 1e-3 * torch.linalg.vector_norm(b, dim=1, keepdim=True) * torch.randn_like(b) / math.sqrt(60)
    for dtype in (torch.float32, torch.float64):
        result = gmres(product(a.to(dtype)), noisy.to(dtype), max_dim=20, rtol=1e-6)
        best = (torch.linalg.pinv(a, rtol=1e-9) @ noisy.unsqueeze(2)).squeeze(2)
        ratio = torch.linalg.vector_norm(result.x.double(), dim=1) / torch.linalg.vector_norm(best, dim=1)
        assert (ratio < 1.5).all() and (ratio > 0.7).all()
        assert (result.status == Status.SINGULAR).all()
    wild = gmres(product(a), noisy, max_dim=20, rtol=1e-6, rcond=0.0)
    assert torch.linalg.vector_norm(wild.x, dim=1).max() > 1e3 * torch.linalg.vector_norm(best, dim=1).max()


# Independence


@pytest.mark.native
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("compact", [False, True])
def test_a_batch_is_its_samples_bit_for_bit(restarts: int, compact: bool) -> None:
    parts = [system(kind, 2) for kind in KINDS]
    a, b = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    b[3] = 0
    b[5, 2] = math.nan

    def matvec(v: Tensor, index: Tensor | None = None) -> Tensor:
        return product(a if index is None else a[index])(v)

    options = {"max_dim": 8, "rtol": 1e-6, "restarts": restarts}
    whole = gmres(matvec, b, **options, compact=compact)
    for i in range(len(b)):
        alone = gmres(product(a[i : i + 1]), b[i : i + 1], **options)
        fields = ("x", "residual", "iterations", "status", "history")
        row = GMRESResult(*(getattr(whole, name)[i : i + 1] for name in fields))
        assert equal(alone, row), i


@pytest.mark.parametrize("check_every", [3, 8, None])
@pytest.mark.parametrize("restarts", [1, 2])
def test_how_often_is_asked_changes_nothing(check_every: int | None, restarts: int) -> None:
    """Asked seldom, columns are turned in blocks, behind the end of some samples too."""
    parts = [system(kind, 2) for kind in KINDS]
    a, b = torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    a[0] = 0
    b[3] = 0
    b[5, 2] = math.nan
    options = {"max_dim": 8, "rtol": 1e-2, "restarts": restarts}
    often = gmres(product(a), b, **options)
    assert len(set(often.iterations.tolist())) > 3, "samples end at different steps"
    assert equal(often, gmres(product(a), b, **options, check_every=check_every))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_sample_that_is_not_finite_changes_no_other(bad: float) -> None:
    a, b = system("spd")
    clean = gmres(product(a), b, max_dim=10, rtol=1e-6)
    spoiled = b.clone()
    spoiled[2, 5] = bad
    dirty = gmres(product(a), spoiled, max_dim=10, rtol=1e-6)
    assert dirty.status[2] == Status.NONFINITE and not dirty.x[2].any() and dirty.residual[2] == math.inf
    keep = [0, 1, 3]
    assert torch.equal(dirty.x[keep], clean.x[keep]) and torch.equal(dirty.history[keep], clean.history[keep])

    calls = []

    def matvec(v: Tensor) -> Tensor:
        w = product(a)(v)
        calls.append(len(calls))
        if len(calls) == 4:
            w[2, 5] = bad
        return w

    late = gmres(matvec, b, max_dim=10, rtol=1e-6)
    assert late.status[2] == Status.NONFINITE and late.iterations[2] == 3 and late.x.isfinite().all()
    three = gmres(product(a), b, max_dim=3, rtol=1e-6)
    assert torch.equal(late.x[2], three.x[2]), "what was known before the NaN"
    assert torch.equal(late.x[keep], clean.x[keep])


def test_samples_may_be_permuted() -> None:
    a, b = system("indefinite", 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    one, other = gmres(product(a), b, max_dim=9, rtol=1e-8), gmres(product(a[order]), b[order], max_dim=9, rtol=1e-8)
    torch.testing.assert_close(one.x[order], other.x, rtol=1e-12, atol=1e-12)


# Passes, stopping, starts


def counted(a: Tensor) -> tuple[Callable[[Tensor], Tensor], list[int]]:
    calls: list[int] = []

    def matvec(v: Tensor, index: Tensor | None = None) -> Tensor:
        calls.append(len(v))
        return product(a if index is None else a[index])(v)

    return matvec, calls


def test_products_are_counted_and_stop_when_all_are_done() -> None:
    a, b = system("repeated")
    matvec, calls = counted(a)
    gmres(matvec, b, max_dim=D, rtol=1e-8)
    assert len(calls) == 3
    calls.clear()
    gmres(matvec, b, max_dim=9, rtol=1e-8, check_every=None)
    assert len(calls) == 9
    calls.clear()
    gmres(matvec, b, max_dim=9, rtol=1e-8, check_every=5)
    assert len(calls) == 5
    calls.clear()
    gmres(matvec, b, x0=torch.ones_like(b), max_dim=2, rtol=0.0, restarts=3)
    assert len(calls) == 3 * 2 + 3
    calls.clear()
    result = gmres(matvec, b, max_dim=D, rtol=1e-8, restarts=100)  # one product more, for the true residual
    assert len(calls) == 4 and result.converged.all()
    assert result.history.shape == (len(b), 100 * D + 1) and torch.equal(result.history[:, -1], result.residual)


def test_compaction_multiplies_only_what_is_not_done() -> None:
    easy, hard = system("repeated", 3), system("nonsymmetric", 1)
    a, b = torch.cat([easy[0], hard[0]]), torch.cat([easy[1], hard[1]])
    matvec, calls = counted(a)
    result = gmres(matvec, b, max_dim=12, rtol=1e-10, compact=True)
    assert calls[:3] == [4, 4, 4] and set(calls[3:]) == {1}
    assert equal(result, gmres(product(a), b, max_dim=12, rtol=1e-10))


def test_a_good_start_saves_steps() -> None:
    a, b = system("spd")
    exact = torch.linalg.solve(a, b.unsqueeze(2)).squeeze(2)
    result = gmres(product(a), b, x0=exact, max_dim=5, rtol=1e-9)
    assert result.iterations.tolist() == [0] * 4 and result.converged.all()
    torch.testing.assert_close(result.x, exact)


def test_images_and_channels_last() -> None:
    scale = torch.linspace(1, 2, 2 * 3 * 4, dtype=torch.float64).view(2, 3, 4)
    b = torch.randn(3, 2, 3, 4, dtype=torch.float64)
    plain = gmres(lambda v: v * scale, b, max_dim=10, rtol=1e-6)
    other = gmres(lambda v: v * scale, b.contiguous(memory_format=torch.channels_last), max_dim=10, rtol=1e-6)
    assert plain.x.shape == b.shape
    assert other.x.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(other.x, plain.x)
    torch.testing.assert_close(plain.x, b / scale, rtol=0, atol=1e-5)


def test_an_empty_batch() -> None:
    result = gmres(lambda v: v, torch.zeros(0, 5), max_dim=3, rtol=1e-3)
    assert result.x.shape == (0, 5) and result.status.shape == (0,)


@given(st.integers(1, 8), st.integers(0, 2**31), st.floats(0, 1e-2))
def test_residual_is_monotone_and_finite(size: int, seed: int, rtol: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(3, size, size, generator=generator, dtype=torch.float64)
    a[1] = a[1] @ torch.diag((torch.arange(size) % 2).double())  # singular
    b = torch.randn(3, size, generator=generator, dtype=torch.float64)
    result = gmres(product(a), b, max_dim=size, rtol=rtol)
    assert result.x.isfinite().all() and result.history.isfinite().all()
    assert (result.history.diff(dim=1) <= 1e-15).all()
    assert ((result.status >= 1) & (result.status <= 5)).all()
    left = torch.linalg.vector_norm(b - product(a)(result.x), dim=1)
    assert (left <= torch.linalg.vector_norm(b, dim=1) * (1 + 1e-6)).all()


# Arnoldi


def test_arnoldi_relation_and_eigenvalues() -> None:
    a, b = system("indefinite")
    space = arnoldi(product(a), b, max_dim=10)
    v, h = space.basis, space.hessenberg
    left = torch.stack([product(a)(v[:, j]) for j in range(10)], 1)
    torch.testing.assert_close(left, h.transpose(1, 2) @ v, rtol=0, atol=1e-12)
    torch.testing.assert_close(v @ v.transpose(1, 2), torch.eye(11).double().expand(4, 11, 11), rtol=0, atol=1e-12)
    torch.testing.assert_close(h[:, :10], h[:, :10].transpose(1, 2), rtol=0, atol=1e-12)
    whole = arnoldi(product(a), b, max_dim=D)
    torch.testing.assert_close(torch.linalg.eigvalsh(whole.hessenberg[:, :D]), torch.linalg.eigvalsh(a))
    assert (whole.iterations == D).all()


def test_arnoldi_ends_where_the_space_does() -> None:
    a, b = system("repeated")
    b[1] = 0
    b[2, 0] = math.nan
    space = arnoldi(product(a), b, max_dim=8)
    assert space.iterations.tolist() == [3, 0, 0, 3]
    assert space.basis.isfinite().all() and not space.hessenberg[0, :, 3:].any()


# Bad input


def test_bad_arguments_say_what_was_expected() -> None:
    a, b = system("spd")
    good = {"max_dim": 5, "rtol": 1e-3}

    def solve(matvec: Callable | None = None, right: Tensor = b, **options: object) -> None:
        gmres(matvec or product(a), right, **{**good, **options})  # type: ignore[arg-type]

    for value in (0, -1, D + 1):
        with pytest.raises(ValueError, match=rf"max_dim must lie in 1..{D}, the entries of a sample, got {value}"):
            solve(max_dim=value)
        with pytest.raises(ValueError, match="max_dim must lie in"):
            arnoldi(product(a), b, max_dim=value)
    with pytest.raises(TypeError, match=r"max_dim must be a whole number, got 2.0"):
        solve(max_dim=2.0)
    for name in ("rtol", "atol", "rcond"):
        with pytest.raises(ValueError, match=rf"{name} must be finite and >= 0, got -0.1"):
            solve(**{name: -0.1})
    with pytest.raises(TypeError, match="rtol must be a number, got str"):
        solve(rtol="1e-3")
    for name in ("restarts", "check_every"):
        with pytest.raises(ValueError, match=rf"{name} must be at least 1, got 0"):
            solve(**{name: 0})
    with pytest.raises(TypeError, match=r"b must be float32 or float64, got torch.float16"):
        solve(right=b.half())
    with pytest.raises(ValueError, match=r"matvec must return shape \(4, 24\), got \(4, 23\)"):
        solve(lambda v: v[:, 1:])
    with pytest.raises(ValueError, match=r"matvec must return shape \(4, 24\), got NoneType"):
        solve(lambda v: None)
    with pytest.raises(ValueError, match=r"matvec must return torch.float64 on cpu, got torch.float32 on cpu"):
        solve(lambda v: v.float())
    with pytest.raises(ValueError, match=r"matvec must return torch.float64 on cpu, got torch.float64 on meta"):
        solve(lambda v: v.to("meta"))
    with pytest.raises(ValueError, match=r"x0 must have shape \(4, 24\)"):
        solve(x0=b[:, 1:])


def test_a_basis_that_does_not_fit_is_refused_before_it_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "_SMALL", 0)
    monkeypatch.setattr(spaces, "_free_bytes", lambda device: 7 * 4 * D * 8)
    a, b = system("spd")
    gmres(product(a), b, max_dim=6, rtol=1e-3)
    with pytest.raises(MemoryError, match=rf"needs {8 * 4 * D * 8} bytes .* max_dim = 6 would fit"):
        gmres(product(a), b, max_dim=7, rtol=1e-3)
    monkeypatch.setattr(spaces, "_free_bytes", lambda device: 10)
    with pytest.raises(MemoryError, match="take smaller batches"):
        arnoldi(product(a), b, max_dim=1)


def test_free_memory_is_known_on_the_cpu() -> None:
    free = spaces._free_bytes(torch.device("cpu"))
    assert free is not None and free > 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_solution_overflows_unsaid(dtype: torch.dtype) -> None:
    """From the smallest to the largest numbers: x is finite, and what counts as converged has a finite residual."""
    generator = torch.Generator().manual_seed(0)
    large, seen = torch.finfo(dtype).max, set()
    for scale in (1 / large, 1.0, large / 100):
        for size in (1 / large, large**-0.5, 1.0, large**0.5, large / 100):
            for rtol, atol in ((0.0, 0.0), (1e-6, 0.0), (large, 0.0), (0.0, large)):
                a = size * torch.randn(3, 5, 5, dtype=dtype, generator=generator)
                b = scale * torch.randn(3, 5, dtype=dtype, generator=generator)
                for start in (None, torch.ones_like(b)):
                    result = gmres(product(a), b, start, max_dim=5, rtol=rtol, atol=atol, restarts=2)
                    assert result.x.isfinite().all(), (scale, size, rtol, atol)
                    assert result.residual[result.converged].isfinite().all(), (scale, size, rtol, atol)
                    seen |= set(result.status.tolist())
    assert {Status.CONVERGED, Status.NONFINITE} <= seen
