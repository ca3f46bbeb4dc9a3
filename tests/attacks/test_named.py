"""UL, TL, UM and TM: their settings, their objectives in plain PyTorch, and targets of their own choice."""

import dataclasses
import math

import pytest
import torch

from soatfast.attacks import PGD, TargetedPGD
from soatfast.attacks.named import NAMED, TL, TM, UL, UM
from soatfast.attacks.targets import random_other
from soatfast.evaluate import accuracy
from soatfast.gradients import count_passes
from tests.nets import batch, linear_net, relu_net, smooth_net


def plain_objective(name, logits, label):
    """To be raised: +l(., y), -l(., r), -M(., y), +M(., r)."""
    rows = torch.arange(len(label))
    log_p = logits.log_softmax(1)
    best_other = log_p.scatter(1, label[:, None], -torch.inf).amax(1)
    margin = log_p[rows, label] - best_other
    return {"UL": -log_p[rows, label], "TL": log_p[rows, label], "UM": -margin, "TM": margin}[name]


def plain_pgd(name, model, x, label, eps, p, steps, alpha):
    x_adv = x
    for _ in range(steps):
        leaf = x_adv.clone().requires_grad_()
        (g,) = torch.autograd.grad(plain_objective(name, model(leaf), label).sum(), leaf)
        rest = (-1, 1, 1, 1)
        step = g.sign() if p == math.inf else g / g.flatten(1).norm(dim=1).view(rest)
        delta = x_adv + alpha * step - x
        if p == math.inf:
            delta = delta.clamp(-eps, eps)
        else:
            delta = delta * (eps / delta.flatten(1).norm(dim=1)).clamp(max=1).view(rest)
        x_adv = (x + delta).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize(("p", "eps", "alpha"), [(math.inf, 8 / 255, 0.15 * 8 / 255), (2, 0.5, 0.1)])
def test_defaults_are_the_papers_pgd10_with_the_right_sign(name, p, eps, alpha):
    model, (x, y) = smooth_net(), batch(n=10)
    targeted = name[0] == "T"
    extra = {"classes": 4, "generator": torch.Generator().manual_seed(3)} if targeted else {}
    attack = NAMED[name](p=p, **extra)
    label = random_other(y, 4, generator=torch.Generator().manual_seed(3)) if targeted else y
    expected = plain_pgd(name, model, x, label, eps, p, 10, alpha)
    torch.testing.assert_close(attack(model, x, y), expected, rtol=0, atol=1e-9)
    with torch.no_grad():
        before, after = (plain_objective(name, model(z), label) for z in (x, expected))
    assert (after > before).float().mean() > 0.9
    assert attack.passes(7) == PGD(steps=10).passes(7)


def test_margin_attacks_have_their_closed_form_on_two_classes():
    """M falls (UM) by eps ||w_y - w_j||_q; with two classes TM is UM."""
    model, (x, y) = linear_net(), batch(classes=2)
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    for p, q in ((math.inf, 1), (2, 2)):
        for attack in (UM(eps=0.3, p=p, bounds=(-9.0, 9.0)), TM(eps=0.3, p=p, bounds=(-9.0, 9.0))):
            z, z_adv = model(x), model(attack(model, x, y))
            margins = [plain_objective("UM", logits, y) for logits in (z, z_adv)]
            torch.testing.assert_close(margins[1] - margins[0], torch.full((6,), 0.3 * w.norm(q).item()).double())


def test_fields_pass_through_and_can_be_replaced():
    assert UL(steps=20, mode="keep") == PGD(
        eps=8 / 255, steps=20, step_size=1.5 * (8 / 255) / 20, random_start=False, mode="keep"
    )
    assert UM(p=2, eps=1.0).step_size == 0.2 and UM(steps=40, p=2).step_size == 0.1
    assert UL(random_start=True, step_size=0.01).step_size == 0.01
    assert isinstance(TL(rule="least-likely"), TargetedPGD) and TM().objective == "margin"


def test_choice_costs_a_forward_unless_the_classes_are_known():
    model, (x, y) = relu_net(), batch()
    for attack, extra in ((TL(classes=4), 0), (TL(), 1), (TL(classes=4, rule="second-likely"), 1)):
        with count_passes(model) as passes:
            attack(model, x, y)
        assert passes.total() == attack.passes(6) and passes.forward == 10 + extra
    rerun = TL(restarts=2, best=True, steps=3)
    with count_passes(model) as passes:
        rerun(model, x, y)
    assert passes.total() == rerun.passes(6)


def test_accuracy_takes_them_and_margin_and_loss_rank_as_they_should():
    model, (x, y) = relu_net(torch.float32), batch(n=60, dtype=torch.float32)
    with torch.no_grad():
        y = model(x).argmax(1)
    found = {name: accuracy(model, (x, y), make(eps=0.08)).accuracy for name, make in NAMED.items()}
    assert max(found.values()) < 1 and found["UL"] <= found["TL"] and found["UM"] <= found["TM"]


def test_least_likely_targets_gain():
    model, (x, y) = relu_net(), batch(n=30)
    with torch.no_grad():
        p = model(x).softmax(1)
        target = p.scatter(1, y[:, None], torch.inf).argmin(1, keepdim=True)
        p_adv = model(TL(eps=0.2, rule="least-likely")(model, x, y)).softmax(1)
    assert (p_adv.gather(1, target) > p.gather(1, target)).all()


def test_bad_fields():
    with pytest.raises(ValueError, match=r"take PGD\(targeted=True\)"):
        TL(targeted=True)
    with pytest.raises(ValueError, match="rule must be one of"):
        TM(rule="nearest")
    with pytest.raises(TypeError, match="classes must be a whole number"):
        TargetedPGD(classes="10")
    with pytest.raises(TypeError, match="TargetedPGD cannot go on from a memory"):
        TargetedPGD().check_replay()
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        TM(classes=1)
    for make in NAMED.values():
        with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
            make(steps=0)
        with pytest.raises(TypeError, match="steps must be a whole number, got '10'"):
            make(steps="10")
        with pytest.raises(TypeError, match="eps must be a number or a tensor, got str"):
            make(eps="0.1")
    x, y = batch(seed=3)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2"):
        TL(classes=3)(relu_net(), x, y)


def test_the_oracles_sign_survives_an_error():
    attack = TL()
    with attack.oracle(relu_net()) as oracle:
        x, y = batch()
        with pytest.raises(RuntimeError):
            dataclasses.replace(attack, restarts=2)._perturb(oracle, x[:, :, :2], y, None)
        assert oracle.sign == 1.0
