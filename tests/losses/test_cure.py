"""CURE against its formula sample by sample, a linear-softmax model by hand, and quadratic losses."""

from __future__ import annotations

import math

import pytest
import torch

from soatfast.gradients.passes import Passes
from soatfast.losses import CURE
from tests.losses.oracles import Quadratic, assert_same, linear_loss, loss_and_gradient, one_by_one, points
from tests.nets import batch, linear_net, relu_net, smooth_net


def slow_cure(model, x, y, loss):
    total = 0
    for one, label in one_by_one(x, y):
        value, g = loss_and_gradient(model, one, label)
        z = g.detach().sign()
        _, moved = loss_and_gradient(model, one + loss.h * z / z.norm(), label)
        total = total + value + loss.strength * (moved - g).norm() ** loss.power
    return total / len(x)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize("net", [smooth_net, relu_net])
def test_it_is_the_formula_in_value_and_parameter_gradient(power, mode, net):
    model, (x, y) = net(), batch()
    loss = CURE(h=1.5, strength=0.7, power=power, mode=mode)
    assert_same(model, loss(model, x, y), slow_cure(model, x, y, loss))


@pytest.mark.parametrize("power", [1, 2])
def test_linear_softmax_by_hand(power):
    """g(x) = W^T (softmax(W x + b) - e_y): no gradient by the input is taken at all."""
    model, (x, y) = linear_net(classes=4), batch()
    linear = model[1]
    onehot = torch.nn.functional.one_hot(y, 4).double()

    def gradient(rows):
        return (linear(rows).softmax(1) - onehot) @ linear.weight

    rows = x.flatten(1)
    z = gradient(rows).detach().sign() / math.sqrt(rows.shape[1])
    distance = (gradient(rows + 2 * z) - gradient(rows)).norm(dim=1)
    expected = torch.nn.functional.cross_entropy(linear(rows), y) + 4 * (distance**power).mean()
    assert_same(model, CURE(h=2.0, power=power)(model, x, y), expected)


@pytest.mark.parametrize(("power", "h"), [(1, 3.0), (1, 0.1), (2, 1.5)])
def test_on_a_quadratic_it_is_the_hessian_times_z(power, h):
    model, (x, y) = Quadratic(), points()
    x = x / 10
    z = model.gradient(x).detach().sign() / math.sqrt(5)
    size = (h * (z @ (model.m + model.m.T) / 2).norm(dim=1)) ** power
    expected = model.loss(x).mean() + 4 * size.mean()
    assert_same(model, CURE(h=h, power=power)(model, x, y), expected, rtol=1e-6, atol=1e-8)


def test_a_linear_loss_has_no_penalty_and_finite_gradients():
    model, (x, y) = linear_loss(), points()
    value = CURE()(model, x, y)
    torch.testing.assert_close(value, model.loss(x).mean())
    value.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_zero_gradient_takes_no_step():
    model, (x, y) = relu_net(), batch()
    with torch.no_grad():
        model[3].weight.zero_()
    loss = CURE()
    value = loss(model, x, y)
    torch.testing.assert_close(value, torch.nn.functional.cross_entropy(model(x), y))
    value.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_passes_are_those_of_the_design():
    assert CURE(mode="keep").passes(5) == Passes(2, 2, 1, 10, 10, 10)
    assert CURE().passes(5) == Passes(3, 2, 1, 15, 10, 15)


def test_fields():
    loss = CURE(h=2.0)
    assert loss.with_eps(0.1) is loss and loss.with_h(0.5) == CURE(h=0.5)
    with pytest.raises(NotImplementedError, match="CURE has no attack steps"):
        loss.with_steps(3)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"strength": -1}, ValueError, "strength must be finite and >= 0, got -1"),
        ({"strength": math.nan}, ValueError, "strength must be finite and >= 0, got nan"),
        ({"strength": "4"}, TypeError, "strength must be a number, got str"),
        ({"h": 0}, ValueError, "h must be finite and > 0, got 0"),
        ({"h": None}, TypeError, "h must be a number, got NoneType"),
        ({"power": 3}, ValueError, "power must be 1 or 2, got 3"),
        ({"power": True}, ValueError, "power must be 1 or 2, got True"),
        ({"mode": "test"}, ValueError, 'mode must be "eval", "train" or "keep", got \'test\''),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        CURE(**fields)
