"""SOAR against its formula sample by sample, the dense augmented Hessian, and the bound that it stands for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from soatfast.attacks import PGD
from soatfast.gradients.passes import Passes
from soatfast.losses import SOAR
from tests.losses.oracles import Known, Quadratic, assert_same, linear_loss, loss_and_gradient, one_by_one, points
from tests.nets import batch, hessians, relu_net, slow_gradient, smooth_net


def seeded():
    return torch.Generator().manual_seed(5)


def drawn(x, samples, generator):
    """The draws z = (z_v, z_1), in the order in which the loss takes them."""
    pairs = []
    for _ in range(samples):
        z = torch.empty_like(x).normal_(generator=generator)
        pairs.append((z, torch.empty(len(x), dtype=x.dtype).normal_(generator=generator)))
    return pairs


def slow_soar(model, x, y, loss, draws):
    """x is x_0 already."""
    total = 0
    corner = (x[0].numel() if loss.p == math.inf else 1) * loss.eps**2 + 1
    for i, (one, label) in enumerate(one_by_one(x, y)):
        value, g = loss_and_gradient(model, one, label)
        sizes = []
        for z, last in draws:
            v, c = z[i : i + 1], last[i]
            _, moved = loss_and_gradient(model, one + loss.h * v / v.norm(), label)
            upper = v.norm() * (moved - g) / loss.h + c * g
            sizes.append(((upper**2).sum() + ((g * v).sum() + c) ** 2).sqrt())
        sizes = torch.stack(sizes)
        size = sizes.mean() if loss.estimator == "l2" else (sizes**2).mean().sqrt()
        total = total + value + loss.strength * 0.5 * corner * size
    return total / len(x)


@pytest.mark.parametrize(("estimator", "samples"), [("l2", 1), ("l2", 3), ("frob", 3)])
@pytest.mark.parametrize("mode", ["eval", "keep"])
@pytest.mark.parametrize("p", [math.inf, 2])
def test_it_is_the_formula_in_value_and_parameter_gradient(estimator, samples, mode, p):
    model, (x, y) = smooth_net(), batch()
    loss = SOAR(eps=0.1, p=p, estimator=estimator, samples=samples, mode=mode, start="x", generator=seeded())
    assert_same(model, loss(model, x, y), slow_soar(model, x, y, loss, drawn(x, samples, seeded())))


@pytest.mark.parametrize("p", [math.inf, 2])
def test_the_start_is_a_step_of_pgd_from_a_random_point(p):
    model, (x, y) = relu_net(), batch()
    loss = SOAR(eps=0.2, p=p, generator=seeded())
    generator = seeded()
    start = PGD(eps=0.2, p=p, steps=1, step_size=0.05, generator=generator)(model, x, y)
    assert (start != x).any()
    assert_same(model, loss(model, x, y), slow_soar(model, start, y, loss, drawn(x, 1, generator)))


def test_float32_is_enough():
    model, (x, y) = smooth_net(), batch()
    loss = SOAR(eps=0.1, start="x", generator=seeded())
    narrow = loss(smooth_net(torch.float32), x.float(), y)
    draws = [(z.double(), last.double()) for z, last in drawn(x.float(), 1, seeded())]
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), slow_soar(model, x, y, loss, draws), rtol=1e-3, atol=0)


def dense(g, h):
    """[[H, g], [g^T, 1]]."""
    return torch.cat([torch.cat([h, g[:, None]], 1), torch.cat([g, g.new_ones(1)])[None]])


def test_small_steps_give_the_dense_augmented_hessian():
    model, (x, y) = smooth_net(), batch()
    loss = SOAR(eps=0.1, h=1e-5, start="x", strength=1.0, generator=seeded())
    ((z, last),) = drawn(x, 1, seeded())
    z = torch.cat([z.flatten(1), last[:, None]], 1)
    g = slow_gradient(model, x, y).flatten(1)
    sizes = torch.stack([(dense(g[i], h) @ z[i]).norm() for i, h in enumerate(hessians(model, x, y))])
    expected = torch.nn.functional.cross_entropy(model(x), y) + 0.5 * (16 * 0.1**2 + 1) * sizes.mean()
    torch.testing.assert_close(loss(model, x, y), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("h", [1e-3, 0.5])
def test_on_a_quadratic_it_is_exact_for_every_step(h):
    model, (x, y) = Quadratic(), points()
    loss = SOAR(eps=0.1, h=h, start="x", generator=seeded())
    ((z, last),) = drawn(x, 1, seeded())
    g = model.gradient(x)
    upper = z @ (model.m + model.m.T) / 2 + last[:, None] * g
    lower = (g * z).sum(1) + last
    size = ((upper**2).sum(1) + lower**2).sqrt()
    expected = model.loss(x).mean() + 0.5 * 0.5 * (5 * 0.1**2 + 1) * size.mean()
    assert_same(model, loss(model, x, y), expected, rtol=1e-6, atol=1e-6)


def test_a_linear_loss_has_only_the_gradient():
    model, (x, y) = linear_loss(), points()
    loss = SOAR(eps=0.1, start="x", generator=seeded())
    ((z, last),) = drawn(x, 1, seeded())
    size = ((last[:, None] * model.b).pow(2).sum(1) + (z @ model.b + last) ** 2).sqrt()
    expected = model.loss(x).mean() + 0.25 * (5 * 0.1**2 + 1) * size.mean()
    torch.testing.assert_close(loss(model, x, y), expected)


class RankOne(Known):
    """H = b b^T and g = b at 0: the augmented Hessian is r r^T, r = (b, 1)."""

    def __init__(self):
        super().__init__()
        self.b = torch.nn.Parameter(torch.tensor([0.7, -1.1, 0.4], dtype=torch.float64))

    def loss(self, x):
        t = x @ self.b
        return 5 + t + 0.5 * t**2


def test_the_l2_estimator_is_no_bound_and_the_other_is():
    """Of rank one: E ||A z||_2 = sqrt(2/pi) ||A||_F, and sqrt(E ||A z||_2^2) = ||A||_F = ||r||^2."""
    model = RankOne()
    x, y = torch.zeros(200, 3, dtype=torch.float64), torch.zeros(200, dtype=torch.long)
    frobenius = 1 + (model.b.detach() ** 2).sum().item()
    options = {"eps": 0.0, "start": "x", "strength": 2.0, "samples": 100, "generator": seeded()}
    found = {estimator: SOAR(estimator=estimator, **options)(model, x, y).item() - 5 for estimator in ("l2", "frob")}
    assert found["l2"] == pytest.approx(math.sqrt(2 / math.pi) * frobenius, rel=0.02)
    assert found["frob"] == pytest.approx(frobenius, rel=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_the_frobenius_estimate_bounds_the_second_order_loss_in_the_ball(seed):
    model, (x, y) = Quadratic(seed=seed), points(n=1)
    eps = 0.3
    loss = SOAR(eps=eps, estimator="frob", samples=400, start="x", strength=1.0, generator=seeded())
    bound = (loss(model, x, y) - model.loss(x)).item() - 0.5
    g, m = model.gradient(x)[0], (model.m + model.m.T) / 2
    corners = eps * torch.tensor(list(itertools.product((-1.0, 1.0), repeat=5)), dtype=torch.float64)
    assert bound > (corners @ g + 0.5 * ((corners @ m) * corners).sum(1)).max().item()


def test_passes_are_those_of_the_design():
    assert SOAR(mode="keep").passes(5) == Passes(3, 3, 1, 15, 15, 10)
    assert SOAR(mode="keep", start="x").passes(5) == Passes(2, 2, 1, 10, 10, 10)
    assert SOAR(samples=4).passes(5) == Passes(7, 6, 1, 35, 30, 30)


def test_per_sample_eps_and_fields():
    model, (x, y) = smooth_net(), batch()
    eps = torch.tensor([0.1, 0.2, 0.1, 0.3, 0.0, 0.1])
    parts = [
        SOAR(eps=float(e), start="x", strength=1.0, generator=seeded())(model, x, y)
        - SOAR(eps=0.0, start="x", strength=1.0, generator=seeded())(model, x, y)
        for e in (0.1, 0.2)
    ]
    whole = SOAR(eps=eps.double(), start="x", generator=seeded())
    assert (parts[1] / parts[0]).item() == pytest.approx(4)
    ((z, last),) = drawn(x, 1, seeded())
    each = [
        slow_soar(model, *one, SOAR(eps=float(e)), [(z[i : i + 1], last[i : i + 1])])
        for i, (one, e) in enumerate(zip(one_by_one(x, y), eps, strict=True))
    ]
    assert_same(model, whole(model, x, y), torch.stack(each).mean())
    with pytest.raises(ValueError, match="eps must be a number or a floating tensor"):
        whole.with_eps(eps[:2])(model, x, y)
    assert SOAR().with_eps(0.2) == SOAR(eps=0.2) and SOAR().with_h(0.1).h == 0.1


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"strength": -1}, ValueError, "strength must be finite and >= 0, got -1"),
        ({"eps": -0.1}, ValueError, "eps must be finite and >= 0, got -0.1"),
        ({"eps": "0.1"}, TypeError, "eps must be a number or a tensor, got str"),
        ({"p": 1}, ValueError, "p must be 2 or math.inf for SOAR, got 1"),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
        ({"h": 0.0}, ValueError, "h must be finite and > 0, got 0.0"),
        ({"samples": 0}, ValueError, "samples must be at least 1, got 0"),
        ({"estimator": "l1"}, ValueError, 'estimator must be "l2" or "frob", got \'l1\''),
        ({"start": "pgd"}, ValueError, 'start must be "pgd1" or "x", got \'pgd\''),
        ({"mode": "test"}, ValueError, "mode must be"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        SOAR(**fields)
