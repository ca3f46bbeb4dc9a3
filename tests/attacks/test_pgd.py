"""PGD and FGSM against closed forms and another library."""

import dataclasses
import math

import pytest
import torch

from soatfast.attacks import FGSM, PGD
from soatfast.gradients import InputGradient
from tests.nets import batch, conv_net, linear_net, relu_net

WIDE = (-100.0, 100.0)


def difference(model):
    """w = w_1 - w_0 of a two-class linear model: the loss of class 0 is softplus(w.x + b)."""
    return (model[1].weight[1] - model[1].weight[0]).detach()


@pytest.mark.parametrize(("p", "q"), [(math.inf, 1), (2, 2), (1, math.inf)])
def test_fgsm_on_a_logistic_model_has_the_closed_form_loss(p, q):
    model, (x, _) = linear_net(), batch()
    y = torch.zeros(6, dtype=torch.long)
    x_adv = FGSM(eps=0.3, p=p, bounds=WIDE)(model, x, y)
    with InputGradient(model, "margin") as oracle:
        gain = oracle.loss(x_adv, y) - oracle.loss(x, y)
    torch.testing.assert_close(gain, torch.full_like(gain, 0.3 * difference(model).norm(p=q).item()))


@pytest.mark.parametrize(("p", "q"), [(math.inf, 1), (2, 2)])
@pytest.mark.parametrize("random_start", [False, True])
def test_pgd_reaches_the_optimum_of_a_linear_model(p, q, random_start):
    model, (x, _) = linear_net(), batch()
    y = torch.zeros(6, dtype=torch.long)
    attack = PGD(eps=0.3, p=p, steps=200, step_size=0.05, random_start=random_start, bounds=WIDE)
    with InputGradient(model, "margin") as oracle:
        gain = oracle.loss(attack(model, x, y), y) - oracle.loss(x, y)
    best = 0.3 * difference(model).norm(p=q).item()
    torch.testing.assert_close(gain, torch.full_like(gain, best), rtol=1e-6, atol=0)


def test_l1_pgd_comes_near_the_optimum_of_a_linear_model():
    model, (x, _) = linear_net(), batch()
    y = torch.zeros(6, dtype=torch.long)
    attack = PGD(eps=1.0, p=1, steps=100, step_size=0.1, random_start=False, bounds=WIDE)
    with InputGradient(model, "margin") as oracle:
        gain = oracle.loss(attack(model, x, y), y) - oracle.loss(x, y)
    assert (gain > 0.999 * difference(model).abs().max()).all()


def test_margin_of_a_two_class_linear_model_has_its_closed_form():
    model, (x, y) = linear_net(), batch(classes=2)
    x_adv = PGD(eps=0.3, objective="margin", steps=10, step_size=0.1, bounds=WIDE)(model, x, y)
    with InputGradient(model, "margin") as oracle:
        torch.testing.assert_close(oracle.loss(x_adv, y), oracle.loss(x, y) + 0.3 * difference(model).abs().sum())


def plain_pgd(model, x, y, eps, alpha, steps):
    x_adv = x.clone()
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(x_adv), y)
        (g,) = torch.autograd.grad(loss, x_adv)
        x_adv = x_adv.detach() + alpha * g.sign()
        x_adv = (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)
    return x_adv


def test_linf_equals_the_usual_loop():
    model, (x, y) = conv_net().eval(), batch(n=8, shape=(3, 8, 8), classes=5, dtype=torch.float32)
    ours = PGD(eps=8 / 255, steps=10, step_size=2 / 255, random_start=False)(model, x, y)
    torch.testing.assert_close(ours, plain_pgd(model, x, y, 8 / 255, 2 / 255, 10), rtol=0, atol=1e-6)


def test_equals_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    model, (x, y) = conv_net().eval(), batch(n=8, shape=(3, 8, 8), classes=5, dtype=torch.float32)
    ours = PGD(eps=8 / 255, steps=10, step_size=2 / 255, random_start=False)(model, x, y)
    theirs = torchattacks.PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, random_start=False)(x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    ours = PGD(eps=0.5, p=2, steps=10, step_size=0.1, random_start=False)(model, x, y)
    theirs = torchattacks.PGDL2(model, eps=0.5, alpha=0.1, steps=10, random_start=False)(x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # it adds 1e-10 to the gradient's norm
    ours = FGSM(eps=8 / 255)(model, x, y)
    torch.testing.assert_close(ours, torchattacks.FGSM(model, eps=8 / 255)(x, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_random_start_is_uniform_in_the_ball(p):
    x = torch.full((4000, 2, 1, 1), 0.5, dtype=torch.float64)
    delta = (PGD(eps=0.3, p=p)._start(x) - x).flatten(1)
    radius = delta.norm(p=p, dim=1) / 0.3
    assert radius.max() <= 1
    # In two dimensions half of the ball's volume lies beyond sqrt(1/2) of its radius, whatever p.
    assert (radius > math.sqrt(0.5)).double().mean() == pytest.approx(0.5, abs=0.04)
    assert delta.mean(0).abs().max() < 0.01


def test_generator_makes_it_reproducible_and_leaves_the_global_one_alone():
    model, (x, y) = relu_net(), batch()
    before = torch.random.get_rng_state()
    runs = [PGD(eps=0.1, generator=torch.Generator().manual_seed(s))(model, x, y) for s in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(before, torch.random.get_rng_state())


def losses(model, x_adv, y):
    with InputGradient(model) as oracle:
        loss = oracle.loss(x_adv, y)
        return loss, oracle.fooled(y)


def test_best_is_at_least_as_strong_as_the_last_iterate():
    model, (x, y) = relu_net(), batch(n=40)
    # A step far too long, so that the path goes up and down.
    attack = PGD(eps=0.5, steps=5, step_size=0.9, random_start=False)
    last, last_fooled = losses(model, attack(model, x, y), y)
    best, best_fooled = losses(model, dataclasses.replace(attack, best=True)(model, x, y), y)
    assert (best_fooled | ~last_fooled).all()
    same = best_fooled == last_fooled
    assert (best[same] >= last[same]).all() and (best > last).any()


def test_restarts_do_not_weaken():
    model, (x, y) = relu_net(), batch(n=40)
    runs = []
    for restarts in (1, 4):
        generator = torch.Generator().manual_seed(0)
        attack = PGD(eps=0.3, steps=2, restarts=restarts, best=True, generator=generator)
        runs.append(losses(model, attack(model, x, y), y))
    (one, one_fooled), (four, four_fooled) = runs
    assert (four_fooled | ~one_fooled).all() and four_fooled.sum() >= one_fooled.sum()
    same = one_fooled == four_fooled
    assert (four[same] >= one[same]).all() and (four > one).any()


def test_targeted_reaches_the_target():
    model, (x, y) = relu_net(), batch(n=40)
    target = (y + 1) % 4
    x_adv = PGD(eps=0.5, steps=20, targeted=True, best=True)(model, x, target)
    probability = [model(z).softmax(1).gather(1, target[:, None]).mean() for z in (x, x_adv)]
    assert probability[1] > probability[0]
    assert (model(x_adv).argmax(1) == target).sum() > (model(x).argmax(1) == target).sum()
