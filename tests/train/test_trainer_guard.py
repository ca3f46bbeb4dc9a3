"""The trainer with the guard: an alarm gives more steps, a resume remembers it, silence changes nothing."""

import dataclasses
from unittest import mock

import pytest

from soatfast.attacks import PGD, FrankWolfe
from soatfast.gradients import InputGradient
from soatfast.losses import AdversarialTraining, CrossEntropy
from soatfast.train.guard import OverfittingGuard
from tests.train.conftest import same
from tests.train.sittings import CONFIG, Interrupt, interrupted, replay, resumed, same_memory, whole


class Alarming(OverfittingGuard):
    """Fires after the first epoch, whatever it sees, and is silent after that."""

    def check(self, model, epoch, eps=None):
        reading = super().check(model, epoch, eps)
        self.alarmed = epoch == 1
        return dataclasses.replace(reading, fired=self.alarmed)


GUARDED = dataclasses.replace(CONFIG, guard=10)


def test_an_alarm_gives_the_next_epoch_more_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("soatfast.train.trainer.OverfittingGuard", Alarming)
    with mock.patch.object(InputGradient, "gradient", autospec=True, side_effect=InputGradient.gradient) as gradient:
        result, expected = whole(tmp_path / "whole", AdversarialTraining(PGD(eps=0.1, steps=1)), GUARDED)
    training = [call for call in gradient.call_args_list if len(call.args[1]) == 10 and call.args[0].mode == "eval"]
    readings = 2 * 3  # two gradients each; the linearity of this model leaves PGD out
    assert len(training) == 1 + 4 + 5 * 4 + 4 + readings  # the counting step, then 1, 5 and 1 steps for 4 batches
    assert [row["guard"]["fired"] for row in result.history] == [True, False, False]
    loss = AdversarialTraining(PGD(eps=0.1, steps=1))
    interrupted(tmp_path / "cut", Interrupt(epoch=1), loss, GUARDED)
    assert same(expected, resumed(tmp_path / "cut", loss, GUARDED)[1]), "the alarm is remembered"


def test_an_alarm_leaves_a_loss_of_enough_steps_as_it_is(tmp_path, monkeypatch):
    loss = AdversarialTraining(PGD(eps=0.1, steps=6, step_size=0.01))
    _, expected = whole(tmp_path / "plain", loss)
    monkeypatch.setattr("soatfast.train.trainer.OverfittingGuard", Alarming)
    result, found = whole(tmp_path / "alarmed", loss, GUARDED)
    assert result.history[0]["guard"]["fired"] and same(expected, found)


def test_a_silent_guard_changes_nothing_but_the_history(tmp_path):
    plain, first = whole(tmp_path / "plain")
    watched, second = whole(tmp_path / "watched", config=GUARDED)
    assert same(first, second)
    assert "guard" not in plain.history[0] and 0 <= watched.history[2]["guard"]["one_step_accuracy"] <= 1


def test_a_guard_leaves_the_memory_alone(tmp_path):
    plain, watched = replay(), replay()
    _, expected = whole(tmp_path / "plain", plain)
    result, found = whole(tmp_path / "watched", watched, GUARDED)
    assert "guard" in result.history[0]
    assert same(expected, found) and same_memory(plain, watched)


def test_an_alarm_gives_a_loss_with_a_memory_more_steps(tmp_path, monkeypatch):
    monkeypatch.setattr("soatfast.train.trainer.OverfittingGuard", Alarming)
    loss, again = replay(), replay()
    with mock.patch.object(FrankWolfe, "_replay", autospec=True, side_effect=FrankWolfe._replay) as visits:
        _, expected = whole(tmp_path / "whole", loss, GUARDED)
    assert [call.args[0].steps for call in visits.call_args_list] == [1] * 5 + [5] * 4 + [1] * 4  # counting step first
    assert loss.memory.visits.tolist() == [3] * 40
    interrupted(tmp_path / "cut", Interrupt(step=6), replay(), GUARDED)
    assert same(expected, resumed(tmp_path / "cut", again, GUARDED)[1]) and same_memory(loss, again)


def test_a_guard_needs_an_attack(tmp_path):
    with pytest.raises(ValueError, match="guard needs a loss whose attack has steps"):
        whole(tmp_path, CrossEntropy(), GUARDED)
