"""SCORPIO's settings of the paper, for each norm and data set."""

from __future__ import annotations

import pytest

from soatfast.attacks.task import Task
from soatfast.losses import SCORPIO
from soatfast.losses.catalogue import LOSSES

PAPER = """
cifar10 inf fe 3 1.05 1.05
cifar10 inf fe 1 0.95 1.05
cifar10 inf cd 3 0.95 1.15
cifar10 inf cd 1 0.95 1.15
cifar10 2 fe 3 1.15 1.05
cifar10 2 fe 1 1.15 1.05
cifar10 2 cd 3 0.95 0.999
cifar10 2 cd 1 1.25 0.999
svhn inf fe 3 1.5 1.25
svhn 2 fe 3 1.25 0.99
"""  # data, p, scheme, steps, h, r: the supplement of arXiv 2009.04923


@pytest.mark.parametrize("line", PAPER.split("\n")[1:-1])
def test_scorpios_settings_are_the_papers_for_each_norm_and_data_set(line):
    data, p, scheme, steps, h, r = line.split()
    loss = SCORPIO.paper(data, float(p), scheme, int(steps))
    assert (loss.p, loss.scheme, loss.steps, loss.h, loss.strength) == (
        float(p),
        scheme,
        int(steps),
        float(h),
        float(r),
    )
    assert loss.eps == (0.5 if p == "2" else 8 / 255)
    rows = {
        ("cifar10", "fe", 3): "scorpio-ball",
        ("cifar10", "fe", 1): "scorpio-fe1",
        ("cifar10", "cd", 3): "scorpio-cd",
    }
    rows |= {("cifar10", "cd", 1): "scorpio-cd1", ("svhn", "fe", 3): "scorpio-svhn"}
    (row,) = (row for row in LOSSES if row.name == rows[data, scheme, int(steps)])
    made = row.make(Task(0.3, 1, (3, 32, 32), float(p)))
    assert (made.eps, made.h, made.strength, made.scheme, made.steps) == (0.3, float(h), float(r), scheme, int(steps))
    assert 1 not in row.norms, "the paper has no L1"


def test_a_setting_that_the_paper_has_not_is_said():
    with pytest.raises(ValueError, match=r"the paper has no setting for 'mnist', p = inf, fe\(3\); it has cifar10"):
        SCORPIO.paper("mnist")
    assert SCORPIO.paper(eps=0.1, mode="keep") == SCORPIO(eps=0.1, mode="keep", h=1.05)
