"""The quadratic attack against a slow Frank-Wolfe, closed forms and the properties the paper proves."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast.attacks import FrankWolfe
from soatfast.gradients import InputGradient
from tests.nets import batch, linear_net, quadratic, relu_net, slow_frank_wolfe, slow_gradient, slow_lmo, smooth_net

WIDE = (-100.0, 100.0)


def identity_problem(indefinite=True):
    objective, h, b = quadratic(indefinite=indefinite)
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return objective, h, b, x, torch.zeros(5, dtype=torch.long)


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("init", ["scaled", "lmo", "raw"])
def test_all_schemes_equal_the_slow_loop_on_a_quadratic(p, steps, init):
    objective, h, b, x, y = identity_problem()
    expected = torch.stack([slow_frank_wolfe(lambda z: b + h @ z, row, p, 0.4, steps, h=1.0, init=init) for row in x])
    for scheme in ("fe", "cd", "exact"):
        attack = FrankWolfe(
            eps=0.4, p=p, steps=steps, scheme=scheme, h=0.7, init=init, objective=objective, bounds=WIDE
        )
        torch.testing.assert_close(attack(torch.nn.Identity(), x, y) - x, expected)


@pytest.mark.parametrize("h", [0.5, 1.05])
def test_forward_euler_equals_the_slow_loop_on_a_network(h):
    model, (x, y) = smooth_net(), batch()
    attack = FrankWolfe(eps=0.2, steps=3, h=h, bounds=WIDE)
    x_adv = attack(model, x, y)
    for i in range(len(x)):

        def gradient(z, i=i):
            return slow_gradient(model, z.view(1, 1, 4, 4), y[i : i + 1]).flatten()

        v = slow_frank_wolfe(gradient, x[i].flatten(), math.inf, 0.2, 3, h)
        torch.testing.assert_close((x_adv - x)[i].flatten(), v)


@pytest.mark.parametrize("p", [1, 2, 3, math.inf])
@pytest.mark.parametrize("scheme", ["fe", "cd", "exact"])
def test_linear_model_gives_the_maximiser_after_any_number_of_steps(p, scheme):
    model, (x, y) = linear_net(), batch(classes=2)
    expected = torch.stack([slow_lmo(g, p, 0.3) for g in slow_gradient(model, x, y).flatten(1)])
    for steps in (1, 4):
        x_adv = FrankWolfe(eps=0.3, p=p, steps=steps, scheme=scheme, bounds=WIDE)(model, x, y)
        torch.testing.assert_close((x_adv - x).flatten(1), expected)


def test_h_one_is_frank_wolfe_on_the_true_loss():
    model, (x, y) = smooth_net(), batch()
    v = 0.2 * slow_gradient(model, x, y)
    v = v / slow_gradient(model, x, y).abs().flatten(1).amax(1).view(-1, 1, 1, 1)
    for k in range(4):
        s = 0.2 * slow_gradient(model, x + v, y).sign()
        v = v + 2 / (k + 2) * (s - v)
    torch.testing.assert_close(FrankWolfe(eps=0.2, steps=4, h=1.0, bounds=WIDE)(model, x, y), x + v)


def test_small_step_comes_near_the_exact_scheme():
    model, (x, y) = smooth_net(), batch()
    exact = FrankWolfe(eps=0.2, p=2, steps=4, scheme="exact", bounds=WIDE)(model, x, y)
    errors = [
        (FrankWolfe(eps=0.2, p=2, steps=4, scheme=s, h=1e-2, bounds=WIDE)(model, x, y) - exact).abs().max()
        for s in ("fe", "cd")
    ]
    assert errors[0] < 1e-3 and errors[1] < 1e-6


def test_weights_of_the_steps():
    # v_N = sum_k 2(k+1)/(N(N+1)) s_k: for p = inf every entry is eps times such a sum of signs.
    model, (x, y) = smooth_net(), batch()
    v = (FrankWolfe(eps=0.2, steps=3, bounds=WIDE)(model, x, y) - x) / 0.2
    sums = torch.tensor([a / 6 + b / 3 + c / 2 for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)], dtype=torch.float64)
    assert ((v.flatten()[:, None] - sums).abs().min(1).values < 1e-9).all()


@given(st.integers(0, 10**6), st.sampled_from([1, 2, 3, math.inf]))
def test_model_of_the_loss_never_falls_where_it_is_convex(seed, p):
    """Proposition 1: Q rises monotonically for H >= 0 and a feasible start."""
    objective, h, b = quadratic(seed=seed, indefinite=False)
    x, y = torch.zeros(1, 6, dtype=torch.float64), torch.tensor([0])
    values = []
    for steps in range(1, 6):
        v = FrankWolfe(eps=0.5, p=p, steps=steps, objective=objective, bounds=WIDE)(torch.nn.Identity(), x, y)[0]
        values.append(b @ v + 0.5 * v @ h @ v)
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))


def test_model_of_the_loss_never_falls_on_a_relu_network():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model) as oracle:
        _, g, hvp = oracle.differentiable(x, y)
        before = torch.zeros(len(x), dtype=torch.float64)
        for steps in range(1, 6):
            v = FrankWolfe(eps=0.05, steps=steps, scheme="exact", bounds=WIDE)(model, x, y) - x
            value = (g * v).flatten(1).sum(1) + 0.5 * (hvp(v) * v).flatten(1).sum(1)
            assert (value >= before - 1e-12).all()
            before = value


def test_in_box_equals_the_slow_loop_over_ball_and_box():
    model, (x, y) = smooth_net(), batch(n=12)
    x[:6] = x[:6].round()  # half of the samples lie in corners of the box

    def clip(v):
        return (x + v).clamp(0, 1) - x

    g0 = slow_gradient(model, x, y)
    v = clip(0.3 * g0.sign())
    for k in range(3):
        g = g0 + (slow_gradient(model, x + 0.8 * v, y) - g0) / 0.8
        v = v + 2 / (k + 2) * (clip(0.3 * g.sign()) - v)
    attack = FrankWolfe(eps=0.3, steps=3, h=0.8, init="lmo", in_box=True)
    torch.testing.assert_close(attack(model, x, y), x + v)


def test_in_box_is_stronger_at_the_bounds():
    model, (x, y) = smooth_net(), batch(n=200)
    x = (3 * (x - 0.5) + 0.5).clamp(0, 1)  # a third of the entries at 0, a third at 1
    with InputGradient(model) as oracle:
        loss = {b: oracle.loss(FrankWolfe(eps=0.3, in_box=b)(model, x, y), y).mean() for b in (False, True)}
    assert loss[True] > loss[False]
