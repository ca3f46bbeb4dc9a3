"""ASOD against PGD, a slow loop, and what the average over the noise is known to be."""

from __future__ import annotations

import math

import pytest
import torch

from soatfast.attacks import ASOD, PGD
from soatfast.gradients import InputGradient
from soatfast.gradients.passes import passes_of
from tests.nets import batch, quadratic, relu_net, slow_gradient, smooth_net


@pytest.mark.parametrize(("p", "eps"), [(math.inf, 0.1), (2, 0.5), (1, 1.0)])
@pytest.mark.parametrize("samples", [1, 3])
def test_without_noise_it_is_pgd(p, eps, samples):
    model, (x, y) = relu_net(), batch()
    options = {"eps": eps, "p": p, "steps": 4, "step_size": 0.04}
    expected = PGD(random_start=False, **options)(model, x, y)
    torch.testing.assert_close(ASOD(sigma=0.0, samples=samples, **options)(model, x, y), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("p", "default"), [(math.inf, 0.1 / 10), (2, 2.5 * 0.1 / 4)])
def test_default_step(p, default):
    model, (x, y) = relu_net(), batch()
    options = {"eps": 0.1, "p": p, "steps": 4, "sigma": 0.0, "samples": 1}
    assert torch.equal(ASOD(**options)(model, x, y), ASOD(step_size=default, **options)(model, x, y))


def slow_asod(model, x, y, attack, alpha, noise):
    """One sample at a time, straight from the docstring."""
    rows = []
    for i in range(len(x)):
        origin, t = x[i : i + 1], x[i : i + 1]
        for step in range(attack.steps):
            g = sum(
                slow_gradient(model, t + attack.sigma * noise[step][j][i : i + 1], y[i : i + 1])
                for j in range(attack.samples)
            )
            if attack.p == math.inf:
                t = (t + alpha * g.sign() - origin).clamp(-attack.eps, attack.eps) + origin
            else:
                v = t + alpha * g / g.norm() - origin
                t = v * min(1, attack.eps / v.norm()) + origin
            t = t.clamp(0, 1)
        rows.append(t)
    return torch.cat(rows)


@pytest.mark.parametrize(("p", "eps", "alpha"), [(math.inf, 0.1, 0.01), (2, 0.5, 0.625)])
@pytest.mark.parametrize("net", [relu_net, smooth_net])
def test_it_is_the_slow_loop(net, p, eps, alpha):
    model, (x, y) = net(), batch(n=4)
    attack = ASOD(eps=eps, p=p, steps=2, samples=3, sigma=0.3, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    noise = [[torch.empty_like(x).normal_(generator=generator) for _ in range(3)] for _ in range(2)]
    torch.testing.assert_close(attack(model, x, y), slow_asod(model, x, y, attack, alpha, noise), rtol=0, atol=1e-9)


def averaged(objective, x, sigma, draws):
    """The mean of G over draws, which ride along as one batch."""
    attack = ASOD(samples=1, sigma=sigma, objective=objective)
    many = x.expand(draws, -1)
    with InputGradient(torch.nn.Identity(), objective) as oracle:
        return attack._summed(oracle, many, torch.zeros(draws, dtype=torch.long)).mean(0)


def test_averaging_over_the_noise_leaves_no_curvature_of_a_quadratic():
    objective, h, b = quadratic()
    x = torch.rand(1, 6, dtype=torch.float64)
    g = b + x[0] @ h
    draws = 20000
    spread = 0.5 * h.norm(dim=1) / math.sqrt(draws)
    assert ((averaged(objective, x, 0.5, draws) - g).abs() < 5 * spread).all()
    assert ((averaged(objective, x, 0.5, 1) - g).abs() > 5 * spread).any()  # a single draw is g + H u


def test_averaging_gives_the_gradient_of_the_smoothed_loss():
    """l = sum x^3/6: E g = x^2/2 + sigma^2/2."""
    x = torch.rand(1, 6, dtype=torch.float64)
    mean = averaged(lambda z, y: (z**3 / 6).sum(1), x, 0.5, 40000)
    torch.testing.assert_close(mean, x[0] ** 2 / 2 + 0.5**2 / 2, rtol=0, atol=0.02)


def test_samples_are_independent_and_seeded():
    model, (x, y) = smooth_net(), batch()
    x, y = x[:1].expand(5, -1, -1, -1).contiguous(), y[:1].expand(5).contiguous()

    def run(count):
        attack = ASOD(eps=0.5, p=2, steps=1, samples=1, generator=torch.Generator().manual_seed(3))
        return attack(model, x[:count], y[:count])

    torch.testing.assert_close(run(1), run(5)[:1])  # a network's rounding may depend on the batch
    assert torch.equal(run(5), run(5)) and not torch.equal(run(5)[0], run(5)[1])


def test_default_passes_are_those_of_the_code():
    assert ASOD().passes(3) == passes_of(3, forward=200, backward_input=200)
    assert ASOD().with_steps(5).passes().forward == 50 and ASOD().with_eps(0.2).eps == 0.2
