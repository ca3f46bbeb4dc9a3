"""The gap between the loss and its quadratic model: closed forms, bounds that hold and are attained, dense norms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from soatfast.attacks import PGD
from soatfast.evaluate import quadratic_gap
from soatfast.gradients import InputGradient
from soatfast.solvers import trust_region
from tests.nets import batch, hessians, quadratic, relu_net, smooth_net

EPS = 0.3


def at(n: int, size: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(n, size, dtype=torch.float64), torch.zeros(n, dtype=torch.long)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("p", [2, math.inf])
def test_the_bound_is_attained_by_the_cubic(p: float) -> None:
    """l = <c, z>^3 - delta <c, z>: Q is -delta <c, v>, so v_Q is the wrong corner, and the gap is eps^3 M / 3."""
    c = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    reach = float(c.norm() if p == 2 else c.abs().sum())  # max <c, v> over ||v||_p <= 1
    third, delta = 6 * reach**3, 1e-6
    objective = lambda z, y: (z @ c) ** 3 - delta * (z @ c)  # noqa: E731
    x, y = at(4, 3)
    options = {"third": third, "objective": objective, "attack": PGD(steps=200, step_size=EPS / 4)}
    found = quadratic_gap(nn.Identity(), x, y, EPS, p, generator=generator(), **options)  # type: ignore[arg-type]
    bound = EPS**3 * third / 3
    torch.testing.assert_close(found.soae, torch.full((4,), bound).double())
    assert (found.gap <= found.soae).all() and (found.gap > 0.999 * found.soae).all()
    assert (found.gap <= found.theorem1).all() and found.third_is_known
    torch.testing.assert_close(found.remainder, torch.full((4,), -bound / 2).double())
    assert not found.hessian_norm.any()
    torch.testing.assert_close(found.gradient_norm, torch.full((4,), delta * reach).double())


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("seed", range(3))
def test_the_bounds_hold_for_random_cubics(p: float, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 4, generator=g, dtype=torch.float64)
    b, scale = torch.randn(4, generator=g, dtype=torch.float64), torch.randn(4, generator=g, dtype=torch.float64)
    objective = lambda z, y: z @ b + ((z @ (a @ a.T)) * z).sum(1) / 2 + (z**3) @ scale  # noqa: E731
    third = 6 * float(scale.abs().max() if p == 2 else scale.abs().sum())  # sum v^3 <= ||v||_2^3
    x, y = torch.rand(3, 4, dtype=torch.float64, generator=g), torch.zeros(3, dtype=torch.long)
    found = quadratic_gap(nn.Identity(), x, y, EPS, p, third=third, objective=objective, generator=generator())
    assert (found.gap >= 0).all() and (found.gap <= found.soae).all() and (found.soae < found.theorem1).all()
    assert (found.remainder.abs() <= EPS**3 * third / 6 * (1 + 1e-9)).all()
    guess = quadratic_gap(nn.Identity(), x, y, EPS, p, objective=objective, generator=generator())
    assert not guess.third_is_known and (guess.third <= third * (1 + 1e-6)).all() and (guess.third > 0).all()


@pytest.mark.parametrize("p", [2, math.inf])
def test_a_quadratic_has_no_gap(p: float) -> None:
    objective, h, b = quadratic()
    x, y = at(3, 6)
    found = quadratic_gap(nn.Identity(), x, y, EPS, p, third=0.0, objective=objective, generator=generator())
    assert (found.gap <= 1e-9).all() and (found.remainder.abs() < 1e-12).all()
    best = torch.tensor(-math.inf)
    if p == math.inf:  # an indefinite Q may be largest inside, but never below its corners
        corners = EPS * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=6)), dtype=torch.float64)
        best = (corners @ b + ((corners @ h) * corners).sum(1) / 2).max()
    else:
        v = trust_region(h.unsqueeze(0), b.unsqueeze(0), EPS)[0]
        best = v @ b + v @ h @ v / 2
    assert (found.model >= best * 0.98).all()
    if p == 2:
        torch.testing.assert_close(found.model, best.expand(3))


@pytest.mark.parametrize("net", [relu_net, smooth_net])
def test_the_norms_are_the_dense_ones(net) -> None:  # type: ignore[no-untyped-def]
    model, (x, y) = net(), batch(4)
    dense = hessians(model, x, y)
    with InputGradient(model) as oracle:
        g = oracle.gradient(x, y).flatten(1)
    two = quadratic_gap(model, x, y, EPS, 2, generator=generator())
    torch.testing.assert_close(two.hessian_norm[:, 0], torch.linalg.matrix_norm(dense, 2), rtol=1e-8, atol=1e-12)
    assert torch.equal(two.hessian_norm[:, 0], two.hessian_norm[:, 1])
    torch.testing.assert_close(two.gradient_norm, g.norm(dim=1))
    small = dense[:, :10, :10]
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)), dtype=torch.float64)
    inf = quadratic_gap(model, x, y, EPS, generator=generator())
    torch.testing.assert_close(inf.gradient_norm, g.abs().sum(1))
    low, high = inf.hessian_norm.unbind(1)
    assert (low <= high).all() and (low >= (small @ corners.T).abs().sum(1).amax(1) * 0.5).all()
    assert (low <= dense.abs().sum((1, 2)) * (1 + 1e-12)).all(), "max ||H u||_1 is at most the sum of all entries"
    vectors = torch.linalg.eigh(dense).eigenvectors
    cosine = (vectors[:, :, -1] * g).sum(1).abs() / g.norm(dim=1)
    torch.testing.assert_close(two.alignment, cosine, rtol=1e-5, atol=1e-6)


def test_a_saddle_with_no_gradient_is_left_along_the_top_eigenvector() -> None:
    objective = lambda z, y: (z**2 @ torch.tensor([1.0, 3.0, -2.0]).double()) / 2  # noqa: E731
    x, y = at(2, 3)
    for p, best in ((2, 0.5 * EPS**2 * 3), (math.inf, 0.5 * EPS**2 * 2)):
        found = quadratic_gap(nn.Identity(), x, y, EPS, p, third=0.0, objective=objective, generator=generator())
        assert (found.model >= best * (1 - 1e-9)).all(), (p, found.model)


def test_the_gap_is_larger_in_the_larger_ball() -> None:
    model, (x, y) = smooth_net(), batch(6)
    gaps = [quadratic_gap(model, x, y, eps, generator=generator()).gap.mean() for eps in (0.1, 0.5, 2.0)]
    assert gaps[0] < gaps[1] < gaps[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": 0.0}, r"eps must be finite and > 0, got 0.0"),
        ({"p": 1}, r"p must be 2 or math.inf for quadratic_gap, got 1"),
        ({"third": -1.0}, r"third must be finite and >= 0"),
        ({"restarts": 0}, r"restarts must be at least 1"),
        ({"max_dim": 17}, r"max_dim must lie in 1..16"),
    ],
)
def test_mistakes(options: dict, message: str) -> None:
    x, y = batch()
    with pytest.raises(ValueError, match=message):
        quadratic_gap(relu_net(), x, y, **{"eps": 0.1, **options})
