"""LLR against its formula sample by sample, and on losses whose remainder is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from soatfast.gradients.passes import Passes
from soatfast.losses import LLR
from tests.losses.oracles import Quadratic, assert_same, linear_loss, loss_and_gradient, one_by_one, points
from tests.nets import batch, relu_net, smooth_net

WIDE = (-10.0, 10.0)


def seeded():
    return torch.Generator().manual_seed(5)


def slow_llr(model, x, y, loss, start):
    """p = inf; start are the first points x + v."""
    total, alpha = 0, loss.eps / 4
    for i, (one, label) in enumerate(one_by_one(x, y)):
        value, g = loss_and_gradient(model, one, label)
        moved = start[i : i + 1]
        for _ in range(loss.steps):
            leaf = moved.clone().requires_grad_()
            remainder = (F.cross_entropy(model(leaf), label) - value - ((leaf - one) * g.detach()).sum()).abs()
            (ascent,) = torch.autograd.grad(remainder, leaf)
            moved = (moved + alpha * ascent.sign() - one).clamp(-loss.eps, loss.eps).add(one).clamp(0, 1)
        linear = ((moved - one) * g).sum()
        gamma = (F.cross_entropy(model(moved), label) - value - linear).abs()
        total = total + value + loss.strength * gamma + loss.mu * linear.abs()
    return total / len(x)


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize("net", [smooth_net, relu_net])
def test_it_is_the_formula_in_value_and_parameter_gradient(mode, net):
    model, (x, y) = net(), batch()
    loss = LLR(eps=0.3, steps=4, mode=mode, generator=seeded())
    start = (x + 0.3 * torch.empty_like(x).uniform_(-1, 1, generator=seeded())).clamp(0, 1)
    assert_same(model, loss(model, x, y), slow_llr(model, x, y, loss, start))


def test_float32_is_enough():
    model, (x, y) = smooth_net(), batch()
    loss = LLR(eps=0.3, steps=4, generator=seeded())
    narrow = loss(smooth_net(torch.float32), x.float(), y)
    start = (x + 0.3 * torch.empty_like(x.float()).uniform_(-1, 1, generator=seeded())).clamp(0, 1)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), slow_llr(model, x, y, loss, start), rtol=1e-3, atol=0)


@pytest.mark.parametrize("p", [math.inf, 2, 1])
def test_a_linear_loss_has_no_remainder(p):
    model, (x, y) = linear_loss(), points()
    value = LLR(eps=0.3, p=p, mu=0.0, strength=100.0)(model, x, y)
    torch.testing.assert_close(value, model.loss(x).mean(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_on_a_quadratic_it_finds_the_largest_eigenvalue(seed):
    """gamma = |1/2 <v, M v>|, at most eps^2/2 max|lambda| in the L2 ball; of a definite M there is no other maximum."""
    model, (x, y) = Quadratic(seed=seed), points()
    model.m.data = model.m.data @ model.m.data
    eps = 0.5
    largest = torch.linalg.eigvalsh((model.m + model.m.T) / 2).abs().max()
    loss = LLR(eps=eps, p=2, steps=60, step_size=0.2, mu=0.0, strength=1.0, bounds=WIDE)
    gamma = (loss(model, x, y) - model.loss(x).mean()).item()
    best = 0.5 * eps**2 * largest.item()
    assert 0.9 * best < gamma < best * (1 + 1e-6)


def test_no_sampled_point_is_further_from_the_tangent():
    model, (x, y) = smooth_net(), batch()
    options = {"eps": 0.3, "mu": 0.0, "strength": 1.0, "bounds": WIDE}
    with torch.no_grad():
        clean = F.cross_entropy(model(x), y)
    found = (LLR(steps=20, **options)(model, x, y) - clean).item()
    sampled = 0.0
    for one, label in one_by_one(x, y):
        value, g = loss_and_gradient(model, one, label)
        v = torch.empty(2000, *one.shape[1:], dtype=torch.float64).uniform_(-0.3, 0.3)
        moved = F.cross_entropy(model(one + v), label.expand(2000), reduction="none")
        sampled += (moved - value - (v * g).flatten(1).sum(1)).abs().max().item() / len(x)
    assert found > sampled


def test_the_linear_part_is_weighted_by_mu():
    model, (x, y) = linear_loss(), points()
    one, two = (
        (LLR(eps=0.3, mu=mu, generator=seeded())(model, x, y) - model.loss(x).mean()).item() for mu in (1.0, 2.0)
    )
    assert one > 0 and two == pytest.approx(2 * one)


def test_passes_are_those_of_the_design():
    assert LLR(steps=10, mode="keep").passes(5) == Passes(12, 11, 1, 60, 55, 10)
    assert LLR(steps=3).passes(5) == Passes(6, 4, 1, 30, 20, 15)


def test_per_sample_eps_and_fields():
    model, (x, y) = smooth_net(), batch()
    loss = LLR(eps=0.3, steps=3, generator=seeded())
    same = LLR(eps=torch.full((6,), 0.3, dtype=torch.float64), steps=3, generator=seeded())
    torch.testing.assert_close(loss(model, x, y), same(model, x, y))
    assert loss.with_eps(0.1).eps == 0.1 and loss.with_steps(7).steps == 7
    with pytest.raises(NotImplementedError, match="LLR has no finite-difference step"):
        loss.with_h(0.1)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"strength": -1}, ValueError, "strength must be finite and >= 0, got -1"),
        ({"mu": "1"}, TypeError, "mu must be a number, got str"),
        ({"eps": -0.1}, ValueError, "eps must be finite and >= 0, got -0.1"),
        ({"p": 3}, ValueError, "p must be 1, 2 or math.inf for LLR, got 3"),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"step_size": -1.0}, ValueError, "step_size must be finite and >= 0"),
        ({"mode": "test"}, ValueError, "mode must be"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        LLR(**fields)
