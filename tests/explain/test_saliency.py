"""Saliency maps against linear and quadratic models, where they are known."""

import pytest
import torch
from torch import nn

from soatfast.explain import IntegratedGradients, Saliency, SmoothGrad, per_pixel, standardised
from soatfast.gradients import count_passes
from tests.nets import batch, conv_net, linear_net, quadratic, relu_net, slow_gradient, smooth_net

MAPS = [
    Saliency(),
    Saliency(kind="absolute", objective="margin"),
    Saliency(kind="input", targeted=True),
    SmoothGrad(samples=3),
    IntegratedGradients(steps=4),
]


@pytest.fixture(params=MAPS, ids=repr)
def saliency(request):
    return request.param


@pytest.mark.parametrize("make", [Saliency, SmoothGrad])
@pytest.mark.parametrize("kind", ["signed", "absolute", "input"])
def test_a_linear_models_map_is_the_difference_of_its_weights(make, kind):
    model, (x, y) = linear_net(), batch(classes=2)
    weight = model[1].weight.detach()
    slope = (weight[1 - y] - weight[y]).view_as(x)
    expected = {"signed": slope, "absolute": slope.abs(), "input": slope * x}[kind]
    assert torch.allclose(make(kind=kind, objective="margin")(model, x, y), expected)
    turned = make(kind=kind, objective="margin", targeted=True)(model, x, y)
    assert torch.allclose(turned, expected if kind == "absolute" else -expected)


def test_the_signed_map_is_the_gradient_of_the_loss():
    model, (x, y) = smooth_net(), batch()
    assert torch.allclose(Saliency()(model, x, y), slow_gradient(model, x, y))


def test_smoothgrad_of_a_quadratic_is_the_gradient_at_the_mean_point():
    objective, h, b = quadratic()
    x = torch.rand(3, 6, dtype=torch.float64)
    smooth = SmoothGrad(objective=objective, samples=7, sigma=0.2, generator=torch.Generator().manual_seed(3))
    found = smooth(nn.Identity(), x, torch.zeros(3, dtype=torch.long))
    generator = torch.Generator().manual_seed(3)
    noise = [torch.empty_like(x).normal_(generator=generator) for _ in range(7)]
    assert torch.allclose(found, b + (x + 0.2 * sum(noise) / 7) @ h)


def test_integrated_gradients_of_a_quadratic_are_exact_and_complete():
    objective, h, b = quadratic()
    x, y = torch.rand(3, 6, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    found = IntegratedGradients(objective=objective, steps=2, base=0.25)(nn.Identity(), x, y)
    base = torch.full_like(x, 0.25)
    assert torch.allclose(found, (x - base) * (b + (x + base) / 2 @ h))
    assert torch.allclose(found.sum(1), objective(x, y) - objective(base, y))


def test_integrated_gradients_add_up_to_the_change_of_the_loss():
    model, (x, y) = smooth_net(), batch()
    found = IntegratedGradients(steps=400)(model, x, y).flatten(1).sum(1)
    loss = nn.CrossEntropyLoss(reduction="none")
    assert torch.allclose(found, loss(model(x), y) - loss(model(torch.zeros_like(x)), y), atol=1e-5)


def test_passes(saliency):
    model, (x, y) = relu_net(), batch()
    with count_passes(model) as counted:
        saliency(model, x, y)
    assert counted.total() == saliency.passes(len(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_map_is_like_x(saliency, dtype):
    model, (x, y) = relu_net(dtype), batch(dtype=torch.float32)
    found = saliency(model, x.to(dtype), y)
    assert found.shape == x.shape and found.dtype == dtype and not found.requires_grad
    assert found.isfinite().all() and found.any()


def test_samples_are_independent():
    model, (x, y) = conv_net().train(), batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    for saliency in (Saliency(), IntegratedGradients(steps=3)):
        alone = torch.cat([saliency(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
        assert torch.allclose(saliency(model, x, y), alone, atol=1e-6)


def test_the_seed_decides():
    model, (x, y) = relu_net(), batch()
    made = [SmoothGrad(samples=3, generator=torch.Generator().manual_seed(s))(model, x, y) for s in (1, 1, 2)]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_the_models_state_is_restored(saliency):
    model, (x, y) = conv_net(), batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    model[1].eval()
    before = [(m.training, [b.clone() for b in m.buffers(recurse=False)]) for m in model.modules()]
    saliency(model, x, y)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got 0\.\.9"):
        saliency(model, x, torch.tensor([9, 0, 0, 0, 0, 0]))
    after = [(m.training, list(m.buffers(recurse=False))) for m in model.modules()]
    for (flag, saved), (now, buffers) in zip(before, after, strict=True):
        assert flag == now and all(map(torch.equal, saved, buffers))
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_bad_input(saliency):
    model, (x, y) = relu_net(), batch()
    with pytest.raises(ValueError, match="without NaN"):
        saliency(model, x.where(x < x.max(), float("nan")), y)
    with pytest.raises(ValueError, match=r"must lie in bounds \[0.0, 1.0\]"):
        saliency(model, 2 * x, y)
    with pytest.raises(ValueError, match=r"y must have shape \(6,\)"):
        saliency(model, x, y[:3])
    with pytest.raises(TypeError, match="integer labels"):
        saliency(model, x, y.double())
    with pytest.raises(ValueError, match=r"logits of shape \(6, K\), got \(6, 1, 4, 4\)"):
        saliency(nn.Identity(), x, y)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Saliency, {"kind": "squared"}, "kind must be one of signed, absolute, input, got 'squared'"),
        (Saliency, {"bounds": (1, 0)}, "lower < upper"),
        (Saliency, {"objective": "mse"}, "objective must be one of ce, margin"),
        (SmoothGrad, {"samples": 0}, "samples must be at least 1, got 0"),
        (SmoothGrad, {"sigma": -1.0}, "sigma must be finite and >= 0"),
        (IntegratedGradients, {"steps": 0}, "steps must be at least 1"),
        (IntegratedGradients, {"base": 2.0}, "base must lie in bounds"),
    ],
)
def test_bad_options(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_the_noise_is_one_number():
    with pytest.raises(TypeError, match="sigma must be a number, got Tensor"):
        SmoothGrad(sigma=torch.full((6,), 0.1))


def test_standardised():
    shift = torch.tensor([0.0, 0.1, 0.1, 1e5, 0.1]).view(-1, 1, 1, 1)
    maps = torch.randn(5, 3, 8, 8) * torch.tensor([1e-30, 0.01, 1.0, 1e6, 0.0]).view(-1, 1, 1, 1) + shift
    shown, kept = standardised(maps), standardised(maps, centre=False)
    assert shown.abs().max() <= 1 and not shown[4].any() and not kept[4].any(), "a constant image is 0"
    for i in range(4):
        flat = maps[i].double().flatten()
        spread = 3 * flat.std(correction=0)
        assert torch.allclose(shown[i].double().flatten(), ((flat - flat.mean()) / spread).clamp(-1, 1), atol=1e-6)
        assert torch.allclose(kept[i].double().flatten(), (flat / spread).clamp(-1, 1), atol=1e-6)


def test_per_pixel():
    maps = torch.randn(2, 3, 4, 4)
    assert torch.equal(per_pixel(maps).abs(), maps.abs().amax(1))
    assert torch.equal(per_pixel(maps[:, :1]), maps[:, 0])
    with pytest.raises(ValueError, match=r"\(B, C, H, W\), got \(3, 4, 4\)"):
        per_pixel(maps[0])
