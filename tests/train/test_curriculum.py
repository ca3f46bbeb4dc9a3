"""Ramps of eps and h, alone and in a training."""

from __future__ import annotations

import math

import pytest

from soatfast.attacks import PGD
from soatfast.losses import CURE, LLR, SCORPIO, SOAR, STN, AdversarialTraining, CrossEntropy, InputGradientPenalty
from soatfast.train import TrainConfig
from soatfast.train.curriculum import CURE_H_RAMP, linear, listed, scaled
from tests.train.conftest import same
from tests.train.sittings import Interrupt, interrupted, resumed, whole


def test_the_ramp_of_the_authors_of_cure():
    steps = [3 * listed(epoch, CURE_H_RAMP) for epoch in range(6)]
    assert steps == pytest.approx([0.1, 0.4, 0.8, 1.8, 3, 3])


def test_a_ramp_of_no_epochs_is_none():
    assert linear(0, 0) == linear(0, 1) == listed(0, ()) == 1


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (SOAR(eps=0.2, h=0.04), SOAR(eps=0.1, h=0.01)),
        (CURE(h=2.0), CURE(h=0.5)),
        (LLR(eps=0.2), LLR(eps=0.1)),
        (InputGradientPenalty(variant="dual", eps=0.2), InputGradientPenalty(variant="dual", eps=0.1)),
        (InputGradientPenalty(variant="difference", h=0.04), InputGradientPenalty(variant="difference", h=0.01)),
        (InputGradientPenalty(), InputGradientPenalty()),
        (STN(), STN()),
        (STN(noise="asod", eps=0.2), STN(noise="asod", eps=0.1)),
        (SCORPIO(eps=0.2), SCORPIO(eps=0.1)),
        (AdversarialTraining(PGD(eps=0.2)), AdversarialTraining(PGD(eps=0.1))),
        (CrossEntropy(), CrossEntropy()),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_each_loss_gets_its_share(loss, expected):
    assert scaled(loss, 0.5, 0.25) == expected
    assert scaled(loss, 1.0, 1.0) is loss


def test_the_h_ramp_reaches_the_loss_and_is_resumed(tmp_path):
    loss, config = CURE(h=2.0), TrainConfig(epochs=4, batch_size=10, h_ramp=(0.1, 0.5), seed=5)
    result, expected = whole(tmp_path / "whole", loss, config)
    assert [row["h"] for row in result.history] == pytest.approx([0.2, 1.0, 2.0, 2.0])
    interrupted(tmp_path / "cut", Interrupt(epoch=1), loss, config)
    assert same(expected, resumed(tmp_path / "cut", loss, config)[1])
    plain, _ = whole(tmp_path / "plain", CrossEntropy(), config)
    assert all("h" not in row for row in plain.history)


@pytest.mark.parametrize("share", [0.0, -1.0, math.inf, math.nan])
def test_wrong_ramp(share):
    with pytest.raises(ValueError, match="h_ramp must be positive and finite shares, got"):
        TrainConfig(h_ramp=(0.5, share))
