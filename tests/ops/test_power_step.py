"""power_step on quadratics of known spectrum, and what a vanishing, broken, tiny or huge Hessian makes of it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soatfast import ops
from soatfast.testing import DTYPES


def quadratic(spectrum: Tensor) -> tuple[Tensor, Tensor]:
    """(hessian (B, D, D) of eigenvalues spectrum (B, D), its first eigenvectors (B, D)), float64."""
    basis = torch.linalg.qr(torch.randn(*spectrum.shape, spectrum.shape[1], dtype=torch.float64)).Q
    return basis @ torch.diag_embed(spectrum.double()) @ basis.mT, basis[:, :, 0]


def times(hessian: Tensor, v: Tensor) -> Tensor:
    return (hessian @ v.unsqueeze(2)).squeeze(2)


def unit(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=dtype))


@pytest.mark.parametrize("h", [1e-3, 0.7, 10.0])
def test_iteration_finds_the_largest_eigenvalue(h: float) -> None:
    """Each sample has a spectrum of its own: a gap, a negative top, equal sizes below, one eigenvalue alone."""
    spectrum = torch.tensor([[3.0, 2.0, 1.0, 0.5, -1.0], [-4.0, 2.5, 2.5, 1.0, 0.0], [1e-3, 5e-4, -5e-4, 1e-4, 0.0]])
    spectrum = torch.cat([spectrum, torch.tensor([[7.0, 0.0, 0.0, 0.0, 0.0]])]).double()
    hessian, first = quadratic(spectrum)
    slope, x, u = torch.randn(4, 5).double(), torch.rand(4, 5).double(), unit(4, 5)
    probe = x + h * u
    for _ in range(90):
        before = u
        g0, g1 = (slope + times(hessian, at) for at in (x, probe))
        u, probe, rayleigh, norm = ops.power_step(g0, g1, u, x, h)
    torch.testing.assert_close(rayleigh, spectrum[:, 0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norm, spectrum[:, 0].abs(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close((u * first).sum(1).abs(), torch.ones(4).double())
    torch.testing.assert_close((u * before).sum(1), spectrum[:, 0].sign())  # a negative eigenvalue turns it round


def test_one_step_written_out() -> None:
    hessian, _ = quadratic(torch.randn(3, 40))
    slope, x, u, h = torch.randn(3, 40).double(), torch.rand(3, 40).double(), unit(3, 40), 0.3
    product = times(hessian, u)
    g0, g1 = (slope + times(hessian, at) for at in (x, x + h * u))
    fresh, probe, rayleigh, norm = ops.power_step(g0, g1, u, x, h)
    length = torch.linalg.vector_norm(product, dim=1)
    torch.testing.assert_close(norm, length)
    torch.testing.assert_close(fresh, product / length.unsqueeze(1))
    torch.testing.assert_close(probe, x + h * product / length.unsqueeze(1))
    torch.testing.assert_close(rayleigh, (u * product).sum(1))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_zero_hessian_keeps_u(dtype: torch.dtype) -> None:
    g, x, u = (torch.randn(3, 50, dtype=torch.float64).to(dtype) for _ in range(3))
    g[1], u[2] = 0, 0
    g1 = g.clone()
    g1[1] = math.nan  # counts as no curvature
    fresh, probe, rayleigh, norm = ops.power_step(g, g1, u, x, 0.25)
    assert torch.equal(fresh, u)
    torch.testing.assert_close(probe, x + 0.25 * u)
    assert not rayleigh.any() and not norm.any()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert (fresh.dtype, probe.dtype, rayleigh.dtype, norm.dtype) == (dtype, dtype, wide, wide)


def test_a_nan_entry_counts_as_zero() -> None:
    g0, g1, u, x = (torch.randn(4, 60) for _ in range(4))
    plain = g1.clone()
    plain[:, ::7] = g0[:, ::7]
    expected = ops.power_step(g0, plain, u, x, 0.5)
    for value in (math.nan, math.inf):  # inf - inf is NaN too
        first, second = g0.clone(), g1.clone()
        first[:, ::7], second[:, ::7] = value, value
        for mine, twin in zip(ops.power_step(first, second, u, x, 0.5), expected, strict=True):
            assert torch.equal(mine, twin)


def test_an_infinite_entry_takes_all_of_u() -> None:
    g0, g1, u, x = torch.zeros(2, 4), torch.rand(2, 4), unit(2, 4, dtype=torch.float32), torch.rand(2, 4)
    g1[0, 1], g0[1, 2] = math.inf, math.inf
    fresh, probe, rayleigh, norm = ops.power_step(g0, g1, u, x, 0.5)
    largest = torch.finfo(torch.float32).max
    expected = torch.tensor([[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]])
    torch.testing.assert_close(fresh, expected)
    torch.testing.assert_close(probe, x + 0.5 * expected)
    torch.testing.assert_close(rayleigh / largest, (u * expected).sum(1))
    torch.testing.assert_close(norm, torch.full((2,), largest))


@pytest.mark.parametrize("power", [-138, -120, -70, 60, 100])
def test_tiny_and_huge_curvature_scales_rayleigh_and_norm_only(power: int) -> None:
    product, u, x = torch.randn(3, 333), unit(3, 333, dtype=torch.float32), torch.rand(3, 333)
    zero = torch.zeros_like(x)
    exact = power > -130  # below, the product's entries are denormal numbers of few bits
    base = ops.power_step(zero, product, u, x, 1.0)
    got = ops.power_step(zero, torch.ldexp(product, torch.tensor(power)), u, x, 1.0)
    rtol = 1e-6 if exact else 1e-2
    for mine, plain in zip(got[:2], base[:2], strict=True):
        torch.testing.assert_close(mine, plain, rtol=rtol, atol=0.1 * rtol)
    for mine, plain in zip(got[2:], base[2:], strict=True):
        torch.testing.assert_close(mine.double(), plain.double() * 2.0**power, rtol=10 * rtol, atol=0.0)


def test_long_rows_keep_their_accuracy() -> None:
    size, u = 3_000_000, torch.full((1, 3_000_000), 0.5)
    _, _, rayleigh, norm = ops.power_step(torch.zeros_like(u), torch.full_like(u, 0.1), u, u, 1.0)
    tenth = float(torch.tensor(0.1))
    assert abs(float(rayleigh) / (0.5 * tenth * size) - 1) < 1e-6
    assert abs(float(norm) / (tenth * size**0.5) - 1) < 1e-6


_NUMBERS = st.floats(-(2.0**40), 2.0**40, width=32)


@given(st.lists(st.tuples(_NUMBERS, _NUMBERS, _NUMBERS), min_size=1, max_size=70))
def test_property_u_is_a_unit_vector_and_rayleigh_below_the_norm(entries: list[tuple[float, float, float]]) -> None:
    g0, g1, v = torch.tensor(entries).T.unsqueeze(1)
    u = ops.lmo(v, 2, 1.0)
    fresh, probe, rayleigh, norm = ops.power_step(g0, g1, u, torch.zeros_like(u), 1.0)
    size = torch.linalg.vector_norm(fresh.double()).item()
    assert abs(size - 1) < 1e-5 or (norm == 0 and torch.equal(fresh, u))
    assert rayleigh.abs() <= norm * (1 + 1e-5)
    assert torch.equal(probe, fresh)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"h": 0.0}, ValueError, "h must be finite and > 0"),
        ({"h": math.inf}, ValueError, "h must be finite and > 0"),
        ({"g1": torch.ones(4, 3)}, ValueError, r"g1 must have shape \(2, 3\), got \(4, 3\)"),
        ({"u": torch.ones(2, 3).half()}, TypeError, "u must have dtype torch.float32, got torch.float16"),
        ({"g0": torch.ones(2, 3, device="meta")}, ValueError, "g0 is on meta, expected cpu"),
        ({"x": torch.ones(2, 3).long()}, TypeError, "expected a floating tensor"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    tensors = {name: torch.ones(2, 3) for name in ("g0", "g1", "u", "x")}
    with pytest.raises(error, match=message):
        ops.power_step(**{**tensors, "h": 0.5, **change})
