"""Input-gradient penalties against their formulas, logistic regression by hand, and each other."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from soatfast.gradients.passes import Passes
from soatfast.losses import InputGradientPenalty
from soatfast.losses.regulariser import norms
from tests.losses.oracles import assert_same, linear_loss, loss_and_gradient, one_by_one, points
from tests.nets import batch, linear_net, relu_net, slow_lmo, smooth_net

ORDERS = [(2, 2), (math.inf, 1), (1, math.inf), (3, 1.5)]


def norm(g, q):
    return g.abs().amax() if q == math.inf else (g.abs() ** q).sum() ** (1 / q)


def slow_penalty(model, x, y, loss, q):
    total = 0
    for one, label in one_by_one(x, y):
        value, g = loss_and_gradient(model, one, label)
        if loss.variant == "squared":
            size = norm(g, q) ** 2
        elif loss.variant == "dual":
            size = loss.eps * norm(g, q)
        else:
            h = loss.h or 0.01
            v = slow_lmo(g.detach().flatten(), loss.p, 1.0).view_as(one)
            size = 0.5 * ((F.cross_entropy(model(one + h * v), label) - value) / h) ** 2
        total = total + value + loss.strength * size
    return total / len(x)


@pytest.mark.parametrize("fields", [{"variant": "squared"}, {"variant": "dual", "eps": 0.1}, {"variant": "difference"}])
@pytest.mark.parametrize(("p", "q"), ORDERS)
@pytest.mark.parametrize("mode", ["eval", "keep"])
@pytest.mark.parametrize("net", [smooth_net, relu_net])
def test_it_is_the_formula_in_value_and_parameter_gradient(fields, p, q, mode, net):
    model, (x, y) = net(), batch()
    loss = InputGradientPenalty(p=p, strength=0.7, mode=mode, **fields)
    assert_same(model, loss(model, x, y), slow_penalty(model, x, y, loss, q), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("p", "q"), ORDERS)
def test_logistic_regression_by_hand(p, q):
    """||g||_q = (1 - p_y) ||w||_q, with w the difference of the two classes' weights."""
    model, (x, y) = linear_net(), batch(classes=2)
    linear, rows = model[1], x.flatten(1)
    logits = linear(rows)
    others = 1 - logits.softmax(1).gather(1, y[:, None])[:, 0]
    size = others * norm(linear.weight[1] - linear.weight[0], q)
    clean = F.cross_entropy(logits, y)
    squared, dual = InputGradientPenalty(p=p), InputGradientPenalty(variant="dual", p=p, eps=0.3)
    assert_same(model, squared(model, x, y), clean + (size**2).mean())
    assert_same(model, dual(model, x, y), clean + 0.3 * size.mean())
    difference = InputGradientPenalty(variant="difference", p=p, h=1e-5)
    torch.testing.assert_close(difference(model, x, y), clean + 0.5 * (size**2).mean(), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("p", "q"), ORDERS)
def test_the_dual_form_is_the_worst_case_of_a_linear_loss(p, q):
    model, (x, y) = linear_loss(), points()
    worst = x + torch.stack([slow_lmo(model.b.detach(), p, 0.2)] * len(x))
    loss = InputGradientPenalty(variant="dual", p=p, eps=0.2)
    torch.testing.assert_close(loss(model, x, y), model.loss(worst).mean())


def test_the_strength_of_ross_and_doshi_velez():
    """lambda_R / 2 sum_i ||grad of the mean loss||^2 is this loss with lambda_R / (2 B)."""
    model, (x, y) = smooth_net(), batch()
    leaf = x.clone().requires_grad_()
    value = F.cross_entropy(model(leaf), y)
    (g,) = torch.autograd.grad(value, leaf, create_graph=True)
    expected = value + 100 / 2 * (g**2).sum()
    assert_same(model, InputGradientPenalty(strength=100 / (2 * len(x)))(model, x, y), expected)


@pytest.mark.parametrize("variant", ["squared", "difference"])
@pytest.mark.parametrize("mode", ["eval", "keep"])
def test_uniform_targets(variant, mode):
    model, (x, y) = smooth_net(), batch()
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    total = F.cross_entropy(model(x), y)
    for one, _ in one_by_one(x, y):
        value, g = loss_and_gradient(model, one, uniform)
        if variant == "squared":
            total = total + (g**2).sum() / len(x)
        else:
            moved = F.cross_entropy(model(one + 0.01 * g.detach() / g.detach().norm()), uniform)
            total = total + 0.5 * ((moved - value) / 0.01) ** 2 / len(x)
    loss = InputGradientPenalty(variant=variant, targets="uniform", mode=mode)
    assert_same(model, loss(model, x, y), total, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("fields", [{"variant": "squared"}, {"variant": "dual", "eps": 0.1}, {"variant": "difference"}])
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_a_zero_gradient_has_no_penalty_and_finite_gradients(fields, p):
    model, (x, y) = relu_net(), batch()
    with torch.no_grad():
        model[3].weight.zero_()
    value = InputGradientPenalty(p=p, **fields)(model, x, y)
    torch.testing.assert_close(value, F.cross_entropy(model(x), y))
    value.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_where_nothing_is_differenced(dtype):
    model, (x, y) = relu_net(dtype), batch(dtype=dtype)
    wide, _ = relu_net(torch.float64), None
    wide.load_state_dict(model.state_dict())
    for loss in (InputGradientPenalty(), InputGradientPenalty(variant="dual", eps=0.1)):
        value = loss(model, x, y)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), loss(wide, x.double(), y), rtol=0.02, atol=0)


def test_passes_are_those_of_the_design():
    assert InputGradientPenalty(mode="keep").passes(5) == Passes(1, 1, 1, 5, 5, 5)
    assert InputGradientPenalty(variant="difference", mode="keep").passes(5) == Passes(2, 1, 1, 10, 5, 10)
    assert InputGradientPenalty().passes(5) == Passes(2, 1, 1, 10, 5, 10)


def test_fields():
    dual = InputGradientPenalty(variant="dual", eps=0.1)
    assert dual.with_eps(0.2) == InputGradientPenalty(variant="dual", eps=0.2)
    squared = InputGradientPenalty()
    assert squared.with_eps(0.2) is squared
    assert InputGradientPenalty(variant="difference").with_h(0.1).h == 0.1
    model, (x, y) = relu_net(), batch()
    with pytest.raises(ValueError, match="eps must be a number or a floating tensor"):
        dual.with_eps(torch.tensor([0.1, 0.2]))(model, x, y)
    per_sample = torch.full((6,), 0.1, dtype=torch.float64)
    torch.testing.assert_close(dual.with_eps(per_sample)(model, x, y), dual(model, x, y))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"variant": "l2"}, ValueError, 'variant must be "squared", "dual" or "difference", got \'l2\''),
        ({"strength": -1}, ValueError, "strength must be finite and >= 0, got -1"),
        ({"p": 0.5}, ValueError, "p must be a number >= 1 or math.inf, got 0.5"),
        ({"variant": "dual"}, ValueError, 'variant "dual" needs eps'),
        ({"variant": "dual", "eps": -1}, ValueError, "eps must be finite and >= 0, got -1"),
        ({"eps": 0.1}, ValueError, 'eps belongs to variant "dual", got 0.1 for "squared"'),
        ({"h": 0.1}, ValueError, 'h belongs to variant "difference", got 0.1 for "squared"'),
        ({"variant": "difference", "h": 0}, ValueError, "h must be finite and > 0, got 0"),
        ({"targets": "smooth"}, ValueError, 'targets must be "label" or "uniform", got \'smooth\''),
        ({"mode": "test"}, ValueError, "mode must be"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        InputGradientPenalty(**fields)


rows = st.lists(st.floats(-10, 10, allow_subnormal=False), min_size=3, max_size=3)


@given(rows=st.lists(rows, min_size=1, max_size=4), q=st.sampled_from([1, 1.2, 1.5, 2, 3, 7.5, math.inf]))
def test_norms_are_the_norms_and_scale(rows, q):
    g = torch.tensor(rows, dtype=torch.float64)
    expected = torch.linalg.vector_norm(g, q, dim=1)
    torch.testing.assert_close(norms(g, q), expected, rtol=1e-9, atol=1e-200)
    torch.testing.assert_close(norms(1e-30 * g.float(), q).double() * 1e30, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("q", [1, 1.5, 2, 3, math.inf])
def test_norms_gradient(q):
    torch.manual_seed(1)
    g = torch.randn(3, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: norms(t, q), g)
    zero = torch.zeros(1, 4, requires_grad=True)
    norms(zero, q).sum().backward()
    assert not zero.grad.any()
