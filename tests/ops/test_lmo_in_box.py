"""lmo over ball and box against SciPy's solvers, bisection, brute force, and what a maximiser must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soatfast import ops
from soatfast.testing import BALL_P

EPS = {1: 2.0, 2: 0.8, math.inf: 0.2}
every_p = pytest.mark.parametrize("p", BALL_P)


def problem(rows: int = 6, size: int = 40, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Gradients, and points of which a sixth lies at each bound."""
    x = (1.5 * torch.rand(rows, size, dtype=torch.float64) - 0.25).clamp(0, 1).to(dtype)
    return torch.randn(rows, size, dtype=dtype) ** 3, x


def value(g: Tensor, s: Tensor) -> Tensor:
    return (g.double() * s.double()).sum(1)


def norm(s: Tensor, p: float) -> Tensor:
    return torch.linalg.vector_norm(s.double(), p, dim=1)


@pytest.mark.parametrize("eps", [0.0, 0.3, 2.0, 100.0])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_p_1_is_the_linear_programs_optimum(size: int, eps: float) -> None:
    g, x = problem(size=size)
    s = ops.lmo(g, 1, eps, x=x)
    for i in range(len(g)):  # s = up - down turns the ball into one constraint
        a, b = g[i].numpy(), x[i].numpy()
        solved = scipy.optimize.linprog(
            np.concatenate([-a, a]), A_ub=np.ones((1, 2 * size)), b_ub=[eps], bounds=[(0, r) for r in (*(1 - b), *b)]
        )  # fmt: skip
        np.testing.assert_allclose(float(value(g, s)[i]), -solved.fun, rtol=1e-12, atol=1e-12)
    assert (norm(s, 1) <= eps * (1 + 1e-14)).all() and ((x + s >= -1e-15) & (x + s <= 1 + 1e-15)).all()


@pytest.mark.parametrize("eps", [0.1, 0.8, 3.0])
def test_p_2_agrees_with_slsqp(eps: float) -> None:
    g, x = problem(rows=3, size=8)
    s = ops.lmo(g, 2, eps, x=x)
    for i in range(len(g)):
        a, b = g[i].numpy(), x[i].numpy()
        ball = {"type": "ineq", "fun": lambda d: eps**2 - d @ d, "jac": lambda d: -2 * d}
        solved = scipy.optimize.minimize(
            lambda d, a=a: -(a @ d), np.zeros(8), jac=lambda d, a=a: -a, bounds=list(zip(-b, 1 - b, strict=True)),
            constraints=[ball], method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )  # fmt: skip
        np.testing.assert_allclose(float(value(g, s)[i]), -solved.fun, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 33, 3000])
def test_p_2_agrees_with_bisection(size: int, dtype: torch.dtype) -> None:
    g, x = problem(size=size, dtype=dtype)
    for eps in (0.2, 2.0, 20.0):
        low, high = torch.zeros(len(g), 1).double(), torch.full((len(g), 1), 1e9).double()
        for _ in range(200):
            middle = (low + high) / 2
            outside = norm((middle * g).clamp(-x.double(), 1 - x.double()), 2).unsqueeze(1) > eps
            low, high = torch.where(outside, low, middle), torch.where(outside, middle, high)
        expected = (low * g).clamp(-x.double(), 1 - x.double())
        torch.testing.assert_close(ops.lmo(g, 2, eps, x=x).double(), expected, rtol=0, atol=32 * torch.finfo(dtype).eps)


def test_p_inf_is_the_balls_clamped() -> None:
    g, x = problem(dtype=torch.float32)
    assert torch.equal(ops.lmo(g, math.inf, 0.2, x=x), ops.lmo(g, math.inf, 0.2).clamp(-x, 1 - x))


@every_p
def test_a_far_box_changes_nothing(p: float) -> None:
    g, x = problem()
    for bounds in ((-1e6, 1e6), (-math.inf, math.inf)):
        s = ops.lmo(g, p, EPS[p], x=x, bounds=bounds)
        torch.testing.assert_close(s, ops.lmo(g, p, EPS[p]), rtol=1e-14, atol=0)


@every_p
def test_spends_eps_where_there_is_room_for_it(p: float) -> None:
    g, x = problem(rows=20)
    s = ops.lmo(g, p, EPS[p], x=x)
    torch.testing.assert_close(norm(s, p), torch.full((20,), EPS[p], dtype=torch.float64), rtol=1e-12, atol=0)
    all_room = torch.where(g > 0, 1 - x, -x)
    torch.testing.assert_close(ops.lmo(g, p, 1e9, x=x), all_room, rtol=0, atol=1e-15)


def test_rooms_in_a_geometric_series_still_converge() -> None:
    """Newton's method takes them one at a time."""
    x = 1 - torch.logspace(-12, -0.1, 2000, dtype=torch.float64).unsqueeze(0)
    g = torch.linspace(1, 3, 2000, dtype=torch.float64).unsqueeze(0)
    for eps in (0.01, 0.8, 5.0):
        s = ops.lmo(g, 2, eps, x=x)
        with ops.backend("reference"):
            torch.testing.assert_close(s, ops.lmo(g, 2, eps, x=x), rtol=0, atol=1e-13)


def test_entries_far_below_the_largest_get_what_it_cannot_take() -> None:
    """The ratio is beyond a float32's range."""
    g, x = torch.full((1, 5), 1e-24), torch.full((1, 5), 0.5)
    g[0, 2] = 1e30
    torch.testing.assert_close(ops.lmo(g, 1, 1.25, x=x), torch.tensor([[0.5, 0.25, 0.5, 0.0, 0.0]]))
    torch.testing.assert_close(ops.lmo(g, 2, 0.7, x=x)[0, 2], torch.tensor(0.5))
    torch.testing.assert_close(
        norm(ops.lmo(g, 2, 0.7, x=x), 2), torch.tensor([0.7], dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_ties_are_filled_in_order() -> None:
    g, x = torch.tensor([[1.0, -2.0, 2.0, 2.0, 0.0]]), torch.tensor([[0.5, 0.25, 0.75, 0.5, 0.5]])
    for eps, expected in (
        (0.1, [0.0, -0.1, 0.0, 0.0, 0.0]),
        (0.4, [0.0, -0.25, 0.15, 0.0, 0.0]),
        (0.75, [0.0, -0.25, 0.25, 0.25, 0.0]),
        (1.25, [0.25, -0.25, 0.25, 0.5, 0.0]),
        (9.0, [0.5, -0.25, 0.25, 0.5, 0.0]),
    ):
        torch.testing.assert_close(ops.lmo(g, 1, eps, x=x), torch.tensor([expected]))
    many = ops.lmo(torch.ones(1, 1000), 1, 100.3, x=torch.full((1, 1000), 0.5))[0]
    torch.testing.assert_close(many, torch.tensor([0.5] * 200 + [0.3] + [0.0] * 799), atol=1e-5, rtol=0)


@every_p
def test_no_gradient_no_eps_no_room_no_move(p: float) -> None:
    g, x = problem()
    for zero in (torch.zeros_like(g), torch.full_like(g, math.nan)):
        assert torch.equal(ops.lmo(zero, p, EPS[p], x=x), torch.zeros_like(g))
    assert not ops.lmo(g, p, 0.0, x=x).any()
    assert not ops.lmo(g.abs(), p, EPS[p], x=torch.ones_like(x)).any()


@every_p
def test_eps_per_sample_is_eps_one_by_one(p: float) -> None:
    g, x = problem(rows=3)
    eps = torch.tensor([0.1, 0.0, 3.0], dtype=torch.float64)
    whole = ops.lmo(g, p, eps, x=x)
    for i in range(3):
        assert torch.equal(whole[i : i + 1], ops.lmo(g[i : i + 1], p, float(eps[i]), x=x[i : i + 1]))


entry = st.tuples(st.floats(0, 1, width=32), st.floats(-(2.0**60), 2.0**60, width=32), st.floats(-1, 1, width=32))


@given(st.lists(entry, min_size=1, max_size=60), st.sampled_from(BALL_P), st.floats(0, 20, width=32), st.randoms())
def test_property_feasible_better_than_any_other_and_of_no_order(entries: list, p: float, eps: float, random) -> None:
    x, g, other = (torch.tensor([column], dtype=torch.float64) for column in zip(*entries, strict=True))
    s = ops.lmo(g, p, eps, x=x)
    assert ((x + s >= 0) & (x + s <= 1)).all() or ((x + s).clamp(0, 1) - x - s).abs().max() < 1e-15
    assert (s * g >= 0).all() and float(norm(s, p)) <= eps * (1 + 1e-12)
    other = ops.project(x + other, x, p, eps) - x
    assert (value(g, other) <= value(g, s) + 1e-12 * value(g.abs(), torch.ones_like(s))).all()
    order = list(range(len(entries)))
    random.shuffle(order)
    shuffled = ops.lmo(g[:, order], p, eps, x=x[:, order])
    torch.testing.assert_close(value(g[:, order], shuffled), value(g, s), rtol=1e-9, atol=1e-300)


@every_p
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded(p: float, dtype: torch.dtype) -> None:
    g, x = problem(dtype=dtype)
    expected = ops.lmo(g.float(), p, EPS[p], x=x.float()).to(dtype)
    torch.testing.assert_close(ops.lmo(g, p, EPS[p], x=x), expected, rtol=0, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"p": 3}, ValueError, "an lmo at x takes p = 1, 2 or math.inf, got p = 3"),
        ({"x": torch.ones(2, 4)}, ValueError, r"x must have shape \(2, 3\), got \(2, 4\)"),
        ({"x": torch.ones(2, 3).double()}, TypeError, "x must have dtype torch.float32"),
        ({"x": torch.ones(2, 3, device="meta")}, ValueError, "x is on meta, expected cpu"),
        ({"bounds": (0.5, 0.5)}, ValueError, r"bounds must be \(lower, upper\)"),
        ({"bounds": (torch.zeros(3), 1.0)}, ValueError, "take bounds that are numbers, got tensors"),
        ({"eps": -1.0}, ValueError, "eps must be finite and >= 0"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"g": torch.ones(2, 3), "p": 2, "eps": 0.5, "x": torch.full((2, 3), 0.5), **change}
    with pytest.raises(error, match=message):
        ops.lmo(**arguments)
