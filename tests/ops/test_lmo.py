"""lmo against Hoelder's equality, random feasible points, and the limits in p."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast import ops
from soatfast.testing import GENERAL_P

RADII = (0.0, 0.3, 7.5)


def norm(t: torch.Tensor, p: float) -> torch.Tensor:
    return torch.linalg.vector_norm(t.double(), p, dim=1)


def dual(p: float) -> float:
    return math.inf if p == 1 else 1.0 if p == math.inf else p / (p - 1)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e3])
@pytest.mark.parametrize("size", [1, 2, 100])
@pytest.mark.parametrize("p", GENERAL_P)
def test_attains_hoelder_on_the_sphere(p: float, size: int, scale: float) -> None:
    g = scale * torch.randn(4, size)
    for eps in RADII:
        s = ops.lmo(g, p, eps)
        value = (g.double() * s.double()).sum(1)
        torch.testing.assert_close(value, eps * norm(g, dual(p)), rtol=2e-6, atol=0.0)
        torch.testing.assert_close(norm(s, p), torch.full((4,), eps).double(), rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("p", GENERAL_P)
def test_no_feasible_point_is_better(p: float) -> None:
    g = torch.randn(8, 20, dtype=torch.float64)
    best = (g * ops.lmo(g, p, 1.0)).sum(1)
    for _ in range(50):
        other = torch.randn(8, 20, dtype=torch.float64) ** 3
        other = other / norm(other, p).unsqueeze(1)
        assert ((g * other).sum(1) <= best * (1 + 1e-12)).all()


def test_special_values_are_exact() -> None:
    g = torch.tensor([[3.0, -4.0, 0.0, -0.0, math.nan, math.inf, -math.inf]])
    assert torch.equal(ops.lmo(g, math.inf, 0.5), 0.5 * torch.nan_to_num(g).sign())
    ties = torch.tensor([[0.0, -2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert torch.equal(ops.lmo(ties, 1, 0.5), torch.tensor([[0.0, -0.5, 0.0, 0.0], [0.0] * 4]))
    for p in GENERAL_P:
        assert torch.equal(ops.lmo(torch.zeros(2, 5), p, 0.5), torch.zeros(2, 5))
        assert torch.equal(ops.lmo(torch.full((2, 5), math.nan), p, 0.5), torch.zeros(2, 5))
        assert torch.equal(ops.lmo(torch.randn(2, 5), p, 0.0), torch.zeros(2, 5))


def test_first_of_many_ties_wherever_it_is() -> None:
    for first in (0, 1, 255, 256, 257, 700, 999):
        g = torch.zeros(1, 1000)
        g[0, first:] = -1.0
        assert ops.lmo(g, 1, 1.0).nonzero().tolist() == [[0, first]]


def test_orders_near_the_ends_are_the_ends() -> None:
    g = torch.randn(3, 50)
    assert torch.equal(ops.lmo(g, 1.001, 0.5), ops.lmo(g, 1, 0.5))
    assert torch.equal(ops.lmo(g, 1e6, 0.5), ops.lmo(g, math.inf, 0.5))
    torch.testing.assert_close(ops.lmo(g, 999.0, 0.5), ops.lmo(g, math.inf, 0.5), rtol=0.02, atol=0.0)
    unique = torch.tensor([[1.0, -3.0, 2.0]])
    torch.testing.assert_close(ops.lmo(unique, 1.01, 0.5), ops.lmo(unique, 1, 0.5), rtol=1e-3, atol=1e-9)


def test_eps_per_sample_is_eps_one_by_one() -> None:
    g, eps = torch.randn(3, 2, 5), torch.tensor([0.1, 0.0, 2.0])
    for p in GENERAL_P:
        whole = ops.lmo(g, p, eps)
        for i in range(3):
            torch.testing.assert_close(whole[i : i + 1], ops.lmo(g[i : i + 1], p, float(eps[i])), rtol=1e-6, atol=0.0)
        assert torch.equal(ops.lmo(g, p, torch.tensor(0.25)), ops.lmo(g, p, 0.25))


finite = st.floats(-(2.0**99), 2.0**99, width=32)


@given(st.lists(finite, min_size=1, max_size=70), st.sampled_from(GENERAL_P), st.floats(0, 10, width=32))
def test_property_sphere_and_sign(values: list[float], p: float, eps: float) -> None:
    g = torch.tensor([values])
    s = ops.lmo(g, p, eps)
    assert s.isfinite().all()
    assert ((s.sign() == g.sign()) | (s == 0)).all()
    assert float(norm(s, p)) <= eps * (1 + 4e-6)


@pytest.mark.native
@pytest.mark.parametrize("p", GENERAL_P)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_core_on_numpy_rows(dtype: type, p: float) -> None:
    host = pytest.importorskip("soatfast._host")
    g = np.random.default_rng(0).standard_normal(77).astype(dtype)
    s = host.lmo(g, p, 0.5)
    assert s.dtype == dtype
    expected = ops.reference.lmo(torch.tensor(g).double().unsqueeze(0), p, 0.5)[0].numpy()
    np.testing.assert_allclose(s, expected, rtol=20 * np.finfo(dtype).eps, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"p": 0.5}, ValueError, "p must be a number >= 1"),
        ({"p": math.nan}, ValueError, "p must be a number >= 1"),
        ({"p": "inf"}, TypeError, "p must be a number"),
        ({"p": True}, TypeError, "p must be a number"),
        ({"eps": -0.1}, ValueError, "eps must be finite and >= 0"),
        ({"eps": math.inf}, ValueError, "eps must be finite and >= 0"),
        ({"eps": math.nan}, ValueError, "eps must be finite and >= 0"),
        ({"eps": "0.1"}, TypeError, "eps must be a number or a tensor"),
        ({"eps": True}, TypeError, "eps must be a number or a tensor"),
        ({"eps": torch.rand(3)}, ValueError, r"eps must be a number or a floating tensor of shape \(\) or \(2,\)"),
        ({"eps": torch.rand(2, 1)}, ValueError, "eps must be a number or a floating tensor"),
        ({"eps": torch.ones(2, dtype=torch.int64)}, ValueError, "eps must be a number or a floating tensor"),
        ({"eps": torch.ones(2, device="meta")}, ValueError, "eps is on meta, expected cpu"),
        ({"g": torch.ones(2, 3, dtype=torch.int64)}, TypeError, "expected a floating tensor, got torch.int64"),
        ({"g": [[1.0]]}, TypeError, "expected a floating tensor, got list"),
        ({"g": torch.ones(3)}, ValueError, r"expected a batch of shape \(B, \.\.\.\)"),
        ({"g": torch.ones(2, 0)}, ValueError, "a sample must have at least one entry"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"g": torch.ones(2, 3), "p": 2, "eps": 0.5, **change}
    with pytest.raises(error, match=message):
        ops.lmo(**arguments)
