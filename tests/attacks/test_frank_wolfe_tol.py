"""FrankWolfe(tol): each sample stops by its own gap, against its steps taken alone in plain PyTorch."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from soatfast.attacks import FrankWolfe
from soatfast.evaluate.watch import can_watch
from soatfast.gradients import count_passes
from soatfast.losses import SCORPIO, AdversarialTraining
from soatfast.memory.store import PerturbationMemory
from tests.nets import smooth_net

EPS = 0.5


def problem(batch=7):
    torch.manual_seed(3)
    model = smooth_net()
    with torch.no_grad():
        model[1].weight.mul_(8)  # curved enough for gaps that differ
    x = torch.rand(batch, *SHAPE, dtype=torch.float64)
    return model, x, torch.arange(batch) % 3


SHAPE = (1, 4, 4)


def alone(model, x, y, tol, steps, h, eps=EPS, in_box=False):
    """(x_adv, steps taken, gaps) of one sample at p = inf, init "lmo", as the docstring has it."""

    def gradient(point):
        leaf = point.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]

    def maximiser(g):
        s = eps * g.sign()
        return torch.clamp(s, -x, 1 - x) if in_box else s

    g0 = gradient(x)
    v, gaps = maximiser(g0), []
    for k in range(steps):
        slope = g0 + (gradient(x + h * v) - g0) / h
        s = maximiser(slope)
        gaps.append(float((slope * (s - v)).sum()))
        v = v + 2 / (k + 2) * (s - v)
        if gaps[-1] < tol:
            break
    return (x + v).clamp(0, 1), len(gaps), gaps


def spread_of_gaps(model, x, y, h):
    gaps = [gap for i in range(len(x)) for gap in alone(model, x[i : i + 1], y[i : i + 1], -1, 6, h)[2]]
    return sorted(gap for gap in gaps if gap > 1e-9)


@pytest.mark.parametrize("h", [1.0, 0.7])
@pytest.mark.parametrize("in_box", [False, True])
def test_each_sample_stops_by_its_own_gap(h, in_box):
    model, x, y = problem()
    gaps = spread_of_gaps(model, x, y, h)
    tol = (gaps[len(gaps) // 2] + gaps[len(gaps) // 2 + 1]) / 2
    attack = FrankWolfe(eps=EPS, steps=6, h=h, init="lmo", in_box=in_box, tol=tol)
    with count_passes(model) as passes:
        found = attack(model, x, y)
    expected = [alone(model, x[i : i + 1], y[i : i + 1], tol, 6, h, in_box=in_box) for i in range(len(x))]
    torch.testing.assert_close(found, torch.cat([point for point, _, _ in expected]))
    taken = [steps for _, steps, _ in expected]
    assert len(set(taken)) > 1, "a tol at which all samples stop together shows nothing"
    assert passes.forward_samples == passes.backward_input_samples == len(x) + sum(taken)
    assert passes.forward == 1 + max(taken) <= attack.passes(len(x)).forward


def test_radii_of_their_own():
    model, x, y = problem()
    eps = torch.linspace(0.05, 0.4, len(x), dtype=torch.float64)
    gaps = spread_of_gaps(model, x, y, 1.0)
    attack = FrankWolfe(eps=eps, steps=5, h=1.0, init="lmo", tol=gaps[len(gaps) // 2])
    found = attack(model, x, y)
    for i in range(len(x)):
        one = dataclasses.replace(attack, eps=float(eps[i]))(model, x[i : i + 1], y[i : i + 1])
        torch.testing.assert_close(found[i : i + 1], one)


def test_a_tol_that_none_reaches_and_one_that_all_do():
    model, x, y = problem()
    plain = FrankWolfe(eps=EPS, steps=4, init="lmo")
    torch.testing.assert_close(dataclasses.replace(plain, tol=1e-300)(model, x, y), plain(model, x, y))
    with count_passes(model) as passes:
        found = dataclasses.replace(plain, tol=1e9)(model, x, y)
    assert passes.forward == 2
    torch.testing.assert_close(found, dataclasses.replace(plain, steps=1)(model, x, y))
    nothing = dataclasses.replace(plain, tol=0.1)(model, x[:0], y[:0])
    assert nothing.shape == (0, *SHAPE)


def test_scorpio_with_tol():
    model, x, y = problem()
    criterion = SCORPIO(eps=EPS, steps=5, init="lmo", h=1.0, tol=1e9, mode="keep")
    with count_passes(model) as passes:
        value = criterion(model, x, y)
        value.backward()
    expected = SCORPIO(eps=EPS, steps=1, init="lmo", h=1.0, mode="keep")(model, x, y)
    torch.testing.assert_close(value, expected)
    assert passes.forward == 3 <= criterion.passes().forward


def test_it_is_not_watched_by_the_suite():
    x = torch.rand(3, 1, 8, 8)
    assert can_watch(FrankWolfe(), x) and not can_watch(FrankWolfe(tol=0.1), x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tol": 0.0}, ValueError, "tol must be finite and > 0"),
        ({"tol": -1.0}, ValueError, "tol must be finite and > 0"),
        ({"tol": math.inf}, ValueError, "tol must be finite and > 0"),
        ({"tol": torch.tensor(0.1)}, TypeError, "tol must be a number"),
        ({"tol": 0.1, "scheme": "cd"}, ValueError, "tol takes scheme"),
        ({"tol": 0.1, "mode": "train"}, ValueError, "tol takes scheme"),
        ({"tol": 0.1, "engine": "graph"}, ValueError, "tol takes scheme"),
    ],
)
def test_bad_input(change, error, message):
    with pytest.raises(error, match=message):
        FrankWolfe(**change)


def test_no_memory():
    memory = PerturbationMemory(10, SHAPE)
    with pytest.raises(ValueError, match="with a memory FrankWolfe takes tol=None"):
        AdversarialTraining(FrankWolfe(tol=0.1), memory=memory)
