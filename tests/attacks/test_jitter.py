"""Jitter against its loss written out for autograd, a sample at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

from soatfast.attacks import PGD, Jitter
from soatfast.gradients import InputGradient, count_passes
from soatfast.losses import AdversarialTraining
from soatfast.memory import PerturbationMemory
from tests.nets import batch, relu_net, smooth_net


def plain(model, x, y, eps, steps, alpha, scale, noise, sign=1.0):
    """noise: (steps, B, K)."""
    rows = []
    for i in range(len(x)):
        x0, x_adv = x[i : i + 1], x[i : i + 1]
        for k in range(steps):
            leaf = x_adv.clone().requires_grad_()
            z = model(leaf)
            q = (scale * z / z.abs().max()).softmax(1) + noise[k, i]
            loss = sign * ((q - F.one_hot(y[i : i + 1], z.shape[1])) ** 2).mean()
            won = (z.argmax(1) == y[i]) if sign < 0 else (z.argmax(1) != y[i])
            distance = (leaf - x0).abs().flatten().norm(math.inf)
            if won and distance > 0:
                loss = loss / distance
            (g,) = torch.autograd.grad(loss, leaf)
            x_adv = (x0 + (x_adv + alpha * g.sign() - x0).clamp(-eps, eps)).clamp(0, 1)
        rows.append(x_adv)
    return torch.cat(rows)


@pytest.mark.parametrize("std", [0.0, 0.1])
@pytest.mark.parametrize("targeted", [False, True])
def test_equals_the_plain_loop(targeted, std):
    model, (x, y) = smooth_net(), batch(n=20)
    generator = torch.Generator().manual_seed(5)
    noise = torch.stack([std * torch.randn(20, 4, dtype=torch.float64, generator=generator) for _ in range(6)])
    attack = Jitter(
        eps=0.2,
        steps=6,
        step_size=0.05,
        scale=3.0,
        std=std,
        targeted=targeted,
        random_start=False,
        generator=torch.Generator().manual_seed(5),
    )
    x_adv = attack(model, x, y)
    torch.testing.assert_close(x_adv, plain(model, x, y, 0.2, 6, 0.05, 3.0, noise, -1.0 if targeted else 1.0))
    fooled = model(x).argmax(1) != y
    assert fooled.any() and not fooled.all(), "both forms of the loss were raised"


def test_the_gradient_of_a_fooled_sample_is_that_of_the_ratio():
    """By finite differences: the distance is part of the loss."""
    model, (x, y) = smooth_net(), batch(n=8)
    attack = Jitter(eps=0.3, scale=2.0, std=0.0)
    point = (x + 0.2 * torch.rand_like(x, dtype=torch.float64)).clamp(0, 1)
    with attack.oracle(model) as oracle:
        oracle.centre = x
        _, g = oracle(point, y)
        won = oracle.fooled(y)
        assert won.any()
        direction = torch.randn_like(x)
        ends = [oracle(point + h * direction, y)[0] for h in (1e-7, -1e-7)]
    slope = (ends[0] - ends[1]) / 2e-7
    torch.testing.assert_close((g * direction).flatten(1).sum(1), slope, rtol=1e-5, atol=1e-7)


def test_best_and_restarts_keep_the_strongest_and_passes_are_pgds():
    model, (x, y) = relu_net(), batch(n=12)
    attack = Jitter(eps=0.2, steps=3, restarts=2, best=True)
    with count_passes(model) as counted:
        x_adv = attack(model, x, y)
    assert counted.total() == attack.passes(12) == PGD(eps=0.2, steps=3, restarts=2, best=True).passes(12)
    assert (x_adv - x).abs().max() <= 0.2 + 1e-9


def test_a_model_whose_logits_are_all_zero_moves_nothing_and_is_no_nan():
    model, (x, y) = relu_net(), batch()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(Jitter(eps=0.1, random_start=False)(model, x, y), x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Jitter(p=2), ValueError, r"p must be math\.inf for Jitter, got 2"),
        (lambda: Jitter(scale=0), ValueError, "scale must be finite and > 0, got 0"),
        (lambda: Jitter(scale=math.nan), ValueError, "scale must be finite"),
        (lambda: Jitter(std=-0.1), ValueError, "std must be finite and >= 0, got -0.1"),
        (lambda: Jitter(std="0"), TypeError, "std must be a number, got str"),
        (lambda: Jitter(objective="margin"), ValueError, 'Jitter has a loss of its own: leave objective at "ce"'),
        (lambda: Jitter(engine="graph"), ValueError, "engine 'graph' takes the objectives"),
        (lambda: Jitter()(relu_net(), batch()[0], batch()[1] + 9), ValueError, r"labels must lie in 0\.\.3"),
        (
            lambda: AdversarialTraining(Jitter(), memory=PerturbationMemory(4, (1, 4, 4))),
            TypeError,
            "Jitter cannot go on from a memory",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_another_oracle_is_refused():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model) as oracle, pytest.raises(TypeError, match="Jitter needs its own oracle"):
        Jitter().run(oracle, x, y)
