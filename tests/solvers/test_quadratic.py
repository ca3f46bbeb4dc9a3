"""The small quadratic problems against brute force and optimality conditions."""

from __future__ import annotations

import math

import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast.solvers.quadratic import newton, trust_region


def problem(k=4, rows=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    t = torch.randn(rows, k, k, generator=generator, dtype=torch.float64)
    return t + t.transpose(1, 2), torch.randn(rows, k, generator=generator, dtype=torch.float64)


def value(t, c, z):
    return (c * z).sum(1) + 0.5 * (z * (t @ z.unsqueeze(2)).squeeze(2)).sum(1)


def shift(t, definite):
    """T with all eigenvalues negative (-1), positive (1) or as they are (0)."""
    values, vectors = torch.linalg.eigh(t)
    values = values if definite == 0 else definite * (values.abs() + 0.1)
    return vectors @ torch.diag_embed(values) @ vectors.transpose(1, 2)


def assert_optimal(t, c, z, radius):
    """(lam I - T) z = c with lam I - T positive semidefinite, and lam = 0 or ||z|| = radius."""
    length = z.norm(dim=1)
    assert (length <= radius * (1 + 1e-9)).all()
    top = torch.linalg.eigvalsh(t)[:, -1]
    lam = (z * (c + (t @ z.unsqueeze(2)).squeeze(2))).sum(1) / length.square().clamp_min(1e-300)
    scale = 1 + t.abs().amax((1, 2)) + c.norm(dim=1) / radius
    assert (lam >= top.clamp_min(0) - 1e-7 * scale).all()
    left = lam.unsqueeze(1) * z - (t @ z.unsqueeze(2)).squeeze(2) - c
    assert (left.norm(dim=1) <= 1e-6 * scale * radius).all()
    inside = length < radius * (1 - 1e-6)
    assert (lam[inside].abs() <= 1e-6 * scale[inside]).all()


@pytest.mark.parametrize("definite", [-1, 0, 1])
@pytest.mark.parametrize("radius", [1e-3, 0.3, 5.0, 100.0])
def test_trust_region_is_optimal(definite, radius):
    t, c = problem()
    t = shift(t, definite)
    assert_optimal(t, c, trust_region(t, c, radius), radius)


@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.integers(1, 6))
def test_trust_region_is_optimal_everywhere(seed, radius, k):
    t, c = problem(k, 3, seed)
    assert_optimal(t, c, trust_region(t, c, radius), radius)


def test_trust_region_beats_a_general_optimiser_from_many_starts():
    t, c = problem(3, 3, seed=4)
    z = trust_region(t, c, 0.7)
    for i in range(3):
        best = -math.inf
        for start in range(20):
            begin = torch.randn(3, generator=torch.Generator().manual_seed(start), dtype=torch.float64)
            found = scipy.optimize.minimize(
                lambda v, i=i: -float(value(t[i : i + 1], c[i : i + 1], torch.tensor(v).unsqueeze(0))),
                0.5 * begin / begin.norm(),
                constraints=[{"type": "ineq", "fun": lambda v: 0.49 - (v**2).sum()}],
            )
            best = max(best, -found.fun)
        mine = float(value(t[i : i + 1], c[i : i + 1], z[i : i + 1]))
        assert mine >= best - 1e-6  # its points may leave the ball by as much


def test_the_hard_case_reaches_the_sphere():
    t = torch.diag(torch.tensor([2.0, 1.0, -1.0], dtype=torch.float64)).unsqueeze(0)
    c = torch.tensor([[0.0, 0.1, 0.1]], dtype=torch.float64)  # nothing along the top eigenvector
    z = trust_region(t, c, 3.0)
    assert_optimal(t, c, z, 3.0)
    assert abs(float(z.norm()) - 3) < 1e-9 and abs(float(z[0, 0])) > 2.9
    assert torch.equal(trust_region(t, torch.zeros_like(c), 3.0).abs().round(decimals=9), torch.tensor([[3.0, 0, 0]]))


def test_padding_and_zeros_change_nothing():
    t, c = problem()
    wide_t, wide_c = torch.zeros(6, 7, 7).double(), torch.zeros(6, 7).double()
    wide_t[:, :4, :4], wide_c[:, :4] = t, c
    torch.testing.assert_close(trust_region(wide_t, wide_c, 0.5)[:, :4], trust_region(t, c, 0.5))
    assert not trust_region(t, c, 0.0).any()
    each = trust_region(t, c, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0, 2.0]))
    torch.testing.assert_close(each[2], trust_region(t, c, 0.3)[2])


def test_newton_is_the_pseudo_inverse():
    t, c = problem()
    t[2] = t[2] @ torch.diag(torch.tensor([1.0, 1, 1, 0])).double() @ t[2]
    expected = (torch.linalg.pinv(t, rtol=1e-10) @ c.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(newton(t, c), expected)
    assert not newton(torch.zeros_like(t), c).any()


def test_bad_arguments():
    t, c = problem()
    with pytest.raises(ValueError, match=r"expected t \(B, k, k\) and c \(B, k\)"):
        trust_region(t, c[:, 1:], 1.0)
    with pytest.raises(ValueError, match="radius must be a number or of shape"):
        trust_region(t, c, torch.ones(3))
    with pytest.raises(ValueError, match="rcond must be finite and >= 0"):
        newton(t, c, rcond=-1)
