"""Local linearity, and the loss along lines and planes, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from soatfast.evaluate import local_linearity, loss_along, loss_surface, over_loader
from soatfast.gradients import InputGradient, count_passes
from soatfast.gradients.objectives import cross_entropy
from soatfast.solvers import top_eigenpairs
from tests.nets import batch, linear_net, relu_net, smooth_net

OPEN = (-math.inf, math.inf)


class LogOdds(nn.Module):
    """Two logits whose cross-entropy at label 0 is exactly x' H x / 2: logit 1 is log(expm1 of it)."""

    def __init__(self, h: torch.Tensor):
        super().__init__()
        self.h = nn.Parameter(h)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = 1 + 0.5 * ((x @ self.h) * x).sum(1)
        return torch.stack([torch.zeros_like(value), value.expm1().log()], 1)


def test_gamma_of_a_quadratic_is_half_eps_squared_times_the_largest_eigenvalue() -> None:
    h = torch.diag(torch.tensor([3.0, -0.5, 1.0, 0.2], dtype=torch.float64))
    x, y = torch.rand(5, 4, dtype=torch.float64), torch.zeros(5, dtype=torch.long)
    found = local_linearity(LogOdds(h), x, y, 0.1, 2, bounds=OPEN, steps=60, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(found, torch.full((5,), 0.5 * 0.01 * 3.0).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("p", [2, math.inf])
def test_no_sampled_point_is_further_from_the_tangent(p: float) -> None:
    model, (x, y) = smooth_net(), batch()
    eps = 0.5
    found = local_linearity(model, x, y, eps, p, restarts=3, bounds=OPEN, steps=40)
    with InputGradient(model) as oracle:
        loss, g = oracle(x, y)
        for seed in range(50):
            v = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
            v = eps * (v.sign() if p == math.inf else v / v.flatten(1).norm(dim=1).view(-1, 1, 1, 1))
            gamma = (oracle.loss(x + v, y) - loss - (v * g).flatten(1).sum(1)).abs()
            assert (gamma <= found * (1 + 1e-9)).all()
    assert (found > 0).all()


def test_gamma_grows_with_the_ball_and_more_restarts_find_no_less() -> None:
    model, (x, y) = relu_net(), batch()
    values = [local_linearity(model, x, y, eps, generator=torch.Generator().manual_seed(1)) for eps in (0.05, 0.2, 0.5)]
    assert (values[0] < values[1]).all() and (values[1] < values[2]).all()
    one, more = (
        local_linearity(model, x, y, 0.2, restarts=n, generator=torch.Generator().manual_seed(1)) for n in (1, 4)
    )
    assert (more >= one).all()


def test_passes_of_gamma() -> None:
    model, (x, y) = smooth_net(), batch()
    with count_passes(model) as passes:
        local_linearity(model, x, y, 0.1, steps=5, restarts=2)
    assert (passes.forward, passes.backward_input) == (1 + 2 * 6, 1 + 2 * 5)


def test_a_line_is_the_loss_and_bends_as_the_eigenvalue_says() -> None:
    model, (x, y) = smooth_net(), batch()
    with InputGradient(model) as oracle:
        pair = top_eigenpairs(oracle, x, y, 1)
    t = torch.tensor([-1e-3, 0.0, 1e-3])
    line = loss_along(model, x, y, pair.vectors[:, 0], t)
    torch.testing.assert_close(line[:, 1], cross_entropy(model(x), y).detach())
    bend = (line[:, 0] - 2 * line[:, 1] + line[:, 2]) / 1e-6
    torch.testing.assert_close(bend, pair.values[:, 0], rtol=1e-3, atol=1e-6)


def test_a_plane_is_its_lines() -> None:
    model, (x, y) = relu_net(), batch(3)
    one, other = torch.rand_like(x), torch.rand_like(x)
    t = torch.tensor([-0.5, 0.0, 0.25])
    plane = loss_surface(model, x, y, one, other, t)
    assert plane.shape == (3, 3, 3)
    torch.testing.assert_close(plane[:, 1], loss_along(model, x, y, other, t))
    torch.testing.assert_close(plane[:, :, 1], loss_along(model, x, y, one, t))
    torch.testing.assert_close(plane[:, 0, 2], cross_entropy(model(x - 0.5 * one + 0.25 * other), y).detach())


def test_parallel_directions_are_refused() -> None:
    model, (x, y) = relu_net(), batch(3)
    one = torch.rand_like(x)
    other = torch.rand_like(x)
    other[1] = -3 * one[1]
    t = torch.linspace(-1, 1, 3)
    with pytest.raises(ValueError, match=r"must span a plane; they are parallel or zero for sample 1 \(and 0 more\)"):
        loss_surface(model, x, y, one, other, t)
    with pytest.raises(ValueError, match=r"for sample 0 \(and 2 more\)"):
        loss_surface(model, x, y, one, torch.zeros_like(x), t)
    with pytest.raises(ValueError, match="other must have x's shape"):
        loss_surface(model, x, y, one, other[:2], t)
    with pytest.raises(ValueError, match="direction must have x's shape"):
        loss_along(model, x, y, other[:2], t)


def test_the_model_is_left_as_it_was() -> None:
    model, (x, y) = relu_net().train(), batch()
    local_linearity(model, x, y, 0.1)
    loss_along(model, x, y, torch.ones_like(x), torch.zeros(1))
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_loader_is_streamed() -> None:
    model, (x, y) = linear_net(classes=4), batch(10)
    loader = list(zip(x.split(4), y.split(4), strict=True))
    measure = lambda a, b: local_linearity(model, a, b, 0.1, generator=torch.Generator().manual_seed(0))  # noqa: E731
    assert over_loader(loader, measure).shape == (10,) and over_loader(loader, measure, samples=6).shape == (6,)
    seen: list[int] = []

    def count(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        seen.append(len(a))
        return a

    over_loader(loader, count, samples=4)
    assert seen == [4], "no batch is measured in vain"
    with pytest.raises(ValueError, match=r"a tensor of 4 rows, one a sample, got \(\)"):
        over_loader(loader, lambda a, b: a.sum())
    with pytest.raises(ValueError, match="samples must be at least 1"):
        over_loader(loader, measure, samples=0)
    with pytest.raises(ValueError, match="the loader has no batches"):
        over_loader([], measure)
