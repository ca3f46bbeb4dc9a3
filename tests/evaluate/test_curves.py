"""Curves against plain runs of each point."""

import dataclasses

import numpy as np
import pytest

from soatfast.attacks import FGSM, PGD
from soatfast.evaluate import Curve, accuracy_against_eps, steps_plateau
from soatfast.evaluate import suite as run_suite
from soatfast.gradients.passes import Passes

EPS = (0.2, 0.0, 0.05, 0.1)


def point(net, samples, attack, name):
    """The attack by itself, on batches of 20 as the curve's."""
    x, y = samples
    return run_suite(net, list(zip(x.split(20), y.split(20), strict=True)), {name: attack}, compact=False)[name]


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("carry", [True, False])
def test_accuracy_against_eps(net, samples, carry, compact):
    attack = PGD(eps=1.0, steps=3)
    curve = accuracy_against_eps(net, samples, attack, EPS, carry=carry, compact=compact, batch_size=20)
    assert curve.at == (0.0, 0.05, 0.1, 0.2) and curve.label == "PGD"
    right, expected = np.ones(50, bool), []
    for eps in curve.at:
        found = point(net, samples, attack.with_eps(eps), f"eps {eps:g}").correct
        right = right & found if carry else found
        expected.append(right.mean())
    assert curve.accuracy == pytest.approx(expected)
    assert curve.accuracy[0] == curve.clean and not curve.rises() and curve.accuracy[-1] < 0.5
    total = curve.passes.forward_samples + curve.saved.forward_samples
    assert total == 50 * (1 + 4 * 4) and (curve.saved.forward_samples > 0) == compact


def test_carried_samples_are_not_attacked_again(net, samples):
    passes = [
        accuracy_against_eps(net, samples, FGSM(), EPS, carry=carry, batch_size=20).passes.forward_samples
        for carry in (True, False)
    ]
    assert passes[0] < passes[1]


def test_a_curve_resumes(net, samples, tmp_path):
    curves = [accuracy_against_eps(net, samples, FGSM(), EPS, folder=tmp_path) for _ in range(2)]
    assert curves[0] == curves[1] and (tmp_path / "evaluation.npz").is_file()


@pytest.mark.parametrize("compact", [True, False])
def test_one_run_gives_all_numbers_of_steps(net, samples, compact):
    attack = PGD(eps=0.1, step_size=0.02)
    curve = steps_plateau(net, samples, (7, 1, 3), attack, batch_size=20, compact=compact)
    expected = [point(net, samples, dataclasses.replace(attack, steps=n), "pgd").accuracy for n in (1, 3, 7)]
    assert curve.at == (1, 3, 7) and curve.accuracy == pytest.approx(expected)
    assert curve.accuracy[0] > curve.accuracy[-1] and not curve.rises()
    plain = 50 * (1 + 2 + 4 + 8), 50 * (1 + 3 + 7)
    total = curve.passes.forward_samples + curve.saved.forward_samples
    assert (total, curve.passes.backward_input_samples + curve.saved.backward_input_samples) == plain
    assert curve.passes.backward_input_samples <= 50 * 7


@pytest.mark.parametrize("attack", [None, PGD(eps=0.1, step_size=0.02, restarts=2), PGD(eps=0.1, best=True)])
def test_otherwise_each_number_is_a_run(net, samples, attack):
    curve = steps_plateau(net, samples, (1, 4), attack, eps=0.1, batch_size=20, label="mine")
    base = attack or PGD(eps=0.1)
    expected = [point(net, samples, dataclasses.replace(base, steps=n), f"steps {n}").accuracy for n in (1, 4)]
    assert curve.accuracy == pytest.approx(expected) and curve.label == "mine"


def test_what_a_curve_says():
    def curve(*values):
        return Curve("c", tuple(range(len(values))), values, 1.0, Passes(), Passes())

    assert curve(0.9, 0.5, 0.495, 0.49).plateau() == 1
    assert curve(0.5, 0.9, 0.5, 0.5).plateau() == 2, "from there on"
    assert curve(0.9, 0.5).plateau() is None
    assert curve(0.9, 0.5).plateau(tolerance=0.5) == 0
    assert curve(0.5, 0.6, 0.55, 0.56).rises() == [(0, 1), (2, 3)]
    assert curve(0.5, 0.6, 0.55, 0.56).rises(0.05) == [(0, 1)]


@pytest.mark.parametrize(
    ("act", "text"),
    [
        (lambda net, s: accuracy_against_eps(net, s, FGSM(), []), "eps must be one or more different numbers"),
        (lambda net, s: accuracy_against_eps(net, s, FGSM(), [0.1, 0.1]), "eps must be"),
        (lambda net, s: accuracy_against_eps(net, s, FGSM(), [0.1, 0.1 + 1e-9]), "first six digits"),
        (lambda net, s: accuracy_against_eps(net, s, FGSM(), [-0.1]), "eps must be finite and >= 0"),
        (lambda net, s: steps_plateau(net, s, [0, 1]), "steps must be at least 1"),
        (lambda net, s: steps_plateau(net, s, [2, 2]), "steps must be one or more"),
    ],
)
def test_wrong_arguments(net, samples, act, text):
    with pytest.raises(ValueError, match=text):
        act(net, samples)
