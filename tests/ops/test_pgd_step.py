"""pgd_step against its parts: the direction written out, then project."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast import ops
from soatfast.testing import BALL_P

EPS = {1: 1.5, 2: 0.6, math.inf: 0.2}


def direction(g: torch.Tensor, p: float, k: int) -> torch.Tensor:
    if p == math.inf:
        return g.sign()
    if p == 2:
        return g / torch.linalg.vector_norm(g, dim=1, keepdim=True)
    threshold = g.abs().sort(dim=1, descending=True).values[:, k - 1 : k]
    chosen = (g.abs() >= threshold) & (g != 0)
    return g.sign() * chosen / chosen.sum(1, keepdim=True)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("k", [1, 5, 40])
@pytest.mark.parametrize("p", BALL_P)
def test_is_a_step_and_a_projection(p: float, k: int, exact: bool) -> None:
    g = torch.randn(6, 40, dtype=torch.float64)
    x = torch.rand(6, 40, dtype=torch.float64)
    x_adv = ops.project(x + torch.randn_like(x), x, p, EPS[p])
    mine = ops.pgd_step(x_adv, g, x, p, EPS[p], 0.3, exact=exact, k=k)
    if p == 1 and exact:  # what lies at the box's edge is not pushed out of it
        g = torch.where(((x_adv == 1) & (g > 0)) | ((x_adv == 0) & (g < 0)), 0.0, g)
    expected = ops.project(x_adv + 0.3 * direction(g, p, k), x, p, EPS[p], exact=exact)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-13)


def test_ties_with_the_kth_are_taken_and_share_the_step() -> None:
    g = torch.tensor([[1.0, -3.0, 2.0, 2.0, -2.0, 0.0]])
    x = torch.full((1, 6), 0.5)
    step = ops.pgd_step(x, g, x, 1, 10.0, 0.4, k=2) - x
    torch.testing.assert_close(step, torch.tensor([[0.0, -0.1, 0.1, 0.1, -0.1, 0.0]]))
    zeros = torch.tensor([[0.0, 0.0, 5.0, 0.0, 0.0, 0.0]])  # fewer than k entries that are not zero
    torch.testing.assert_close(ops.pgd_step(x, zeros, x, 1, 10.0, 0.4, k=4) - x, 0.4 * zeros.sign())


def test_default_k_is_a_hundredth_rounded_up() -> None:
    x = torch.full((1, 250), 0.5)
    step = ops.pgd_step(x, torch.arange(250.0).unsqueeze(0), x, 1, 10.0, 0.3) - x
    assert step.nonzero()[:, 1].tolist() == [247, 248, 249]


@pytest.mark.parametrize("p", BALL_P)
def test_zero_gradient_only_projects(p: float) -> None:
    x = torch.rand(3, 20)
    x_adv = x + torch.randn(3, 20)
    mine = ops.pgd_step(x_adv, torch.zeros(3, 20), x, p, EPS[p], 0.3)
    assert torch.equal(mine, ops.project(x_adv, x, p, EPS[p]))


@pytest.mark.parametrize("p", BALL_P)
def test_alpha_and_eps_per_sample(p: float) -> None:
    g, x = torch.randn(3, 20), torch.rand(3, 20)
    eps, alpha = torch.tensor([0.1, 0.5, 0.0]), torch.tensor([0.0, 0.2, 3.0])
    whole = ops.pgd_step(x, g, x, p, eps, alpha)
    for i in range(3):
        part = slice(i, i + 1)
        alone = ops.pgd_step(x[part], g[part], x[part], p, float(eps[i]), float(alpha[i]))
        torch.testing.assert_close(whole[part], alone, rtol=0, atol=1e-7)


@given(st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0]), min_size=1, max_size=60), st.data())
def test_property_l1_step_has_norm_alpha(values: list[float], data: st.DataObject) -> None:
    g = torch.tensor([values], dtype=torch.float64)
    k = data.draw(st.integers(1, len(values)))
    x = torch.full_like(g, 0.5)
    step = ops.pgd_step(x, g, x, 1, 100.0, 0.25, k=k) - x
    moved = int((g != 0).sum())
    assert abs(float(step.abs().sum()) - (0.25 if moved else 0.0)) < 1e-12
    assert int((step != 0).sum()) >= min(k, moved)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be between 1 and the 3 entries of a sample, got 0"),
        ({"k": 4}, ValueError, "k must be between 1 and the 3 entries of a sample, got 4"),
        ({"p": 1.5}, ValueError, "p must be 1, 2 or math.inf"),
        ({"eps": -0.1}, ValueError, "eps must be finite and >= 0"),
        ({"alpha": -0.1}, ValueError, "alpha must be finite and >= 0"),
        ({"alpha": torch.rand(3)}, ValueError, "alpha must be a number or a floating tensor"),
        ({"alpha": "1"}, TypeError, "alpha must be a number or a tensor"),
        ({"bounds": (1, 0)}, ValueError, r"bounds must be \(lower, upper\)"),
        ({"g": torch.ones(3, 3)}, ValueError, r"g must have shape \(2, 3\), got \(3, 3\)"),
        ({"g": torch.ones(2, 3).bfloat16()}, TypeError, "g must have dtype torch.float32"),
        ({"x_adv": torch.ones(2, 3, device="meta")}, ValueError, "x_adv is on meta, expected cpu"),
        ({"x": torch.ones(2, 3).int()}, TypeError, "expected a floating tensor"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    tensors = {name: torch.ones(2, 3) for name in ("x_adv", "g", "x")}
    arguments = {**tensors, "p": 2, "eps": 0.5, "alpha": 0.1, **change}
    with pytest.raises(error, match=message):
        ops.pgd_step(**arguments)
