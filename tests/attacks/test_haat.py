"""HAAT against a slow loop, known spectra, and PGD."""

from __future__ import annotations

import math

import pytest
import torch

from soatfast.attacks import HAAT, PGD
from soatfast.gradients import count_passes
from soatfast.losses import AdversarialTraining
from tests.nets import batch, linear_net, quadratic, relu_net, slow_gradient, smooth_net


def eigenvector(attack, model, x, y, h=1e-3):
    with attack.oracle(model) as oracle:
        return attack._eigenvector(oracle, x, y, oracle.gradient(x, y), h)


def test_power_iteration_finds_the_dominant_eigenvector():
    objective, h, _ = quadratic(indefinite=True)
    values, vectors = torch.linalg.eigh(h)
    k = values.abs().argmax()
    x = torch.rand(5, 6, dtype=torch.float64)
    attack = HAAT(power=300, objective=objective)
    u, rayleigh = eigenvector(attack, torch.nn.Identity(), x, torch.zeros(5, dtype=torch.long))
    torch.testing.assert_close((u @ vectors[:, k]).abs(), torch.ones(5).double(), rtol=1e-5, atol=0)
    torch.testing.assert_close(rayleigh, values[k].expand(5), rtol=1e-4, atol=0)


def slow_haat(model, x, y, attack, start):
    """One sample at a time, straight from the docstring; start are the draws of u_0."""
    eps, alpha, h = attack.eps, attack.eps / 4, attack.h
    rows = []
    for i in range(len(x)):
        origin, t = x[i : i + 1], x[i : i + 1]
        for step in range(attack.steps):
            g = slow_gradient(model, t, y[i : i + 1])
            u = start[step][i : i + 1]
            u = u / u.norm()
            for _ in range(attack.power):
                product = (slow_gradient(model, t + h * u, y[i : i + 1]) - g) / h
                quotient = (u * product).sum()
                u = product / product.norm()
            if (g * u).sum() < 0:
                u = -u
            second = alpha * u / u.abs().max() if quotient >= 0 else 0 * u
            t = (t + second + alpha * g.sign() - origin).clamp(-eps, eps).add(origin).clamp(0, 1)
        rows.append(t)
    return torch.cat(rows)


@pytest.mark.parametrize("net", [relu_net, smooth_net])
def test_it_is_the_slow_loop(net):
    model, (x, y) = net(), batch(n=4)
    attack = HAAT(eps=0.1, steps=2, power=3, h=1e-5, generator=torch.Generator().manual_seed(7))
    generator = torch.Generator().manual_seed(7)
    start = [torch.empty_like(x).normal_(generator=generator) for _ in range(2)]
    torch.testing.assert_close(attack(model, x, y), slow_haat(model, x, y, attack, start), rtol=0, atol=1e-6)


def slow_literal(model, x, y, attack, start):
    """Algorithm 1 as printed: x moves after every power step."""
    eps, alpha, h = attack.eps, attack.eps / 4, attack.h
    rows = []
    for i in range(len(x)):
        origin, t = x[i : i + 1], x[i : i + 1]
        for step in range(attack.steps):
            u = start[step][i : i + 1]
            u = u / u.norm()
            for _ in range(attack.power):
                g = slow_gradient(model, t, y[i : i + 1])
                product = (slow_gradient(model, t + h * u, y[i : i + 1]) - g) / h
                u = product / product.norm()
                length = eps * math.sqrt(x[0].numel()) if attack.w2 is None else attack.w2
                moved = t + length * u / u.abs().max() + alpha * g.sign()
                t = (moved - origin).clamp(-eps, eps).add(origin).clamp(0, 1)
        rows.append(t)
    return torch.cat(rows)


@pytest.mark.parametrize("w2", [None, 0.01])
def test_the_literal_variant_moves_inside_the_power_loop(w2):
    model, (x, y) = smooth_net(), batch(n=4)
    attack = HAAT(
        eps=0.1, steps=2, power=3, h=1e-5, w2=w2, variant="literal", generator=torch.Generator().manual_seed(7)
    )
    generator = torch.Generator().manual_seed(7)
    start = [torch.empty_like(x).normal_(generator=generator) for _ in range(2)]
    with count_passes(model) as passes:
        x_adv = attack(model, x, y)
    torch.testing.assert_close(x_adv, slow_literal(model, x, y, attack, start), rtol=0, atol=1e-6)
    assert passes.total() == attack.passes(4) and attack.passes().forward == 12


def test_w2_is_the_length_of_the_second_step():
    model, (x, y) = smooth_net(), batch(n=20)
    x = 0.3 + 0.4 * x
    options = {"eps": 0.1, "steps": 1, "step_size": 0.01}

    def moved(**more):
        return HAAT(**options, **more, generator=torch.Generator().manual_seed(0))(model, x, y) - x

    assert torch.equal(moved(w2=0.01), moved())
    largest = (moved(w2=0.03).abs().flatten(1).amax(1) * 1000).round()
    assert set(largest.tolist()) <= {10.0, 40.0} | set(range(10, 41)) and largest.max() == 40
    assert torch.equal(moved(w2=0.0), PGD(random_start=False, **options)(model, x, y) - x)
    each = torch.linspace(0, 0.03, 20, dtype=torch.float64)
    torch.testing.assert_close(moved(w2=each)[0], moved(w2=0.0)[0])
    torch.testing.assert_close(moved(w2=each)[-1], moved(w2=0.03)[-1])
    torch.testing.assert_close(moved(variant="paper", h=1e-3, w2=0.0), moved(w2=0.0))


def test_a_linear_model_leaves_the_gradients_step():
    """No curvature of the objective: margin of a linear model. u stays the noise, and points along the gradient."""
    model, (x, y) = linear_net(classes=2), batch(classes=2)
    with count_passes(model):
        u, rayleigh = eigenvector(HAAT(objective="margin"), model, x, y)
    assert u.isfinite().all() and (rayleigh.abs() < 1e-9).all()


def test_a_step_is_at_most_two_alpha():
    model, (x, y) = smooth_net(), batch(n=20)
    x = 0.3 + 0.4 * x
    move = (HAAT(eps=0.1, steps=1, step_size=0.01)(model, x, y) - x).abs()
    assert move.max() <= 0.02 + 1e-12 and (move > 0.0101).any()


def test_negative_curvature_is_left_out():
    """Loss b x - x^2 per entry: bends down everywhere, so only the sign step is left, as in PGD."""
    objective = lambda z, y: (0.3 * z - 0.1 * z**2).sum(1)  # noqa: E731
    x = torch.rand(4, 6, dtype=torch.float64)
    y = torch.zeros(4, dtype=torch.long)
    options = {"eps": 0.1, "steps": 3, "step_size": 0.02, "objective": objective}
    expected = PGD(random_start=False, **options)(torch.nn.Identity(), x, y)
    assert torch.equal(HAAT(**options)(torch.nn.Identity(), x, y), expected)
    assert not torch.equal(HAAT(variant="paper", h=1e-3, **options)(torch.nn.Identity(), x, y), expected)


def test_the_papers_second_step_saturates_the_ball():
    model, (x, y) = smooth_net(), batch(n=20)
    x = 0.3 + 0.4 * x
    move = (HAAT(eps=0.1, steps=1, variant="paper", h=1e-3)(model, x, y) - x).abs()
    assert (move > 0.0999).double().mean() > 0.4


def test_samples_are_independent_and_seeded():
    model, (x, y) = relu_net(), batch(n=5)
    x, y = x[:1].expand(5, -1, -1, -1).contiguous(), y[:1].expand(5).contiguous()

    def run(count):
        attack = HAAT(eps=0.1, steps=1, power=2, generator=torch.Generator().manual_seed(3))
        return attack(model, x[:count], y[:count])

    torch.testing.assert_close(run(1), run(5)[:1])  # a network's rounding may depend on the batch
    assert torch.equal(run(5), run(5))


def test_passes_and_training():
    model, (x, y) = smooth_net(), batch()
    loss = AdversarialTraining(HAAT(eps=0.1, steps=2, power=3))
    with count_passes(model) as passes:
        loss(model, x, y).backward()
    assert passes.total() == loss.passes(6)
    assert HAAT().passes().forward == 60


def test_bad_options_say_what_was_expected():
    with pytest.raises(ValueError, match=r"p must be math.inf for HAAT, got 2"):
        HAAT(p=2)
    with pytest.raises(ValueError, match="power must be at least 1, got 0"):
        HAAT(power=0)
    with pytest.raises(ValueError, match='variant must be "resolved", "paper" or "literal"'):
        HAAT(variant="exact")
    with pytest.raises(ValueError, match="h must be finite and > 0"):
        HAAT(h=math.inf)
    with pytest.raises(ValueError, match="w2 must be finite and >= 0"):
        HAAT(w2=-0.1)
    with pytest.raises(ValueError, match="step_size must be finite"):
        HAAT(step_size=-1.0)
