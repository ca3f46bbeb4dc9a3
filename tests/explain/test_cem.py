"""Pertinent negatives and positives: where they lie, what the model says of them, and how small they are."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import nn

from soatfast.explain import PertinentNegative, PertinentPositive
from soatfast.gradients import count_passes
from tests.nets import batch, conv_net, linear_net, relu_net, smooth_net

NEGATIVE = PertinentNegative(steps=60, searches=6)
POSITIVE = PertinentPositive(steps=60, searches=6)


@pytest.fixture(params=[NEGATIVE, POSITIVE], ids=["negative", "positive"])
def method(request):
    return request.param


def net(found, beta=0.1):
    return beta * found.l1 + found.l2**2


@pytest.mark.parametrize("make", [relu_net, smooth_net])
@pytest.mark.parametrize("kappa", [0.0, 0.05])
def test_a_negative_changes_the_class_and_only_adds(make, kappa):
    model, (x, _) = make(), batch(n=30)
    found = dataclasses.replace(NEGATIVE, kappa=kappa)(model, x)
    clean, logits = model(x).argmax(1), model(found.image)
    assert found.success.float().mean() > 0.5
    assert torch.equal(found.labels, clean) and torch.equal(found.predictions, logits.argmax(1))
    assert torch.allclose(found.confidence, logits.softmax(1).amax(1).float())
    assert torch.equal(found.predictions != clean, found.success)
    own = logits.gather(1, clean[:, None])[:, 0]
    assert (logits.amax(1) - own >= kappa)[found.success].all()
    assert found.delta.min() >= 0 and found.image.max() <= 1
    assert torch.allclose(found.image, x + found.delta, atol=1e-12)
    assert not found.delta[~found.success].any()


@pytest.mark.parametrize("make", [relu_net, smooth_net])
@pytest.mark.parametrize("kappa", [0.0, 0.05])
def test_a_positive_keeps_the_class_and_is_part_of_the_image(make, kappa):
    model, (x, _) = make(), batch(n=30)
    found = dataclasses.replace(POSITIVE, kappa=kappa)(model, x)
    clean, logits = model(x).argmax(1), model(found.image)
    assert found.success.float().mean() > 0.5
    assert torch.equal(found.predictions == clean, found.success) or kappa > 0
    assert (found.predictions == clean)[found.success].all()
    rival = logits.scatter(1, clean[:, None], -math.inf).amax(1)
    assert (logits.gather(1, clean[:, None])[:, 0] - rival >= kappa)[found.success].all()
    assert torch.equal(found.image, found.delta)
    assert found.delta.min() >= 0 and (found.delta <= x).all()
    assert (found.l2 <= x.flatten(1).norm(dim=1)).all() and found.delta[found.success].any()


def test_the_norms():
    found = NEGATIVE(relu_net(), batch()[0])
    flat = found.delta.flatten(1)
    assert torch.allclose(found.l1, flat.abs().sum(1).float()) and torch.allclose(found.l2, flat.norm(dim=1).float())
    assert torch.equal(found.changed, (flat != 0).sum(1))


def test_without_the_l1_norm_a_linear_models_negative_is_the_step_to_the_boundary():
    """min ||d||^2 with w.d >= m + kappa is (m + kappa) w / ||w||^2, where nothing is in the way of d."""
    model = linear_net()
    weight = (model[1].weight[1] - model[1].weight[0]).detach()
    model[1].weight.data[0], model[1].weight.data[1] = 0, weight.abs()  # adding leads to class 1
    model[1].bias.data = torch.tensor([6.0, 0.0], dtype=torch.float64)
    x = 0.2 * batch(classes=2)[0]
    found = PertinentNegative(beta=0, kappa=0.1, steps=400, searches=14, bounds=(0, 100))(model, x)
    logits = model(x).detach()
    lack = (logits[:, 0] - logits[:, 1] + 0.1)[:, None]
    expected = (lack * weight.abs() / weight.square().sum()).view_as(x)
    assert found.success.all() and (lack > 0).all()
    assert torch.allclose(found.l2.double(), expected.flatten(1).norm(dim=1), rtol=0.01)
    assert torch.allclose(found.delta, expected, rtol=0.03)


@pytest.mark.parametrize("role", ["negative", "positive"])
def test_a_linear_models_explanation_is_nearly_as_small_as_can_be(role):
    """The smallest elastic net with the wanted prediction, of a linear model in a box: a small convex problem."""
    model = linear_net(shape=(1, 3, 3))
    model[1].bias.data.zero_()
    x = batch(n=8, shape=(1, 3, 3), classes=2)[0]
    logits = model(x).detach()
    own = logits.argmax(1)
    make = PertinentNegative if role == "negative" else PertinentPositive
    found = make(beta=1.0, steps=600, searches=14)(model, x)
    assert found.success.any()
    for i in range(len(x)):
        slope = (model[1].weight[1 - own[i]] - model[1].weight[own[i]]).detach().numpy()
        if role == "negative":
            smallest = smallest_net(slope, -(slope @ x[i].flatten().numpy()), np.ones(9) - x[i].flatten().numpy())
        else:
            smallest = smallest_net(-slope, 0.0, x[i].flatten().numpy())
        if smallest is None:
            assert not found.success[i]
        else:
            assert found.success[i]
            assert smallest - 1e-6 <= float(net(found, 1.0)[i]) <= 1.02 * smallest + 1e-6


def smallest_net(a, least, upper):
    """min sum(d) + ||d||^2 with a.d >= least, 0 <= d <= upper: its dual has d = clamp((t a - 1) / 2), t bisected."""
    if linprog(-a, bounds=list(zip(np.zeros(9), upper, strict=True))).fun > -least:
        return None
    low, high = 0.0, 1e9
    for _ in range(300):
        t = (low + high) / 2
        d = np.clip((t * a - 1) / 2, 0, upper)
        low, high = (t, high) if a @ d < least else (low, t)
    d = np.clip((high * a - 1) / 2, 0, upper)
    return d.sum() + d @ d


def test_what_cannot_be_found_is_0_and_no_success():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model[1].weight.data, model[1].bias.data = torch.zeros(2, 4), torch.tensor([1.0, 0.0])
    x = torch.rand(3, 1, 2, 2)
    found = NEGATIVE(model, x)
    assert not found.success.any() and not found.delta.any()
    assert torch.equal(found.image, x) and found.predictions.tolist() == [0, 0, 0]
    empty = POSITIVE(model, x)
    assert empty.success.all() and not empty.delta.any(), "the empty image is of the class"


def test_a_base_inside_the_box():
    model, (x, _) = relu_net(), batch(n=30)
    x[0, 0, 0, 0] = 0.5
    found = dataclasses.replace(NEGATIVE, base=0.5)(model, x)
    away = torch.where(x > 0.5, found.delta >= 0, found.delta <= 0) | (x == 0.5)
    assert away.all() and (found.delta < 0).any() and (found.delta > 0).any() and found.success.any()
    part = dataclasses.replace(POSITIVE, base=0.5)(model, x)
    assert ((part.image - 0.5).abs() <= (x - 0.5).abs() + 1e-12).all() and ((part.image - 0.5) * (x - 0.5) >= 0).all()
    assert torch.allclose(part.image, 0.5 + part.delta)


def test_a_given_class_is_explained(method):
    model, (x, _) = relu_net(), batch()
    second = model(x).topk(2).indices[:, 1]
    found = method(model, x, second)
    assert torch.equal(found.labels, second)
    assert torch.equal(found.predictions == second, found.success == (method is POSITIVE))


def test_more_weight_of_the_l1_norm_makes_it_sparser(method):
    model, (x, _) = smooth_net(), batch(n=30)
    dense, sparse = (dataclasses.replace(method, beta=beta)(model, x) for beta in (0.0, 2.0))
    both = dense.success & sparse.success
    assert both.any()
    assert sparse.changed[both].float().mean() < dense.changed[both].float().mean()
    assert sparse.l1[both].mean() <= dense.l1[both].mean()


def test_passes(method):
    model, (x, _) = relu_net(), batch()
    with count_passes(model) as counted:
        found = method(model, x)
    assert counted.total() == method.passes(len(x)) == found.passes
    assert (counted.forward, counted.backward_input) == (1 + 6 * 61, 360)


def test_samples_are_independent_and_nothing_is_drawn(method):
    model, (x, _) = relu_net(), batch()
    state, together = torch.random.get_rng_state(), method(model, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    for i in range(len(x)):
        alone = method(model, x[i : i + 1])
        assert torch.allclose(together.delta[i : i + 1], alone.delta, atol=1e-9)
        assert together.success[i] == alone.success[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_model_is_shown_the_image_that_is_returned(method, dtype):
    model, (x, _) = relu_net(dtype), batch(dtype=torch.float32)
    x = x.to(dtype)
    found = method(model, x)
    assert found.delta.dtype == found.image.dtype == dtype and not found.image.requires_grad
    with torch.no_grad():
        assert torch.equal(model(found.image).argmax(1), found.predictions)


def test_the_models_state_is_restored(method):
    model, (x, _) = conv_net().train(), batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    method(model, x)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got 1\.\.7"):
        method(model, x, torch.tensor([7, 1, 1, 1, 1, 1]))
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_input(method):
    model, (x, y) = relu_net(), batch()
    with pytest.raises(TypeError, match="x must be a floating tensor, got list"):
        method(model, [0.5])
    with pytest.raises(TypeError, match="y must be a tensor of integer labels"):
        method(model, x, y.double())
    with pytest.raises(ValueError, match="without NaN"):
        method(model, x.where(x < x.max(), float("nan")))
    with pytest.raises(ValueError, match=r"y must have shape \(6,\)"):
        method(model, x, y[:3])
    with pytest.raises(ValueError, match=r"logits of shape \(6, K\), got \(6, 1, 4, 4\)"):
        method(nn.Identity(), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kappa": -1.0}, "kappa must be finite and >= 0, got -1"),
        ({"beta": math.nan}, "beta must be finite and >= 0"),
        ({"c": 0.0}, "c must be finite and > 0, got 0"),
        ({"step_size": 0.0}, "step_size must be finite and > 0"),
        ({"searches": 0}, "searches must be at least 1, got 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"base": 1.5}, r"base must lie in bounds \(0.0, 1.0\), got 1.5"),
        ({"bounds": (1.0, 0.0)}, "lower < upper"),
        ({"mode": "test"}, 'mode must be "eval"'),
    ],
)
def test_bad_options(method, options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(method, **options)


@pytest.mark.parametrize("name", ["kappa", "beta", "c", "step_size"])
def test_numbers_are_for_the_whole_batch(method, name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got Tensor"):
        dataclasses.replace(method, **{name: torch.ones(6)})


def test_an_empty_batch(method):
    found = method(relu_net(), torch.rand(0, 1, 4, 4, dtype=torch.float64))
    assert found.delta.shape == (0, 1, 4, 4) and found.success.shape == (0,)
