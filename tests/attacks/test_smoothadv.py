"""SmoothAdv against the loss of the smoothed classifier, written out for autograd."""

import math

import pytest
import torch

import soatfast as sf
from soatfast.attacks import PGD, SmoothAdv, Smoothed
from soatfast.evaluate.watch import can_watch
from soatfast.gradients import count_passes
from tests.nets import batch, conv_net, relu_net, smooth_net


def draws(distribution, steps, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    if distribution == "gaussian":
        return [torch.randn(shape, generator=generator).double() for _ in range(steps)]
    return [(2 * torch.rand(shape, generator=generator) - 1).double() for _ in range(steps)]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize(("p", "eps", "distribution"), [(math.inf, 0.1, "gaussian"), (2, 0.5, "uniform")])
def test_equals_the_plain_loop(p, eps, distribution, targeted):
    model, (x, y) = smooth_net(), batch(n=5)
    noise = draws(distribution, 4, (15, 1, 4, 4), 2)
    x_adv = x
    for step in noise:
        leaf = x_adv.clone().requires_grad_()
        total = 0.0
        for i in range(5):  # sample i has the rows 3 i, 3 i + 1, 3 i + 2
            probabilities = model(leaf[i : i + 1] + 0.3 * step[3 * i : 3 * i + 3]).softmax(1)
            total = total - probabilities.mean(0)[y[i]].log()
        (g,) = torch.autograd.grad(-total if targeted else total, leaf)
        unit = g.sign() if p == math.inf else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        delta = x_adv + 0.4 * eps * unit - x
        if p == math.inf:
            delta = delta.clamp(-eps, eps)
        else:
            delta = delta * (eps / delta.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)
        x_adv = (x + delta).clamp(0, 1)
    fields = {"eps": eps, "p": p, "step_size": 0.4 * eps, "steps": 4, "sigma": 0.3, "samples": 3, "targeted": targeted}
    attack = SmoothAdv(distribution=distribution, generator=torch.Generator().manual_seed(2), **fields)
    torch.testing.assert_close(attack(model, x, y), x_adv)


def test_without_noise_it_is_pgd_and_one_home_serves_other_attacks():
    model, (x, y) = relu_net(), batch()
    pgd = PGD(eps=0.1, steps=3, random_start=False)
    torch.testing.assert_close(SmoothAdv(eps=0.1, steps=3, sigma=0.0)(model, x, y), pgd(model, x, y))
    made = [torch.Generator().manual_seed(1) for _ in range(2)]
    smooth = SmoothAdv(eps=0.1, steps=3, samples=2, generator=made[0])(model, x, y)
    forward = Smoothed(samples=2, generator=made[1])
    assert torch.equal(smooth, PGD(eps=0.1, steps=3, random_start=False, forward=forward)(model, x, y))


def test_a_sure_model_gives_finite_logarithms_and_gradients():
    model, (x, y) = relu_net(), batch()
    smoothed = Smoothed(sigma=0.0, samples=2)(lambda noisy: 1e4 * model(noisy), x)
    torch.testing.assert_close(smoothed, (1e4 * model(x)).log_softmax(1))
    x_adv = SmoothAdv(eps=0.1, steps=2, sigma=0.01, samples=2)(lambda noisy: 1e3 * model(noisy), x, y)
    assert x_adv.isfinite().all() and not torch.equal(x_adv, x)


def test_passes_are_stacked_batches():
    model, (x, y) = relu_net(), batch()
    attack = SmoothAdv(eps=0.1, steps=3, samples=4, random_start=True)
    with count_passes(model) as counted:
        attack(model, x, y)
    assert counted.total() == attack.passes(6)
    assert (attack.passes(6).forward, attack.passes(6).backward_input_samples) == (3, 72)


def test_its_points_are_no_examples_of_an_evaluation():
    """They are noisy copies, each sample's next to each other: only the final examples are judged."""
    x, _ = batch(n=12)
    assert can_watch(PGD(eps=0.05), x) and not can_watch(SmoothAdv(eps=0.05), x)


def test_normalised_inputs_and_a_model_of_two_arguments():
    norm = sf.Normalized([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    model, (x, y) = conv_net().double().eval(), batch(n=4, shape=(3, 8, 8), classes=5)
    made = [SmoothAdv(eps=0.1, steps=2, samples=2, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    inside = made[0](lambda pixels: model(norm.inputs(pixels)), x, y)
    outside = norm.pixels(norm(made[1])(model, norm.inputs(x), y))
    torch.testing.assert_close(outside, inside, rtol=0, atol=1e-6)
    twice = SmoothAdv(eps=0.1, steps=1, samples=2, forward=lambda m, noisy: {"logits": m(noisy)})
    assert twice(model, x, y).shape == x.shape


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SmoothAdv(sigma=-0.1), ValueError, "sigma must be finite and >= 0, got -0.1"),
        (lambda: SmoothAdv(sigma="0.1"), TypeError, "sigma must be a number, got str"),
        (lambda: Smoothed(sigma=math.nan), ValueError, "sigma must be finite"),
        (lambda: SmoothAdv(samples=0), ValueError, "samples must be at least 1, got 0"),
        (lambda: SmoothAdv(samples=1.5), TypeError, "samples must be a whole number, got 1.5"),
        (lambda: SmoothAdv(distribution="guassian"), ValueError, 'distribution must be "gaussian" or "uniform"'),
        (lambda: SmoothAdv(output=1), ValueError, "SmoothAdv averages predictions inside: give output in forward="),
        (lambda: SmoothAdv(engine="graph"), ValueError, "engine 'graph' takes no forward="),
        (lambda: Smoothed(forward=1), TypeError, "forward must be a callable"),
        (lambda: SmoothAdv()(relu_net(), batch()[0], batch()[1] + 9), ValueError, r"labels must lie in 0\.\.3"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
