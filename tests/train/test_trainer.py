"""The trainer learns, counts, ramps, resumes bit for bit after any interruption, refuses foreign folders."""

import dataclasses
import json
import os
import shutil

import pytest
import torch
from torch import nn

from soatfast.attacks import PGD
from soatfast.losses import (
    CURE,
    LLR,
    MART,
    SCORPIO,
    SOAR,
    SORA,
    TRADES,
    AdversarialTraining,
    CrossEntropy,
    InputGradientPenalty,
    Loss,
)
from soatfast.runs.errors import RunFolderError, UserError
from soatfast.runs.progress import Progress
from soatfast.train import TrainConfig, checkpoint, train
from tests.train.conftest import make_data, make_model, same, weights
from tests.train.sittings import CONFIG, CROPS, PGD_LOSS, Interrupt, interrupted, resumed, whole


def test_training_lowers_the_loss_and_reports(tmp_path):
    config = TrainConfig(epochs=8, batch_size=10, lr=0.02, schedule="cosine")
    result, _ = whole(tmp_path, CrossEntropy(), config)
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]
    assert result.steps == 32
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in result.history))
    assert 0 < result.history[-1]["lr"] < 1e-3
    assert result.history[0]["eps"] is None
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 32


@pytest.mark.parametrize(
    ("loss", "forward", "backward_input", "backward_parameters"),
    [
        (CrossEntropy(), 1, 0, 1),
        (PGD_LOSS, 3, 2, 1),
        (SCORPIO(eps=0.1, steps=3), 6, 4, 1),
        (SCORPIO(eps=0.1, steps=3, mode="keep"), 5, 3, 2),
        (TRADES(eps=0.1, steps=3), 6, 3, 1),
        (TRADES(eps=0.1, steps=3, mode="keep"), 5, 3, 1),
        (MART(eps=0.1, steps=3), 5, 3, 1),
        (SORA(eps=0.1), 2, 1, 1),
        (SOAR(eps=0.1), 4, 3, 1),
        (CURE(), 3, 2, 1),
        (LLR(eps=0.1, steps=3, mode="keep"), 5, 4, 1),
        (InputGradientPenalty(mode="keep"), 1, 1, 1),
    ],
)
def test_passes_are_counted_on_a_copy(tmp_path, loss, forward, backward_input, backward_parameters):
    model, config = make_model(), dataclasses.replace(CONFIG, epochs=1, lr=1e-30, eps_ramp_epochs=1)
    before = weights(model)
    result = train(model, loss, make_data(), config, tmp_path)
    assert result.passes["forward"] == forward
    assert result.passes["backward_input"] == backward_input
    assert result.passes["backward_parameters"] == backward_parameters
    assert result.passes["forward_samples"] == 10 * forward
    declared = dataclasses.asdict(loss.passes(10))
    assert result.passes == declared
    batches = model[1].num_batches_tracked - before["1.num_batches_tracked"]
    assert batches == 4 * (2 if isinstance(loss, (SCORPIO, TRADES, MART)) else 1), "the counting step left a trace"


class Locked(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("this model cannot be copied")


@pytest.mark.parametrize("loss", [PGD_LOSS, SCORPIO(eps=0.1, steps=3, mode="keep")])
def test_a_model_that_refuses_to_be_copied(tmp_path, loss):
    found = []
    for make in (nn.Sequential, Locked):
        model = make(*make_model())
        result = train(model, loss, make_data(), CONFIG, tmp_path / make.__name__)
        found.append((result.passes, weights(model)))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])


def test_eps_ramp_reaches_the_loss(tmp_path):
    result, _ = whole(tmp_path, config=TrainConfig(epochs=4, batch_size=10, eps_ramp_epochs=3))
    assert [row["eps"] for row in result.history] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])
    assert TrainConfig(eps_ramp_epochs=0).eps_fraction(0) == 1


@pytest.mark.parametrize("step", [0, 3, 4, 6, 11])
def test_interrupted_in_any_step_then_resumed_is_bit_identical(tmp_path, step):
    first, expected = whole(tmp_path / "whole")
    interrupted(tmp_path / "cut", Interrupt(step=step))
    result, got, notes = resumed(tmp_path / "cut") if step >= 4 else (*whole(tmp_path / "cut"), [])
    assert same(got, expected)
    assert [row["loss"] for row in result.history] == [row["loss"] for row in first.history]
    assert result.passes == first.passes
    assert notes == ([f"resumed after epoch {step // 4} of 3"] if step >= 4 else [])
    assert len(result.history) == 3


def test_interrupted_again_and_again(tmp_path):
    _, expected = whole(tmp_path / "whole")
    for epoch in (1, 2, 3):
        interrupted(tmp_path / "cut", Interrupt(epoch=epoch))
    result, got, _ = resumed(tmp_path / "cut")
    assert same(got, expected)
    assert result.seconds == pytest.approx(sum(row["seconds"] for row in result.history))


def test_attack_with_its_own_generator_resumes_exactly(tmp_path):
    def loss():
        return AdversarialTraining(attack=PGD(eps=0.1, steps=1, generator=torch.Generator().manual_seed(4)))

    _, expected = whole(tmp_path / "whole", loss())
    interrupted(tmp_path / "cut", Interrupt(step=6), loss())
    _, got, _ = resumed(tmp_path / "cut", loss())
    assert same(got, expected)


@pytest.mark.parametrize("step", [2, 6, 11])
def test_the_state_of_sora_is_reset_and_resumes_exactly(tmp_path, step):
    loss = SORA(eps=0.1)
    _, expected = whole(tmp_path / "whole", loss)
    state = loss.state.state_dict()
    assert state != SORA().state.state_dict()
    interrupted(tmp_path / "cut", Interrupt(step=step), loss)  # which begins with the state of another training
    other = SORA(eps=0.1)
    _, got, _ = resumed(tmp_path / "cut", other) if step >= 4 else (*whole(tmp_path / "cut", other), [])
    assert same(got, expected) and other.state.state_dict() == state


def test_sgd_with_momentum_and_schedule_resumes_exactly(tmp_path):
    config = dataclasses.replace(CONFIG, optimizer="sgd", lr=0.1, schedule="step", channels_last=True)
    _, expected = whole(tmp_path / "whole", config=config)
    interrupted(tmp_path / "cut", Interrupt(step=9), config=config)
    _, got, _ = resumed(tmp_path / "cut", config=config)
    assert same(got, expected)


@pytest.mark.parametrize("where", ["while saving", "before renaming", "while dropping the old one"])
def test_interrupted_in_a_checkpoint(tmp_path, monkeypatch, where):
    _, expected = whole(tmp_path / "whole")
    with monkeypatch.context() as patch:
        if where == "while saving":
            real = checkpoint.save_model

            def half(model, path):
                real(model, path)
                if path.endswith("0002.partial/model.safetensors"):
                    os.truncate(path, 20)
                    raise KeyboardInterrupt

            patch.setattr(checkpoint, "save_model", half)
        elif where == "before renaming":
            real_replace = os.replace

            def replace(source, target):
                if str(target).endswith("checkpoint-0002"):
                    raise KeyboardInterrupt
                real_replace(source, target)

            patch.setattr(checkpoint.os, "replace", replace)
        else:

            def rmtree(path, **kwargs):
                if str(path).endswith("checkpoint-0001"):
                    (path / "model.safetensors").unlink()
                    raise KeyboardInterrupt

            patch.setattr(checkpoint.shutil, "rmtree", rmtree)
        interrupted(tmp_path / "cut", Progress())
    _, got, notes = resumed(tmp_path / "cut")
    assert same(got, expected)
    assert notes == [f"resumed after epoch {3 if 'old one' in where else 1} of 3"]
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "cut")][-2:] == ["checkpoint-0002", "checkpoint-0003"]
    assert not list((tmp_path / "cut").glob("*.partial"))


def test_interrupted_after_the_last_epoch(tmp_path, monkeypatch):
    _, expected = whole(tmp_path / "whole")
    with monkeypatch.context() as patch:

        def stop(model, path):
            raise KeyboardInterrupt

        patch.setattr(checkpoint, "save_weights", stop)
        interrupted(tmp_path / "cut", Progress())
    result, got, _ = resumed(tmp_path / "cut")
    assert same(got, expected)
    assert len(result.history) == 3


def test_finished_run_is_loaded_not_repeated(tmp_path):
    first, expected = whole(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-0003")
    again, got, notes = resumed(tmp_path)
    assert again == first
    assert same(got, expected)
    assert notes == ["trained already"]


def test_fresh_start(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    _, expected = whole(tmp_path)
    other = dataclasses.replace(CONFIG, seed=6)
    model = make_model()
    train(model, PGD_LOSS, make_data(), other, tmp_path, resume=False)
    assert not same(weights(model), expected)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Loss):
    """A user's loss, of the three arguments that the base class has."""

    def __call__(self, model, x, y):
        return CrossEntropy()(model, x, y)


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, flip=True)], ids=["plain", "flips"])
def test_a_loss_of_three_arguments(tmp_path, config):
    _, expected = whole(tmp_path / "known", CrossEntropy(), config)
    _, found = whole(tmp_path / "own", Own(), config)
    assert same(expected, found)


def test_interruption_leaves_the_model_unwrapped(tmp_path):
    config = dataclasses.replace(CONFIG, precision="bf16")
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        train(model, PGD_LOSS, make_data(), config, tmp_path, progress=Interrupt(step=5))
    assert not hasattr(model.forward, "__wrapped__"), "still under autocast"
    result, _, _ = resumed(tmp_path, config=config)
    assert len(result.history) == 3


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"config": dataclasses.replace(CONFIG, epochs=7)}, "config.epochs was 3, now 7"),
        (
            {"config": dataclasses.replace(CONFIG, lr=0.5, seed=1)},
            "config.lr was 0.001, now 0.5; config.seed was 5, now 1",
        ),
        ({"loss": PGD_LOSS.with_eps(0.3)}, r"loss.attack.eps was 0.1, now 0.3"),
        ({"loss": CrossEntropy()}, "loss.type was AdversarialTraining, now CrossEntropy"),
        ({"data": make_data(30)}, "data.samples was 40, now 30"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 4))}, "model.parameters was 196, now 260"),
    ],
)
def test_run_with_other_options_is_refused(tmp_path, change, text):
    interrupted(tmp_path, Interrupt(step=5))
    arguments = {"model": make_model(), "loss": PGD_LOSS, "data": make_data(), "config": CONFIG, **change}
    with pytest.raises(RunFolderError, match=text) as caught:
        train(**arguments, run_dir=tmp_path)
    assert "use another folder or --fresh" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_run_folder(tmp_path):
    whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(RunFolderError, match=r"model\.safetensors cannot be loaded"):
        resumed(tmp_path)
    (tmp_path / "options.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"options\.json is damaged"):
        resumed(tmp_path)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot be written: Not a directory"):
        whole(tmp_path / "file" / "run")


def test_diverged_training_says_so(tmp_path):
    with pytest.raises(UserError, match=r"the loss became .* in epoch 1; a smaller lr may help"):
        whole(tmp_path, CrossEntropy(), TrainConfig(epochs=2, batch_size=10, lr=1e30, optimizer="sgd"))
    assert not checkpoint.checkpoints(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"optimizer": "lbfgs"},
        {"schedule": "cos"},
        {"precision": "int8"},
        {"weight_decay": -1.0},
        {"momentum": float("inf")},
        {"eps_ramp_epochs": -1},
        {"seed": -1},
    ],
)
def test_wrong_options(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        TrainConfig(**wrong)


def test_learning_rate_schedules():
    assert TrainConfig(lr=1.0).lr_at(0.9) == 1.0
    assert TrainConfig(lr=1.0, schedule="cosine").lr_at(0.5) == pytest.approx(0.5)
    assert [TrainConfig(lr=1.0, schedule="step").lr_at(t) for t in (0.49, 0.5, 0.75)] == pytest.approx([1, 0.1, 0.01])


def test_augmented_training_moves_every_loss_alike(tmp_path):
    """Crops change the batch that a loss without a memory sees, and resume all the same."""
    _, plain = whole(tmp_path / "plain", CrossEntropy())
    _, moved = whole(tmp_path / "moved", CrossEntropy(), CROPS)
    assert not same(plain, moved)
    interrupted(tmp_path / "cut", Interrupt(step=6), CrossEntropy(), CROPS)
    assert same(moved, resumed(tmp_path / "cut", CrossEntropy(), CROPS)[1])


def test_a_loss_that_takes_differences_refuses_bf16_before_it_trains(tmp_path):
    model = make_model()
    before = weights(model)
    with pytest.raises(TypeError, match=r"CURE takes differences .* got autocast to torch\.bfloat16"):
        train(model, CURE(), make_data(), dataclasses.replace(CONFIG, precision="bf16"), tmp_path)
    assert same(weights(model), before)


def test_milestones_and_cycles_are_the_papers():
    def rates(steps=10, **options):
        config = TrainConfig(lr=1.0, **options)
        return [config.lr_at(i / (steps * config.epochs)) for i in range(steps * config.epochs)]

    cifar = rates(epochs=60, schedule="milestones", milestones=(50,))  # SCORPIO: a tenth after epoch 50 of 60
    assert cifar[499:501] == pytest.approx([1.0, 0.1]) and set(cifar) == {1.0, 0.1}
    svhn = rates(epochs=40, schedule="milestones", milestones=(8, 16, 24, 32))
    assert [svhn[80 * k] for k in range(5)] == pytest.approx([0.1**k for k in range(5)])
    assert [svhn[80 * k - 1] for k in range(1, 5)] == pytest.approx([0.1 ** (k - 1) for k in range(1, 5)])
    half = rates(epochs=4, schedule="milestones", milestones=(1, 3), lr_factor=0.5)
    assert half[::10] == pytest.approx([1.0, 0.5, 0.5, 0.25])
    for steps in (3, 7, 11, 13):  # a milestone is met in its first step, however the shares round
        assert rates(steps, epochs=49, schedule="milestones", milestones=(47,)).index(pytest.approx(0.1)) == 47 * steps
    cyclic, once = rates(epochs=6, schedule="cyclic", cycle_epochs=2), rates(epochs=2, schedule="triangle")
    assert cyclic == pytest.approx(once * 3, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"milestones": (3,)}, "milestones come with schedule milestones"),
        ({"schedule": "milestones"}, "milestones come with schedule milestones"),
        ({"schedule": "milestones", "milestones": (15,)}, r"must rise and lie in 1..14, got \(15,\)"),
        ({"schedule": "milestones", "milestones": (5, 5)}, "must rise and lie in"),
        ({"schedule": "milestones", "milestones": (5,), "lr_factor": 0.0}, "lr_factor must be positive"),
        ({"schedule": "cyclic"}, "cycle_epochs of at least 1 come with schedule cyclic"),
        ({"cycle_epochs": 3}, "cycle_epochs of at least 1 come with schedule cyclic, got 3 and constant"),
    ],
)
def test_mistakes_of_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**options)
