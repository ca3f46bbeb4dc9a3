"""The losses that the training steps are raced with: the same functions, in the passes they are said to make."""

import pytest

from benchmarks import bench_training_step as steps
from soatfast.gradients import count_passes

FORWARDS = {"PGD-10": 11, "SCORPIO FE(3)": 6, "TRADES": 23, "MART": 12, "CURE": 5}


@pytest.mark.parametrize("name", steps.PAIRS)
def test_the_same_loss(name):
    steps.check_same(name, *steps.PAIRS[name], *steps.problem("SmallCNN", 3))


@pytest.mark.parametrize("name", steps.PAIRS)
def test_as_many_forwards_as_the_authors(name):
    model, x, y = steps.problem("SmallCNN", 3)
    with count_passes(model) as counted:
        steps.PAIRS[name][1](model, x, y).backward()
    assert counted.forward == FORWARDS[name]


def test_another_loss_is_found_out():
    setting, pgd = steps.problem("SmallCNN", 3), steps.PAIRS["PGD-10"][1]
    with pytest.raises(AssertionError, match="PGD: "):
        steps.check_same("PGD", lambda *a: 1.002 * pgd(*a), pgd, *setting)

    def twice_as_steep(*batch):
        value = pgd(*batch)
        return 2 * value - value.detach()

    with pytest.raises(AssertionError, match=r"PGD: the parameter gradients differ by 100\.0%"):
        steps.check_same("PGD", twice_as_steep, pgd, *setting)
