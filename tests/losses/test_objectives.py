"""objective=, output= and forward= of training losses, against twins in plain PyTorch: values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import soatfast as sf

X, Y = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(7)), torch.tensor([0, 1, 2, 0, 1, 2])
WEIGHTS = torch.tensor([0.5, 2.0, 1.0])


def soft(logits, y):
    return -(y * logits.log_softmax(1)).sum(1)


def smoothed(logits, y):
    return F.cross_entropy(logits, y, label_smoothing=0.1, reduction="none")


def weighted(logits, y):
    return F.cross_entropy(logits, y, weight=WEIGHTS, reduction="none")


def many(logits, y):
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none").mean(1)


MIXED = 0.3 * F.one_hot(Y, 3).float() + 0.7 * F.one_hot(Y.flip(0), 3).float()
TARGETS = {"mixup": (soft, MIXED), "smoothing": (smoothed, Y), "weights": (weighted, Y), "many": (many, MIXED.round())}
EVERY = {
    "adversarial": lambda **k: sf.AdversarialTraining(sf.PGD(steps=2, random_start=False), **k),
    "trades": lambda **k: sf.TRADES(steps=2, **k),
    "trades keep": lambda **k: sf.TRADES(steps=2, mode="keep", **k),
    "mart": lambda **k: sf.MART(steps=2, **k),
    "scorpio": lambda **k: sf.SCORPIO(**k),
    "scorpio keep": lambda **k: sf.SCORPIO(mode="keep", **k),
    "cure": lambda **k: sf.CURE(**k),
    "soar": lambda **k: sf.SOAR(**k),
    "llr": lambda **k: sf.LLR(steps=2, **k),
    "penalty": lambda **k: sf.InputGradientPenalty(**k),
    "difference": lambda **k: sf.InputGradientPenalty(variant="difference", mode="keep", **k),
    "uniform": lambda **k: sf.InputGradientPenalty(targets="uniform", **k),
    "stn": lambda **k: sf.STN(**k),
    "asod": lambda **k: sf.STN(noise="asod", eps=0.1, steps=1, samples=2, **k),
    "sora": lambda **k: sf.SORA(**k),
    "n-fgsm": lambda **k: sf.NFGSM(**k),
    "elle": lambda **k: sf.ELLE(strength=1.0, **k),
    "grad-align": lambda **k: sf.GradAlign(**k),
    "free": lambda **k: sf.Free(**k),
    "plain": lambda **k: sf.CrossEntropy(**k),
}


def net(classes=3):
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Softplus(), nn.Linear(12, classes))


def result(loss, model, y, *rest, seed=5):
    """(value, parameter gradients) of one step."""
    model.zero_grad()
    torch.manual_seed(seed)
    value = loss(model, X, y, *rest)
    value.backward()
    return value.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


def check(got, want):
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-6)


def sign_steps(objective, model, x, y, steps, alpha, eps, start):
    moved = start
    for _ in range(steps):
        leaf = moved.detach().requires_grad_()
        (g,) = torch.autograd.grad(objective(model(leaf), y).sum(), leaf)
        moved = torch.minimum(torch.maximum(moved + alpha * g.sign(), x - eps), x + eps).clamp(0, 1)
    return moved.detach()


@pytest.mark.parametrize("name", EVERY)
def test_a_callable_cross_entropy_is_the_default(name):
    model, call = net(), lambda z, y: F.cross_entropy(z, y, reduction="none")
    check(result(EVERY[name](objective=call), model, Y), result(EVERY[name](), model, Y))


@pytest.mark.parametrize("name", EVERY)
def test_a_tuple_and_a_sigmoid_unit_are_the_plain_model(name):
    model = net(2)
    y = Y % 2
    want = result(EVERY[name](), model, y)
    check(result(EVERY[name](output=1, forward=lambda m, x: (None, m(x))), model, y), want)
    one = copy.deepcopy(model)
    with torch.no_grad():
        one[3] = nn.Linear(12, 1)
        one[3].weight.copy_(model[3].weight[1:] - model[3].weight[:1])
        one[3].bias.copy_(model[3].bias[1:] - model[3].bias[:1])
    if name != "uniform":  # whose target is symmetric, but which follows the logits' own mean
        torch.testing.assert_close(result(EVERY[name](), one, y)[0], want[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_masked_classes_leave_every_loss_finite(name):
    model, hidden = net(5), torch.tensor([False, False, False, True, True])
    forward = lambda m, x: m(x).masked_fill(hidden, -torch.inf)  # noqa: E731
    value, gradient = result(EVERY[name](forward=forward), model, Y)
    assert gradient.isfinite().all() and value.isfinite()
    small = copy.deepcopy(model)
    small[3] = nn.Linear(12, 3)
    with torch.no_grad():
        small[3].weight.copy_(model[3].weight[:3])
        small[3].bias.copy_(model[3].bias[:3])
    torch.testing.assert_close(value, result(EVERY[name](), small, Y)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_adversarial_training(target):
    objective, y = TARGETS[target]
    model = net()
    loss = sf.AdversarialTraining(sf.PGD(eps=0.1, steps=3, step_size=0.05, random_start=False), objective=objective)
    got = result(loss, model, y)
    x_adv = sign_steps(objective, model, X, y, 3, 0.05, 0.1, X)
    check(got, result(lambda m, x, t: objective(m(x_adv), t).mean(), model, y))


def test_an_attack_with_an_objective_of_its_own_keeps_it():
    attack = sf.PGD(objective="margin", random_start=False)
    model = net()
    x_adv = attack(model, X, Y)
    want = result(lambda m, x, y: smoothed(m(x_adv), y).mean(), model, Y)
    check(result(sf.AdversarialTraining(attack, objective=smoothed), model, Y), want)


@pytest.mark.parametrize("mode", ["eval", "keep"])
@pytest.mark.parametrize("target", TARGETS)
def test_trades(target, mode):
    objective, y = TARGETS[target]
    model = net()

    def divergence(a, b):
        return F.kl_div(b.log_softmax(1), a.softmax(1), reduction="none").sum(1)

    def twin(m, x, t):
        clean = m(x)
        start = x + 0.001 * torch.randn_like(x)
        fixed = clean.detach()
        x_adv = sign_steps(lambda z, _: divergence(fixed, z), m, x, t, 2, 0.05, 0.1, start)
        return (objective(clean, t) + 4 * divergence(clean, m(x_adv))).mean()

    loss = sf.TRADES(eps=0.1, steps=2, step_size=0.05, beta=4.0, mode=mode, objective=objective)
    check(result(loss, model, y), result(twin, model, y))


@pytest.mark.parametrize("target", ["smoothing", "weights"])
def test_mart(target):
    objective, _ = TARGETS[target]
    model = net()

    def twin(m, x, t):
        start = x + 0.001 * torch.randn_like(x)
        x_adv = sign_steps(objective, m, x, t, 2, 0.05, 0.1, start)
        p, q = m(x).softmax(1), m(x_adv).softmax(1)
        rival = q.scatter(1, t[:, None], 0).amax(1)
        divergence = (p * (p / q).log()).sum(1)
        boosted = objective(m(x_adv), t) - (1 - rival).log()
        return (boosted + 5 * divergence * (1 - p.gather(1, t[:, None])[:, 0])).mean()

    check(result(sf.MART(eps=0.1, steps=2, step_size=0.05, objective=objective), model, Y), result(twin, model, Y))


def test_mart_needs_labels():
    with pytest.raises(TypeError, match="y must be a tensor of integer labels"):
        sf.MART(objective=soft)(net(), X, MIXED)
    with pytest.raises(ValueError, match=r"MART weighs by the class of y and needs logits \(B, K\)"):
        sf.MART(objective=lambda z, y: z.flatten(1).sum(1), forward=lambda m, x: x)(net(), X, Y)


@pytest.mark.parametrize("mode", ["eval", "keep"])
@pytest.mark.parametrize("target", TARGETS)
def test_scorpio(target, mode):
    objective, y = TARGETS[target]
    model = net()
    x_adv = sf.FrankWolfe(eps=0.1, objective=objective)(model, X, y)

    def twin(m, x, t):
        clean = objective(m(x), t).mean()
        return clean + 1.05 * (objective(m(x_adv), t).mean() - clean)

    check(result(sf.SCORPIO(eps=0.1, mode=mode, objective=objective), model, y), result(twin, model, y))


@pytest.mark.parametrize("make", [sf.SCORPIO, sf.AdversarialTraining])
@pytest.mark.parametrize("target", TARGETS)
def test_with_a_memory(target, make):
    """Two visits: x' of the second is one Frank-Wolfe step on the objective from the first's perturbation."""
    objective, y = TARGETS[target]
    model, memory = net(), sf.PerturbationMemory(10, (1, 4, 4), torch.float32)
    fields = {"eps": 0.1, "steps": 1} if make is sf.SCORPIO else {"attack": sf.FrankWolfe(eps=0.1, steps=1)}
    loss, index, v = make(**fields, memory=memory, objective=objective), torch.arange(6), torch.zeros_like(X)
    for _ in range(2):
        got = result(loss, model, y, index)
        v = torch.minimum(torch.maximum(v, -X), 1 - X)
        leaf = (X + v).requires_grad_()
        (g,) = torch.autograd.grad(objective(model(leaf), y).sum(), leaf)
        v = 0.5 * v + 0.05 * g.sign()
        v = torch.minimum(torch.maximum(v, -X), 1 - X)

        def twin(m, x, t, x_adv=X + v):
            adversarial = objective(m(x_adv), t).mean()
            if make is sf.AdversarialTraining:
                return adversarial
            clean = objective(m(x), t).mean()
            return clean + 1.05 * (adversarial - clean)

        check(got, result(twin, model, y))


@pytest.mark.parametrize("mode", ["eval", "keep"])
def test_regularisers_take_the_objective_inside_too(mode):
    model = net().double()
    x = X.double()
    loss = sf.InputGradientPenalty(objective=weighted, mode=mode, strength=0.7)
    WEIGHTS.data = WEIGHTS.double()
    try:
        leaf = x.clone().requires_grad_()
        values = weighted(model(leaf), Y)
        (g,) = torch.autograd.grad(values.sum(), leaf, create_graph=True)
        want = (values + 0.7 * g.flatten(1).square().sum(1)).mean()
        torch.testing.assert_close(loss(model, x, Y), want)
    finally:
        WEIGHTS.data = WEIGHTS.float()


def test_segmentation_trains():
    model = nn.Conv2d(1, 4, 1)
    y = torch.randint(0, 4, (6, 4, 4))
    y[0, 0] = -100
    pixels = lambda z, t: F.cross_entropy(z, t, reduction="none").flatten(1).mean(1)  # noqa: E731
    for make in (sf.AdversarialTraining, sf.TRADES, sf.SCORPIO, sf.CURE, sf.STN, sf.SORA):
        for output in ({"out": 1}, None):
            forward = (lambda m, x: {"out": m(x), "aux": m(x)}) if output else None
            assert result(make(objective=pixels, forward=forward), model, y)[0].isfinite()


def test_bad_objectives():
    for make in EVERY.values():
        with pytest.raises(ValueError, match="objective must be one of ce, margin, dlr or a callable, got 'mse'"):
            make(objective="mse")
    for name in set(EVERY) - {"mart"}:
        with pytest.raises(ValueError, match=r"objective must return shape \(6,\), one value a sample, got \(6, 3\)"):
            EVERY[name](objective=lambda z, y: z)(net(), X, Y)
        with pytest.raises((TypeError, ValueError), match="y must"):
            EVERY[name](objective=soft)(net(), X, MIXED[:3])
        with pytest.raises(TypeError, match="y must be a tensor of integer labels"):
            EVERY[name]()(net(), X, MIXED)
