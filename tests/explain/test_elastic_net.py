"""The proximal operator against its definition, FISTA against SciPy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from soatfast.explain.elastic_net import fista, prox

INF = torch.tensor(float("inf"), dtype=torch.float64)


@given(st.floats(-3, 3), st.floats(0.01, 1), st.floats(0, 2), st.floats(0, 2), st.floats(-1.5, 0.5), st.floats(0.01, 2))
def test_prox_is_the_minimiser_on_the_interval(z, step, l1, l2, lower, width):
    bounds = torch.tensor([lower, lower + width], dtype=torch.float64)
    found = prox(torch.tensor([z], dtype=torch.float64), step, l1, l2, *bounds)

    def value(u):
        return 0.5 * (u - z) ** 2 + step * (l1 * u.abs() + l2 * u**2)

    grid = torch.linspace(*bounds.tolist(), 4001, dtype=torch.float64)
    assert bounds[0] <= found <= bounds[1]
    assert value(found) <= value(grid).min() + 1e-12
    assert (found - grid[value(grid).argmin()]).abs() <= width / 4000 + 1e-12


def test_prox_without_bounds_is_the_shrinkage():
    z = torch.tensor([-2.0, -0.1, 0.0, 0.1, 2.0], dtype=torch.float64)
    expected = torch.tensor([-1.2, 0, 0, 0, 1.2], dtype=torch.float64)  # (2 - 0.4 * 0.5) / (1 + 2 * 0.5 * 0.5)
    assert torch.allclose(prox(z, 0.5, 0.4, 0.5, -INF, INF), expected)


def problem(seed, d=12):
    """1/2 u.Au - b.u with eigenvalues in [1, 10]."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    a = q @ torch.diag(torch.linspace(1, 10, d, dtype=torch.float64)) @ q.T
    return a, 3 * torch.randn(d, generator=generator, dtype=torch.float64)


def by_scipy(a, b, l1, l2, lower, upper):
    """u = p - n with p, n >= 0 makes the L1 norm linear, so that a smooth solver on a box will do."""
    a, b, d = a.numpy(), b.numpy(), len(b)

    def value(pn):
        u = pn[:d] - pn[d:]
        slope = a @ u - b + 2 * l2 * u
        return 0.5 * u @ a @ u - b @ u + l2 * u @ u + l1 * pn.sum(), np.concatenate([slope + l1, l1 - slope])

    box = [(0, max(upper, 0))] * d + [(0, max(-lower, 0))] * d
    options = {"maxiter": 5000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(value, np.zeros(2 * d), jac=True, bounds=box, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x[:d] - found.x[d:])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("l1", "l2", "lower", "upper"), [(0.5, 1.0, -10, 10), (1.0, 0.0, -0.3, 0.2), (0.0, 2.0, 0, 1)])
def test_fista_finds_the_minimum(seed, l1, l2, lower, upper):
    a, b = problem(seed)
    bounds = torch.full_like(b, lower), torch.full_like(b, upper)
    found = fista(lambda u: a @ u - b, torch.zeros_like(b), 800, 0.1, l1, l2, *bounds)
    assert torch.allclose(found, by_scipy(a, b, l1, l2, lower, upper), atol=1e-5)


def test_fista_asks_only_inside_the_box_and_for_as_many_gradients_as_steps():
    a, b = problem(0)
    lower, upper = torch.full_like(b, -0.1), torch.full_like(b, 0.3)
    asked = []

    def gradient(u):
        asked.append(u)
        return a @ u - b

    fista(gradient, torch.zeros_like(b), 25, 0.1, 0.1, 1.0, lower, upper)
    assert len(asked) == 25
    assert all(((u >= lower) & (u <= upper)).all() for u in asked)


def test_a_nan_entry_makes_no_step():
    box = torch.full((2,), 5.0)
    found = fista(lambda u: torch.tensor([float("nan"), -1.0]), torch.zeros(2), 3, 0.1, 0.0, 0.0, -box, box)
    assert found[0] == 0 and found[1] > 0
