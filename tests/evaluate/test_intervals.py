"""Intervals against the formula, pairs against a sum of binomials, and where both stand."""

import json
import math

import numpy as np
import pytest
import torch

from soatfast.attacks import FGSM, PGD
from soatfast.evaluate import accuracy, interval, paired, suite
from tests.nets import relu_net


def wilson(k, n, z=1.959963984540054):
    centre, half = (k + z * z / 2) / (n + z * z), z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return centre - half, centre + half


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (1, 1), (37, 250), (999, 1000), (5000, 10000)])
def test_the_interval_is_wilsons(k, n):
    low, high = interval(k, n)
    assert (low, high) == pytest.approx(wilson(k, n), abs=1e-12) and 0 <= low <= k / n <= high <= 1


def test_the_interval_holds_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    inside = sum(low <= 0.7 <= high for low, high in (interval(k, 100) for k in generator.binomial(100, 0.7, 1000)))
    assert 0.92 <= inside / 1000 <= 0.98


@pytest.mark.parametrize(("first", "second"), [(9, 2), (0, 5), (3, 3), (1, 0)])
def test_pairs_are_mcnemars(first, second):
    a = np.array([True] * 20 + [True] * first + [False] * second + [False] * 4)
    b = np.array([True] * 20 + [False] * first + [True] * second + [False] * 4)
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1)) / 2**n
    for found in (paired(a, b), paired(torch.from_numpy(a), b)):
        assert found.p_value == pytest.approx(min(1.0, 2 * tail)) and (found.first_only, found.second_only) == (
            first,
            second,
        )
        assert found.difference == pytest.approx((first - second) / len(a))
    assert paired(a, a).p_value == 1.0


def test_a_suite_has_them(net, samples):
    x, y = samples
    attacks = {"fgsm": FGSM(eps=0.05), "pgd": PGD(eps=0.1, steps=3)}
    found = suite(net, [(x[:30], y[:30]), (x[30:], y[30:])], attacks, quality=False)
    for result in found.results.values():
        assert result.interval == interval(int(result.correct.sum()), 50)
    nothing = np.logical_and.reduce([r.correct for r in found.results.values()])
    assert np.array_equal(found.withstood, nothing) and found.worst_case_interval == interval(int(nothing.sum()), 50)
    rows = {row["name"]: row for row in found.table().rows}
    low, high = found["pgd"].interval
    assert rows["pgd"]["interval"] == f"{100 * low:.1f} to {100 * high:.1f}" and rows["worst case"]["interval"]
    written = json.loads(json.dumps(found.to_json()))
    assert written["attacks"]["pgd"]["interval"] == [low, high] and written["samples"] == 50
    assert written["worst_case"]["interval"] == list(found.worst_case_interval)
    assert written["attacks"]["pgd"]["passes"]["forward_samples"] == found["pgd"].passes.forward_samples
    one = accuracy(net, samples, FGSM(eps=0.05))
    assert one.interval == found["fgsm"].interval


def test_two_suites_in_pairs(net, samples):
    attacks = {"fgsm": FGSM(eps=0.05), "pgd": PGD(eps=0.1, steps=3)}
    mine = suite(net, [samples], attacks, quality=False)
    other = suite(relu_net(seed=3), [samples], {"pgd": attacks["pgd"], "more": FGSM()}, quality=False)
    found = mine.paired(other)
    assert list(found) == ["clean", "pgd", "worst case"]
    assert found["pgd"] == paired(mine["pgd"].correct, other["pgd"].correct)
    assert found["worst case"].difference == pytest.approx(mine.worst_case - other.worst_case)
    assert found["clean"].p_value < 0.05, "another network is right by chance only"
    x, y = samples
    with pytest.raises(ValueError, match="compared on the same samples, got labels that differ, of 50 and 40"):
        mine.paired(suite(net, [(x[:40], y[:40])], attacks, quality=False))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: interval(0, 0), ValueError, "needs at least one sample, got 0"),
        (lambda: interval(5, 3), ValueError, r"correct must lie in 0\.\.3, got 5"),
        (lambda: paired(np.ones(3), np.ones(3)), TypeError, "an array of bools, .* got float64"),
        (lambda: paired(np.ones(3, bool), np.ones(4, bool)), ValueError, r"got shapes \(3,\) and \(4,\)"),
        (lambda: paired(np.ones(0, bool), np.ones(0, bool)), ValueError, "of the same samples"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text) as found:
        call()
    assert "\n" not in str(found.value)
