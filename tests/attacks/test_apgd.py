"""APGD against torchattacks' under the same seed, against a linear model's closed form, and its counts."""

import dataclasses
import math

import pytest
import torch

from soatfast.attacks import APGD, PGD, Normalized, TargetedAPGD
from soatfast.gradients import count_passes
from soatfast.gradients.objectives import OBJECTIVES, resolve
from tests.attacks.peers import NETS, SHAPE, reckoned_in, right_batch, seeded
from tests.nets import batch, conv_net, linear_net, relu_net

NAME = {2: "L2", math.inf: "Linf"}
EPS = {2: 0.2, math.inf: 0.015}


def theirs(name, model, x, y, p, eps, steps, dtype=torch.float64, **fields):
    peer = getattr(pytest.importorskip("torchattacks"), name)
    with reckoned_in(dtype):
        return peer(model, norm=NAME[p], eps=eps, steps=steps, **fields)(x, y)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_images_are_torchattacks(net, p, loss):
    model = NETS[net](torch.float64)
    x, y = right_batch(model, 24)
    flat, restarts = (loss, p) == ("dlr", 2), 1 if (loss, p) == ("dlr", 2) else 2
    want = theirs("APGD", model, x, y, p, EPS[p], 20, seed=3, loss=loss, n_restarts=restarts)
    fields = {"eps": EPS[p], "p": p, "steps": 20, "restarts": restarts, "objective": loss}
    seen = []
    handle = model.register_forward_hook(lambda module, args, logits: seen.append(logits.detach()))
    got = APGD(**fields, early_stop=False, generator=seeded(3))(model, x, y)
    handle.remove()
    same = fooled = model(got).argmax(1) != y
    assert torch.equal(fooled, model(want).argmax(1) != y)
    if flat:  # where y is third or lower the DLR is 1 and flat: a direction of length 1 is made of rounding
        asked = (seen[0].argmax(1) == y).nonzero().squeeze(1)
        ranks = torch.stack([(z > z.gather(1, y[asked].unsqueeze(1))).sum(1) for z in seen[1:]])
        same = fooled.index_copy(0, asked, fooled[asked] & (ranks < 2).all(0))
    assert same.sum() >= 5
    torch.testing.assert_close(got[same], want[same], rtol=0, atol=1e-6)
    assert (~fooled).sum() >= 3
    assert torch.equal(want[~fooled], x[~fooled]), "they give x back, APGD the point of the greatest loss"
    left = APGD(**fields, generator=seeded(3))(model, x, y)
    assert torch.equal(fooled, model(left).argmax(1) != y)


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_point_of_the_greatest_loss_is_torchattacks(p, loss):
    model = NETS["smooth"](torch.float64)
    x, y = right_batch(model, 12)
    x, y, eps = x[1:], y[1:], EPS[p] / 2
    peer = pytest.importorskip("torchattacks").APGD(model, norm=NAME[p], eps=eps, steps=30, loss=loss)
    with reckoned_in(torch.float64):
        torch.manual_seed(0)
        best, right, *_ = peer.attack_single_run(x, y)
    got = APGD(eps=eps, p=p, steps=30, objective=loss, generator=seeded())(model, x, y)
    assert right.any()
    torch.testing.assert_close(got[right], best[right], rtol=0, atol=1e-6)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("p", [2, math.inf])
def test_targeted_images_are_torchattacks(net, p):
    """For p = 2 a sample at a time: theirs takes the first sample's step size for the whole batch."""
    model = NETS[net](torch.float64)
    x, y = right_batch(model, 10)
    for part in [slice(None)] if p == math.inf else [slice(i, i + 1) for i in range(4)]:
        want = theirs("APGDT", model, x[part], y[part], p, EPS[p], 12, n_classes=4)
        attack = TargetedAPGD(eps=EPS[p], p=p, steps=12, targets=3, early_stop=False, generator=seeded())
        got = attack(model, x[part], y[part])
        fooled = model(got).argmax(1) != y[part]
        assert torch.equal(fooled, model(want).argmax(1) != y[part])
        torch.testing.assert_close(got[fooled], want[fooled], rtol=0, atol=1e-6)


def test_averaged_gradients_are_torchattacks():
    """eot of a model that draws nothing is the attack itself; theirs, too."""
    model = NETS["relu"](torch.float64)
    x, y = right_batch(model, 8)
    want = theirs("APGD", model, x, y, math.inf, 0.015, 6, eot_iter=3)
    attack = APGD(eps=0.015, steps=6, eot=3, early_stop=False, generator=seeded())
    got = attack(model, x, y)
    fooled = model(got).argmax(1) != y
    torch.testing.assert_close(got[fooled], want[fooled], rtol=0, atol=1e-6)
    torch.testing.assert_close(got, dataclasses.replace(attack, eot=1, generator=seeded())(model, x, y))


@pytest.mark.parametrize("p", [2, math.inf])
def test_the_verdicts_in_float32(p):
    model = NETS["smooth"](torch.float32)
    x, y = right_batch(model, 1000, torch.float32)
    want = theirs("APGD", model, x, y, p, EPS[p], 20, torch.float32)
    got = APGD(eps=EPS[p], p=p, steps=20, generator=seeded())(model, x, y)
    ours, peers = (model(t).argmax(1) == y for t in (got, want))
    assert 100 < ours.sum() < 900
    assert (ours != peers).sum() <= 1


@pytest.mark.parametrize("p", [2, math.inf])
def test_a_linear_model_has_the_closed_form(p):
    """The greatest loss in the ball, far from the box."""
    model = linear_net()
    x = 0.5 + 0.01 * batch(n=8)[0]
    y = model(x).argmax(1)
    w = (model[1].weight[1] - model[1].weight[0]).detach().view(1, 1, 4, 4) * (1 - 2 * y.view(-1, 1, 1, 1))
    want = x + 0.005 * (w.sign() if p == math.inf else w / w[0].norm())
    got = APGD(eps=0.005, p=p, steps=30, early_stop=False)(model, x, y)
    assert (model(want).argmax(1) == y).any()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_samples_leave_and_the_passes_are_as_declared():
    model = relu_net()
    x, y = batch(n=12)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    whole, leaving = (
        APGD(eps=0.15, steps=10, early_stop=early_stop, generator=seeded()) for early_stop in (False, True)
    )
    with count_passes(model) as counted:
        x_adv = whole(model, x, y)
    assert torch.equal(x_adv[:3], x[:3]), "fooled at x"
    assert counted.total().forward == whole.passes(12).forward == 12
    assert counted.total().backward_input == whole.passes(12).backward_input == 10
    assert counted.total().forward_samples == 12 + 9 * 11
    with count_passes(model) as fewer:
        left = leaving(model, x, y)
    assert fewer.total().forward_samples < counted.total().forward_samples
    assert torch.equal(model(left).argmax(1) != y, model(x_adv).argmax(1) != y)
    targeted = TargetedAPGD(eps=1e-6, steps=3, targets=3, restarts=2)
    with count_passes(model) as counted:
        targeted(model, x[3:], y[3:])
    assert counted.total() == targeted.passes(9) and targeted.passes().forward == 1 + 6 * 4


def test_stronger_than_pgd():
    model = NETS["conv"](torch.float64)
    x, y = right_batch(model, 40)
    pgd = (model(PGD(eps=0.01, steps=10)(model, x, y)).argmax(1) == y).sum()
    apgd = (model(APGD(eps=0.01, steps=50, objective="dlr")(model, x, y)).argmax(1) == y).sum()
    assert 5 < apgd <= pgd < 40


def test_a_model_whose_samples_hang_together_is_asked_about_whole_batches():
    model = conv_net()
    x, y = batch(6, (3, 8, 8), 5, torch.float32)
    seen = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    x_adv = APGD(eps=0.1, steps=4, restarts=2, mode="train")(model, x, y)
    handle.remove()
    assert set(seen) == {6} and (x_adv - x).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("p", [2, math.inf])
def test_a_radius_and_a_mask_for_each(p):
    model = relu_net()
    x, y = batch(n=8)
    eps = torch.linspace(0, 0.2, 8, dtype=torch.float64)
    x_adv = APGD(eps=eps, p=p, steps=8)(model, x, y)
    assert ((x_adv - x).flatten(1).norm(p, dim=1) <= eps + 1e-9).all() and torch.equal(x_adv[0], x[0])
    mask = torch.rand(8, 1, 4, 4, generator=seeded()) > 0.5
    x_adv = APGD(eps=0.2, p=p, steps=8, early_stop=False, mask=mask)(model, x, y)
    assert torch.equal(x_adv[~mask], x[~mask]) and (x_adv != x).any()


@pytest.mark.parametrize("attack", [APGD(steps=5), TargetedAPGD(steps=3, targets=3)])
def test_inputs_normalised_outside_the_model(attack):
    model = NETS["conv"](torch.float64)
    norm = Normalized((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    x, y = right_batch(model, 8)
    want = dataclasses.replace(attack, generator=seeded())(model, x, y)
    got = norm(dataclasses.replace(attack, generator=seeded()))(lambda u: model(norm.pixels(u)), norm.inputs(x), y)
    torch.testing.assert_close(norm.pixels(got), want, rtol=0, atol=1e-6)
    assert (want != x).any()


def test_the_derivative_of_dlr():
    torch.manual_seed(0)
    logits, y = torch.randn(50, 5, dtype=torch.float64, requires_grad=True), torch.arange(50) % 5
    value, slope = OBJECTIVES["dlr"], resolve("dlr")[1]
    (want,) = torch.autograd.grad(value(logits, y).sum(), logits)
    torch.testing.assert_close(slope(logits.detach(), y), want)
    z = logits.detach()[0].tolist()
    first, _, third = sorted(z, reverse=True)[:3]
    by_hand = -(z[0] - max(z[1:])) / (first - third + 1e-12)
    assert abs(value(logits, y)[0].item() - by_hand) < 1e-12


def test_a_batch_without_labels_has_the_greatest_loss():
    model = torch.nn.Linear(3, 2)
    x, y = torch.rand(4, 3), torch.rand(4, 2)
    attack = APGD(eps=0.1, steps=5, objective=lambda z, y: (z - y).square().sum(1))
    before, after = ((model(t) - y).square().sum(1) for t in (x, attack(model, x, y)))
    assert (after > before).all()


def test_to_reach_a_class():
    model = relu_net()
    x, _ = batch(n=8)
    y = (model(x).argmax(1) + 1) % 4
    x_adv = APGD(eps=0.5, steps=20, targeted=True)(model, x, y)
    assert (model(x_adv).argmax(1) == y).double().mean() > 0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: APGD(p=1), ValueError, r"p must be 2 or math\.inf for APGD, got 1"),
        (lambda: APGD(steps=0), ValueError, "steps must be"),
        (lambda: APGD(restarts=0), ValueError, "restarts must be"),
        (lambda: APGD(eot=1.5), TypeError, "eot must be"),
        (lambda: APGD(rho=1.2), ValueError, "rho must"),
        (lambda: APGD(objective="dl"), ValueError, "objective must be one of ce, margin, dlr"),
        (lambda: APGD(engine="graph"), ValueError, 'APGD takes no engine with "graph"'),
        (lambda: TargetedAPGD(targeted=True), ValueError, r"APGD\(targeted=True\)"),
        (lambda: TargetedAPGD(objective="dlr"), ValueError, "TargetedAPGD has a loss of its own"),
        (lambda: TargetedAPGD(targets=0), ValueError, "targets must be"),
        (lambda: TargetedAPGD()(relu_net(), *batch()), ValueError, "has 9 targets and needs K > targets"),
        (lambda: TargetedAPGD(targets=1)(relu_net(classes=3), *batch(classes=3)), ValueError, "K >= 4, got K = 3"),
        (lambda: APGD(objective="dlr")(relu_net(classes=2), *batch(classes=2)), ValueError, "dlr compares 3 logits"),
        (lambda: APGD()(relu_net(), batch()[0], batch()[1] + 9), ValueError, r"labels must lie in 0\.\.3"),
        (lambda: APGD()(relu_net(), batch()[0] - 1, batch()[1]), ValueError, "x"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_another_oracle_is_refused():
    model, (x, y) = relu_net(), batch()
    with APGD().oracle(model) as oracle, pytest.raises(TypeError, match="TargetedAPGD needs its own oracle"):
        TargetedAPGD(targets=3).run(oracle, x, y)


def test_an_empty_batch():
    assert len(APGD()(relu_net(), torch.rand(0, *SHAPE), torch.zeros(0, dtype=torch.int64))) == 0
