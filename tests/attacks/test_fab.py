"""TargetedFAB against torchattacks' FAB, its projection against SciPy, a linear model's closed form, and its counts."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize

from soatfast.attacks import FAB, Normalized, TargetedFAB
from soatfast.attacks.fab import to_plane
from soatfast.gradients import count_passes
from tests.attacks.peers import NETS, reckoned_in, right_batch, seeded
from tests.nets import batch, linear_net, relu_net

NAME = {1: "L1", 2: "L2", math.inf: "Linf"}
EPS = {1: 1.5, 2: 0.2, math.inf: 0.015}


def theirs(model, x, y, p, eps, steps, dtype=torch.float64, multi_targeted=True, **fields):
    peer = pytest.importorskip("torchattacks").FAB
    with reckoned_in(dtype):
        return peer(model, norm=NAME[p], eps=eps, steps=steps, multi_targeted=multi_targeted, **fields)(x, y)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("restarts", [1, 2])
def test_the_images_are_torchattacks(net, p, restarts):
    model = NETS[net](torch.float64)
    x, y = right_batch(model, 16)
    want = theirs(model, x, y, p, EPS[p], 12, seed=3, n_restarts=restarts, n_classes=4)
    fields = {"eps": EPS[p], "p": p, "steps": 12, "restarts": restarts, "targets": 3}
    got = TargetedFAB(**fields, early_stop=False, generator=seeded(3))(model, x, y)
    fooled = model(got).argmax(1) != y
    assert torch.equal(fooled, model(want).argmax(1) != y) and 3 <= fooled.sum() < 16
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    left = TargetedFAB(**fields, generator=seeded(3))(model, x, y)
    assert torch.equal(fooled, model(left).argmax(1) != y)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("p", [2, math.inf])
def test_the_images_without_targets_are_torchattacks(net, p):
    model = NETS[net](torch.float64)
    x, y = right_batch(model, 16)
    want = theirs(model, x, y, p, EPS[p], 8, seed=3, n_restarts=2, multi_targeted=False)
    attack = FAB(eps=EPS[p], p=p, steps=8, restarts=2, early_stop=False, generator=seeded(3))
    with count_passes(model) as counted:
        got = attack(model, x, y)
    assert counted.total().forward == 1 + 2 * 2 * 8 and counted.total().backward_input == 2 * 8 * 5
    fooled = model(got).argmax(1) != y
    assert torch.equal(fooled, model(want).argmax(1) != y) and 3 <= fooled.sum() < 16
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


def test_the_passes_without_targets():
    model = relu_net()
    x = batch(n=9)[0]
    y = model(x).argmax(1)
    attack = FAB(eps=1e-6, steps=5, restarts=2)
    with count_passes(model) as counted:
        attack(model, x, y)
    assert counted.total() == attack.passes(9, classes=4)


@pytest.mark.parametrize("net", NETS)
def test_the_nearest_points_in_the_1_norm_are_torchattacks(net):
    model = NETS[net](torch.float64)
    x, y = right_batch(model, 8)
    x, y = x[1:], y[1:]
    peer = pytest.importorskip("torchattacks").FAB(model, norm="L1", eps=1e3, steps=10, multi_targeted=True)
    peer.target_class = 2
    with reckoned_in(torch.float64), torch.no_grad():
        want = peer.attack_single_run_targeted(x, y)
    got = TargetedFAB(eps=1e3, p=1, steps=10, targets=1, early_stop=False)(model, x, y)
    assert (want != x).any()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [2, math.inf])
def test_the_verdicts_in_float32(p):
    model = NETS["smooth"](torch.float32)
    x, y = right_batch(model, 1000, torch.float32)
    want = theirs(model, x, y, p, EPS[p], 10, torch.float32, n_classes=3)
    got = TargetedFAB(eps=EPS[p], p=p, steps=10, targets=2)(model, x, y)
    ours, peers = (model(t).argmax(1) == y for t in (got, want))
    assert 100 < ours.sum() < 900
    assert (ours != peers).sum() <= 1


def shortest(x, w, offset, p):
    """||d||_p by SciPy: a linear program in (d, bounds of |d|), or SLSQP."""
    n = len(x)
    if p == 2:
        plane = {"type": "eq", "fun": lambda d: w @ (x + d) - offset}
        found = minimize(
            lambda d: d @ d, (0.5 - x) * 0.1, bounds=list(zip(-x, 1 - x, strict=True)), constraints=[plane], tol=1e-14
        )
        return math.sqrt(found.fun) if found.success else None
    extra = n if p == 1 else 1
    above = np.tile(np.eye(n) if p == 1 else np.ones((n, 1)), (2, 1))
    found = linprog(
        np.concatenate((np.zeros(n), np.ones(extra))),
        A_ub=np.hstack((np.vstack((np.eye(n), -np.eye(n))), -above)),
        b_ub=np.zeros(2 * n),
        A_eq=[[*w, *np.zeros(extra)]],
        b_eq=[offset - w @ x],
        bounds=[*zip(-x, 1 - x, strict=True), *[(0, None)] * extra],
    )
    return found.fun if found.success else None


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_the_projection_is_scipys(p):
    generator = np.random.default_rng(0)
    x, w = generator.random((40, 6)), generator.normal(size=(40, 6))
    x[:5, :2], w[5:10, 1] = 1, 0
    reach = np.where(w > 0, w, 0).sum(1), np.where(w < 0, w, 0).sum(1)
    offset = reach[1] + generator.random(40) * (reach[0] - reach[1])
    d = to_plane(torch.tensor(x), torch.tensor(w), torch.tensor(offset), p, (0.0, 1.0)).numpy()
    assert np.abs((w * (x + d)).sum(1) - offset).max() < 1e-9
    assert (x + d).min() >= -1e-12 and (x + d).max() <= 1 + 1e-12
    compared = 0
    for i in range(40):
        want = shortest(x[i], w[i], offset[i], p)
        if want is not None:
            assert abs(np.linalg.norm(d[i], p) - want) < 1e-6
            compared += 1
    assert compared >= 30


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_plane_out_of_reach_and_one_without_a_direction(p):
    x, w = torch.tensor([[0.5, 0.2], [0.5, 0.2]]), torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    d = to_plane(x, w, torch.tensor([9.0, 1.0]), p, (0.0, 1.0))
    torch.testing.assert_close(x + d, torch.tensor([[1.0, 0.0], [0.5, 0.2]]))


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_linear_model_has_the_closed_form(p):
    """The nearest point of two classes is |h| / ||w||_q away; eta takes it 1 to 5 % further at most."""
    model = linear_net()
    x = 0.5 + 0.01 * batch(n=8)[0]
    with torch.no_grad():
        model[1].bias[1] += 0.1 - (model(x)[:, 1] - model(x)[:, 0]).mean()  # near enough for one entry to reach
        y = model(x).argmax(1)
        w = model[1].weight[1] - model[1].weight[0]
        h = (model(x)[:, 1] - model(x)[:, 0]).abs() / w.norm({1: math.inf, 2: 2, math.inf: 1}[p])
    x_adv = TargetedFAB(eps=100.0, p=p, steps=40, targets=1, early_stop=False)(model, x, y)
    assert (model(x_adv).argmax(1) != y).all()
    ratio = (x_adv - x).flatten(1).norm(p, dim=1) / h
    assert ratio.min() > 1 - 1e-9 and ratio.max() < 1.06


def test_samples_leave_and_the_passes_are_as_declared():
    model = relu_net()
    x, y = batch(n=12)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    whole = TargetedFAB(eps=1e-6, steps=5, targets=3, restarts=2)
    with count_passes(model) as counted:
        whole(model, x[3:], y[3:])
    assert counted.total() == whole.passes(9) and whole.passes().forward == 61
    fewer = TargetedFAB(eps=0.2, steps=5, targets=3)
    with count_passes(model) as counted:
        x_adv = fewer(model, x, y)
    assert torch.equal(x_adv[:3], x[:3]), "fooled at x"
    assert counted.total().forward_samples < 12 + 9 * 30 and (x_adv - x).abs().max() <= 0.2 + 1e-9


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_radius_for_each_and_a_mask(p):
    model = relu_net()
    x = batch(n=8)[0]
    y = model(x).argmax(1)
    eps = torch.linspace(0, EPS[p] * 5, 8, dtype=torch.float64)
    x_adv = TargetedFAB(eps=eps, p=p, steps=8, targets=3)(model, x, y)
    assert ((x_adv - x).flatten(1).norm(p, dim=1) <= eps + 1e-9).all() and (x_adv != x).any()
    mask = torch.rand(1, 4, 4, generator=seeded()) > 0.3
    x_adv = TargetedFAB(eps=EPS[p] * 20, p=p, steps=8, targets=3, restarts=2, mask=mask)(model, x, y)
    assert torch.equal(x_adv[:, ~mask], x[:, ~mask]) and (x_adv != x).any()


def test_inputs_normalised_outside_the_model():
    model = NETS["conv"](torch.float64)
    norm = Normalized((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    x, y = right_batch(model, 8)
    want = TargetedFAB(eps=0.02, steps=8, targets=3)(model, x, y)
    got = norm(TargetedFAB(eps=0.02, steps=8, targets=3))(lambda u: model(norm.pixels(u)), norm.inputs(x), y)
    torch.testing.assert_close(norm.pixels(got), want, rtol=0, atol=1e-6)
    assert (want != x).any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: TargetedFAB(p=3), ValueError, r"p must be 1, 2 or math\.inf for TargetedFAB, got 3"),
        (lambda: TargetedFAB(steps=0), ValueError, "steps must be"),
        (lambda: TargetedFAB(targets=0), ValueError, "targets must be"),
        (lambda: TargetedFAB(alpha_max=1.5), ValueError, "alpha_max must"),
        (lambda: TargetedFAB(beta=-0.1), ValueError, "beta must"),
        (lambda: TargetedFAB(eta=0), ValueError, "eta must"),
        (lambda: TargetedFAB(targeted=True), ValueError, "picks its targets"),
        (lambda: TargetedFAB(objective="dlr"), ValueError, "TargetedFAB has a loss of its own"),
        (lambda: TargetedFAB(engine="graph"), ValueError, "engine 'graph' takes the objectives"),
        (lambda: FAB(engine="graph"), ValueError, 'FAB takes no engine with "graph"'),
        (lambda: FAB(targeted=True), ValueError, "FAB is given the true labels"),
        (lambda: TargetedFAB()(relu_net(), *batch()), ValueError, "has 9 targets, and the model 3 wrong classes"),
        (lambda: TargetedFAB(targets=3)(relu_net(), batch()[0], batch()[1] + 9), ValueError, r"must lie in 0\.\.3"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
