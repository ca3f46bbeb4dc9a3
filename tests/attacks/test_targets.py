"""Choice of target labels, and targeted attacks against oracles: they lower the loss of the class to reach."""

import math

import pytest
import torch

from soatfast.attacks import FGSM, HAAT, MIFGSM, PGD, SOAE, FrankWolfe, SimBA, targets
from soatfast.gradients import InputGradient, count_passes
from tests.nets import batch, conv_net, hessians, linear_net, relu_net, slow_frank_wolfe, slow_gradient, smooth_net

WIDE = (-100.0, 100.0)


def sorted_others(logits, y):
    """Classes other than y, from the smallest logit up, one row at a time."""
    return [
        sorted((j for j in range(len(row)) if j != label), key=row.__getitem__)
        for row, label in zip(logits, y, strict=True)
    ]


def test_rules_against_a_sort_in_python():
    model, (x, y) = relu_net(classes=7), batch(n=30, classes=7)
    with torch.no_grad():
        order = sorted_others(model(x).tolist(), y.tolist())
    for k in range(1, 7):
        assert targets.choose(model, x, y, "least-likely", k=k).tolist() == [row[k - 1] for row in order]
    assert targets.choose(model, x, y, "second-likely").tolist() == [row[-1] for row in order]


def test_random_is_uniform_over_the_others_and_reproducible():
    y = torch.arange(5).repeat(4000)
    r = targets.random_other(y, 5, generator=torch.Generator().manual_seed(0))
    counts = torch.zeros(5, 5).index_put_((y, r), torch.ones(len(y)), accumulate=True)
    assert (counts.diagonal() == 0).all()
    expected = 1000 * (1 - torch.eye(5))
    assert ((counts - expected).square() / 1000).sum() < 50, "chi-squared with 15 degrees of freedom"
    again = targets.choose(
        torch.nn.Identity(), torch.zeros(len(y), 5), y, "random", generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(r, again)


@pytest.mark.parametrize("rule", targets.RULES)
def test_one_forward_and_the_model_as_it_was(rule):
    model, (x, y) = conv_net().train(), batch(n=5, shape=(3, 8, 8), classes=5, dtype=torch.float32)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for mode in ("eval", "train", "keep"):
        with count_passes(model) as passes:
            r = targets.choose(model, x, y, rule, mode=mode)
        assert passes.forward == 1 and passes.backward_input == passes.backward_parameters == 0
        assert r.dtype == torch.int64 and r.shape == y.shape and (r != y).all() and r.min() >= 0 and r.max() < 5
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(m.training for m in model.modules())
    with count_passes(model) as passes:
        targets.choose(model, x, y, "random", classes=5)
    assert passes.forward == 0
    assert len(targets.choose(model, x[:0], y[:0], rule)) == 0


def test_ties_take_the_lowest_class():
    logits, y = torch.zeros(3, 4), torch.tensor([0, 1, 3])
    for rule in ("least-likely", "second-likely"):
        assert targets.from_logits(logits, y, rule).tolist() == [1, 0, 0]
    assert targets.from_logits(logits, y, "least-likely", k=3).tolist() == [3, 3, 2]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_narrow_labels(dtype):
    model, (x, y) = relu_net(), batch()
    for rule in targets.RULES:
        r = targets.choose(model, x, y.to(dtype), rule)
        assert r.dtype == torch.int64 and (r != y).all()


def test_bad_arguments():
    model, (x, y) = relu_net(), batch(seed=3)
    with pytest.raises(ValueError, match="rule must be one of least-likely, second-likely, random, got 'best'"):
        targets.choose(model, x, y, "best")
    with pytest.raises(ValueError, match="k must be at most 3, the number of other classes, got 4"):
        targets.choose(model, x, y, "least-likely", k=4)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        targets.choose(model, x, y, "least-likely", k=0)
    with pytest.raises(ValueError, match="classes must be at least 2, got 1"):
        targets.random_other(y, 1)
    for classes in (None, 3):
        with pytest.raises(ValueError, match="labels must lie in"):
            targets.choose(model, x, y + 1, "random", classes=classes)
    with pytest.raises(ValueError, match="without NaN"):
        targets.choose(model, x * torch.nan, y)
    with pytest.raises(TypeError, match="y must be a tensor of integer labels"):
        targets.choose(model, x, y.double())


ATTACKS = [
    FGSM(eps=0.1, targeted=True),
    PGD(eps=0.2, steps=5, targeted=True),
    PGD(eps=0.6, p=2, steps=5, targeted=True, random_start=False),
    PGD(eps=1.5, p=1, steps=20, targeted=True, restarts=2),
    FrankWolfe(eps=0.1, targeted=True),
    FrankWolfe(eps=0.4, p=2, scheme="cd", targeted=True),
    FrankWolfe(eps=0.1, scheme="exact", in_box=True, targeted=True),
    *[SOAE(eps=0.1, steps=3, max_dim=4, variant=v, targeted=True) for v in ("newton", "tr")],
    *[SOAE(eps=0.4, p=2, steps=3, max_dim=4, variant="tr", scheme=s, targeted=True) for s in ("cd", "exact", "gn")],
    HAAT(eps=0.1, steps=3, power=2, targeted=True),
    MIFGSM(eps=0.1, targeted=True),
    SimBA(eps=0.2, steps=16, targeted=True, early_stop=False),
]


@pytest.mark.parametrize("net", [relu_net, smooth_net])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: f"{type(a).__name__}-p{a.p}")
def test_targeted_attacks_lower_the_loss_of_the_target_class(net, attack):
    """By torch's cross-entropy, of this package's objectives independent."""
    model, (x, y) = net(), batch(n=40)
    r = targets.choose(model, x, y, "least-likely")
    with torch.no_grad():
        before, after = (
            torch.nn.functional.cross_entropy(model(z), r, reduction="none") for z in (x, attack(model, x, r))
        )
    assert (after <= before + 1e-9).float().mean() > 0.85 and after.mean() < before.mean() - 0.01


@pytest.mark.parametrize(("p", "q"), [(math.inf, 1), (2, 2)])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: PGD(eps=0.3, p=p, steps=20, step_size=0.05, random_start=False, targeted=True, bounds=WIDE),
        lambda p: FrankWolfe(eps=0.3, p=p, targeted=True, bounds=WIDE),
        lambda p: SOAE(eps=0.3, p=p, steps=2, max_dim=2, targeted=True, bounds=WIDE),
        lambda p: SOAE(eps=0.3, p=p, steps=2, variant="tr", scheme="gn", targeted=True, bounds=WIDE),
        lambda p: MIFGSM(eps=0.3, p=p, steps=3, targeted=True, bounds=WIDE),
    ],
    ids=["PGD", "FrankWolfe", "SOAE", "SOAE-tr", "MIFGSM"],
)
def test_on_a_two_class_linear_model_the_target_gains_the_dual_norm(make, p, q):
    """min over the ball of the loss of class 1: its margin grows by eps ||w_1 - w_0||_q."""
    model, (x, _) = linear_net(), batch()
    r = torch.ones(6, dtype=torch.int64)
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    with torch.no_grad():
        margins = [model(z)[:, 1] - model(z)[:, 0] for z in (x, make(p)(model, x, r))]
    expected = torch.full((6,), 0.3 * w.norm(q).item(), dtype=torch.float64)
    torch.testing.assert_close(margins[1] - margins[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scheme", ["fe", "cd", "exact"])
@pytest.mark.parametrize("p", [2, math.inf])
def test_targeted_frank_wolfe_is_the_slow_loop_on_minus_the_loss(scheme, p):
    model, (x, r) = smooth_net(), batch()
    attack = FrankWolfe(eps=0.2, p=p, steps=3, scheme=scheme, h=1e-4, targeted=True, bounds=WIDE)
    x_adv = attack(model, x, r)
    for i in range(len(x)):

        def gradient(z, i=i):
            return -slow_gradient(model, z.view(1, 1, 4, 4), r[i : i + 1]).flatten()

        v = slow_frank_wolfe(gradient, x[i].flatten(), p, 0.2, 3, 1e-4)
        torch.testing.assert_close((x_adv - x)[i].flatten(), v, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("scheme", ["exact", "gn"])
def test_targeted_soae_solves_the_newton_equation_of_minus_the_loss(scheme):
    model, (x, r) = relu_net(), batch(n=8)
    attack = SOAE(scheme=scheme, rtol=1e-9, targeted=True)
    with InputGradient(model, targeted=True) as oracle:
        g, d = attack._direction(oracle, x, r, None, 1.0)
        turned = attack._ascending(g, d).flatten(1)
    slope = -slow_gradient(model, x, r).flatten(1)
    torch.testing.assert_close(g.flatten(1), slope)
    pinv = torch.linalg.pinv(-hessians(model, x, r), rtol=1e-9)
    newton = (pinv @ slope.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(d.flatten(1), newton, rtol=1e-5, atol=1e-6)
    assert ((turned * slope).sum(1) > 0).all(), "it lowers the loss of the target"
