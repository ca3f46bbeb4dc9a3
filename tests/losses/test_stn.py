"""STN against its formula in plain PyTorch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from soatfast.attacks import ASOD
from soatfast.gradients.passes import Passes
from soatfast.losses import STN
from tests.losses.oracles import assert_same
from tests.nets import batch, relu_net, smooth_net


def seeded():
    return torch.Generator().manual_seed(5)


def slow_stn(model, x, y, noisy, strength):
    target, moved = F.softmax(model(x), 1), F.softmax(model(noisy), 1)
    return F.cross_entropy(model(x), y) - strength * (target * moved.log()).sum() / len(x)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_gaussian_noise(strength, sigma):
    """Both predictions are differentiated: with a detached target the parameter gradient would be another."""
    model, (x, y) = smooth_net(), batch()
    loss = STN(strength=strength, sigma=sigma, generator=seeded())
    noisy = x + sigma * torch.empty_like(x).normal_(generator=seeded())
    assert_same(model, loss(model, x, y), slow_stn(model, x, y, noisy, strength))


def test_without_noise_the_entropy_is_added():
    model, (x, y) = relu_net(), batch()
    entropy = torch.distributions.Categorical(logits=model(x)).entropy().mean()
    assert_same(model, STN(sigma=0.0)(model, x, y), F.cross_entropy(model(x), y) + entropy)


@pytest.mark.parametrize("p", [math.inf, 2])
def test_asod(p):
    model, (x, y) = smooth_net(), batch()
    options = {"eps": 0.2, "p": p, "steps": 2, "samples": 3, "sigma": 0.1, "mode": "keep"}
    loss = STN(noise="asod", generator=seeded(), **options)
    noisy = ASOD(generator=seeded(), **options)(model, x, y)
    assert_same(model, loss(model, x, y), slow_stn(model, x, y, noisy, 1.0))
    assert loss.attack == ASOD(**options)


def test_passes_are_those_of_the_design():
    assert STN().passes(5) == Passes(2, 0, 1, 10, 0, 10)
    assert STN(noise="asod", eps=0.1, steps=2, samples=3).passes(5) == Passes(8, 6, 1, 40, 30, 10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    model, (x, y) = relu_net(dtype), batch(dtype=dtype)
    for loss in (STN(), STN(noise="asod", eps=0.1, steps=1, samples=1)):
        value = loss(model, x, y)
        assert value.dtype == torch.float32 and value.isfinite()


def test_fields():
    asod = STN(noise="asod", eps=0.1)
    assert asod.with_eps(0.2) == STN(noise="asod", eps=0.2) and asod.with_steps(3).attack.steps == 3
    gauss = STN()
    assert gauss.with_eps(0.2) is gauss and gauss.attack is None
    with pytest.raises(NotImplementedError, match="STN with Gaussian noise has no attack steps"):
        gauss.with_steps(3)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"noise": "uniform"}, ValueError, 'noise must be "gauss" or "asod", got \'uniform\''),
        ({"strength": -1}, ValueError, "strength must be finite and >= 0, got -1"),
        ({"sigma": -0.1}, ValueError, "sigma must be finite and >= 0, got -0.1"),
        ({"sigma": "1"}, TypeError, "sigma must be a number, got str"),
        ({"noise": "asod"}, ValueError, 'noise "asod" needs eps'),
        ({"eps": 0.1}, ValueError, 'eps belongs to noise "asod", got 0.1 for "gauss"'),
        ({"noise": "asod", "eps": 0.1, "steps": 0}, ValueError, "steps must be at least 1"),
        ({"noise": "asod", "eps": 0.1, "p": 3}, ValueError, "p must be 1, 2 or math.inf for ASOD"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        STN(**fields)
