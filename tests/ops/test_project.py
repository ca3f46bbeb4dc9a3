"""project against SciPy's solver, bisection, and what a projection must be: feasible, idempotent, not expansive."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast import ops
from soatfast.testing import BALL_P

EPS = {1: 1.5, 2: 0.6, math.inf: 0.2}
both = pytest.mark.parametrize("exact", [False, True])
every_p = pytest.mark.parametrize("p", BALL_P)


def points(rows: int = 6, size: int = 40, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    x = (1.4 * torch.rand(rows, size, dtype=torch.float64) - 0.2).clamp(0, 1).to(dtype)
    return x + torch.randn(rows, size, dtype=dtype), x


def norm(delta: torch.Tensor, p: float) -> torch.Tensor:
    return torch.linalg.vector_norm(delta.double(), p, dim=1)


@both
@every_p
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feasible(p: float, exact: bool, dtype: torch.dtype) -> None:
    for size in (1, 7, 64, 3000):
        x_adv, x = points(size=size, dtype=dtype)
        out = ops.project(x_adv, x, p, EPS[p], exact=exact)
        assert ((out >= 0) & (out <= 1)).all()
        # Storing x + delta rounds every entry by half a unit of numbers below 1.
        rounding = torch.finfo(dtype).eps * size ** (0 if p == math.inf else 1 / p)
        assert (norm(out.double() - x.double(), p) <= EPS[p] * (1 + 4 * torch.finfo(dtype).eps) + rounding).all()


@both
@every_p
def test_a_feasible_point_stays_and_projecting_twice_is_projecting_once(p: float, exact: bool) -> None:
    x_adv, x = points()
    once = ops.project(x_adv, x, p, EPS[p], exact=exact)
    torch.testing.assert_close(ops.project(once, x, p, EPS[p], exact=exact), once, rtol=0, atol=1e-13)
    inside = (x + 0.5 * EPS[p] * (once - x)).clamp(0, 1)
    torch.testing.assert_close(ops.project(inside, x, p, EPS[p], exact=exact), inside, rtol=0, atol=1e-15)


@pytest.mark.parametrize("p", [1, 2])
def test_exact_is_the_euclidean_projection(p: float) -> None:
    """Against SLSQP on min ||z - v||^2 over the ball and the box."""
    rng = np.random.default_rng(3)
    for size in (2, 5, 8):
        x = np.clip(1.4 * rng.random(size) - 0.2, 0, 1)
        v = rng.standard_normal(size)
        if p == 2:
            limit = {"type": "ineq", "fun": lambda d: 0.4**2 - d @ d, "jac": lambda d: -2 * d}
            bounds = list(zip(-x, 1 - x, strict=True))
            solved = scipy.optimize.minimize(
                lambda d, v=v: ((d - v) ** 2).sum(), np.zeros(size), jac=lambda d, v=v: 2 * (d - v), bounds=bounds,
                constraints=[limit], method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
            )  # fmt: skip
            best = solved.x
        else:  # d = up - down turns the L1 ball into a linear constraint
            bounds = [(0, 1 - a) for a in x] + [(0, a) for a in x]
            limit = {"type": "ineq", "fun": lambda u: 0.4 - u.sum(), "jac": lambda u: -np.ones_like(u)}
            solved = scipy.optimize.minimize(
                lambda u, v=v, n=size: ((u[:n] - u[n:] - v) ** 2).sum(), np.zeros(2 * size), bounds=bounds,
                constraints=[limit], method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
            )  # fmt: skip
            best = solved.x[:size] - solved.x[size:]
        mine = ops.project(torch.tensor(x + v)[None], torch.tensor(x)[None], p, 0.4, exact=True)[0].numpy() - x
        np.testing.assert_allclose(mine, best, atol=2e-6)
        assert ((mine - v) ** 2).sum() <= ((best - v) ** 2).sum() + 1e-7


@pytest.mark.parametrize("p", [1, 2])
def test_exact_agrees_with_bisection(p: float) -> None:
    """delta_i = clip(v_i / (1 + mu)) or clip(soft(v_i, tau)), with the multiplier bisected."""
    x_adv, x = points(rows=20, size=300)
    v = x_adv - x
    low, high = torch.zeros(20, 1, dtype=torch.float64), torch.full((20, 1), 1e3, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        moved = v / (1 + middle) if p == 2 else v.sign() * (v.abs() - middle).clamp_min(0)
        outside = norm(moved.clamp(-x, 1 - x), p).unsqueeze(1) > EPS[p]
        low, high = torch.where(outside, middle, low), torch.where(outside, high, middle)
    moved = v / (1 + high) if p == 2 else v.sign() * (v.abs() - high).clamp_min(0)
    out = ops.project(x_adv, x, p, EPS[p], exact=True)
    torch.testing.assert_close(out, x + moved.clamp(-x, 1 - x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("p", [1, 2])
def test_exact_reaches_the_sphere_that_the_plain_one_misses(p: float) -> None:
    x_adv, x = points(rows=20)
    plain = norm(ops.project(x_adv, x, p, EPS[p]) - x, p)
    exact = norm(ops.project(x_adv, x, p, EPS[p], exact=True) - x, p)
    assert (exact >= plain - 1e-12).all() and (exact > plain + 1e-3).any()


def test_many_steps_of_room_still_converge() -> None:
    """Rooms in a geometric series make Newton's method take one at a time."""
    size = 2000
    x = 1 - torch.logspace(-12, -0.1, size, dtype=torch.float64).unsqueeze(0)
    for p, eps in ((1, 5.0), (2, 0.8)):
        x_adv = x + torch.linspace(1, 3, size, dtype=torch.float64)
        mine = ops.project(x_adv, x, p, eps, exact=True)
        with ops.backend("reference"):
            twin = ops.project(x_adv, x, p, eps, exact=True)
        torch.testing.assert_close(mine, twin, rtol=0, atol=1e-12)


row = st.lists(st.tuples(st.floats(0, 1, width=32), st.floats(-3, 3, width=32)), min_size=1, max_size=50)


@given(row, st.sampled_from(BALL_P), st.booleans(), st.floats(0, 4, width=32))
def test_property_feasible_and_never_past_the_point(values: list, p: float, exact: bool, eps: float) -> None:
    x = torch.tensor([[a for a, _ in values]])
    x_adv = x + torch.tensor([[b for _, b in values]])
    out = ops.project(x_adv, x, p, eps, exact=exact)
    delta, reach = out.double() - x.double(), x_adv.double() - x.double()
    assert ((out >= 0) & (out <= 1)).all()
    assert float(norm(delta, p)) <= eps * (1 + 1e-6) + 1e-6 * len(values)
    assert (delta.abs() <= reach.abs() + 1e-6).all() and (delta * reach >= -1e-12).all()


@pytest.mark.native
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_core_on_numpy_rows(dtype: type) -> None:
    host = pytest.importorskip("soatfast._host")
    x_adv, x = points(rows=1)
    for p in BALL_P:
        for exact in (False, True):
            mine = host.project(x_adv[0].numpy().astype(dtype), x[0].numpy().astype(dtype), p, EPS[p], exact=exact)
            expected = ops.project(x_adv, x, p, EPS[p], exact=exact)[0].numpy()
            np.testing.assert_allclose(mine, expected, atol=30 * np.finfo(dtype).eps)
    with pytest.raises(ValueError, match="same length"):
        host.project(np.ones(3), np.ones(4), 2.0, 0.1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"p": 3}, ValueError, "p must be 1, 2 or math.inf for this operation, got 3"),
        ({"p": 0.5}, ValueError, "p must be a number >= 1"),
        ({"p": "2"}, TypeError, "p must be a number"),
        ({"eps": -0.1}, ValueError, "eps must be finite and >= 0"),
        ({"eps": None}, TypeError, "eps must be a number or a tensor, got NoneType"),
        ({"bounds": (0.5, 0.5)}, ValueError, r"bounds must be \(lower, upper\)"),
        ({"x_adv": torch.ones(2, 4)}, ValueError, r"x_adv must have shape \(2, 3\), got \(2, 4\)"),
        ({"x_adv": torch.ones(2, 3).double()}, TypeError, "x_adv must have dtype torch.float32"),
        ({"x_adv": torch.ones(2, 3, device="meta")}, ValueError, "x_adv is on meta, expected cpu"),
        ({"x": torch.ones(2)}, ValueError, "expected a batch of shape"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"x_adv": torch.ones(2, 3), "x": torch.ones(2, 3), "p": 2, "eps": 0.5, **change}
    with pytest.raises(error, match=message):
        ops.project(**arguments)
