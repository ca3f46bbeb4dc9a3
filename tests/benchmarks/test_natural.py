"""The natural-image studies on 48 tiny images: parts, tables, paired differences, resuming, and bad input."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from benchmarks import natural, speedrun, study_cifar
from benchmarks.natural import Found, Options, Part
from soatfast.runs.errors import RunFolderError, UserError
from soatfast.train import TrainConfig, make_model

SMALL = TrainConfig(epochs=1, batch_size=8, lr=0.05, optimizer="sgd", average=0.9, eps_ramp_epochs=0, crop_padding=1)


@pytest.fixture
def options(tmp_path, monkeypatch):
    """A class tells by the brightness; the recipe is a small one."""
    monkeypatch.setattr(natural, "fast_recipe", lambda: SMALL)
    rng = np.random.default_rng(0)
    y = np.arange(48) % 4
    x = (rng.random((48, 3, 9, 9)) * 0.2 + 0.25 * y[:, None, None, None]).astype(np.float32).clip(0, 1)
    path = tmp_path / "tiny.npz"
    np.savez(path, x_train=x[:32], y_train=y[:32], x_test=x[32:], y_test=y[32:])
    return Options(f"npz:{path}", tmp_path / "run", held_out=16)


@pytest.mark.parametrize("method", ["replay-wide", "n-fgsm", "fgsm-pgi", "pgd2"])
def test_a_part_is_trained_evaluated_and_then_only_read(options, method, monkeypatch):
    part = Part(method, 2, samples=32, width=4)
    (found,) = natural.run(options, [part])
    assert set(found.correct) == {"clean", "pgd50"} and found.correct["clean"].shape == (16,)
    assert (found.correct["pgd50"] <= found.correct["clean"]).all() and found.seconds > 0
    assert found.steps == 8 and found.total_passes == 8 * sum(found.passes[name] for name in list(found.passes)[:3])
    folder = options.run_dir / part.name
    assert (folder / "averaged.safetensors").is_file() and (folder / "parts" / "pgd50.safetensors").is_file()
    monkeypatch.setattr(natural, "accuracy", None)  # nothing is measured again
    (again,) = natural.run(options, [part])
    assert torch.equal(again.correct["pgd50"], found.correct["pgd50"]) and again.seconds == found.seconds


def test_the_column_of_two_apgd_attacks(options):
    """As one after the other by hand; the second sees only those that the first left."""
    options = dataclasses.replace(options, apgd=12)
    part = Part("fgsm", 1, samples=32, width=4)
    (found,) = natural.run(options, [part])
    data = natural.load_data(options.data)
    model = natural.make_model("fast", data.shape, data.classes, 4)
    natural.load_weights(model, options.run_dir / part.name / natural.AVERAGED)
    x, y = data.first(test=12).test.tensors
    eps = natural.EPS[math.inf]
    left = model.eval()(x).argmax(1) == y
    for attack in (natural.APGD(eps=eps), natural.TargetedAPGD(eps=eps, targets=3)):
        x_adv = attack(model, x, y)
        assert (x_adv - x).abs().max() <= eps * (1 + 1e-5)
        left &= model(x_adv).argmax(1) == y
    assert torch.equal(found.correct["apgd"], left)
    assert "with targeted APGD" in natural.table([found], ["one"])


def test_the_radius_is_that_of_the_training_alone(options, monkeypatch):
    tasks = []
    method = natural.METHODS["fgsm"]
    monkeypatch.setitem(
        natural.METHODS, "fgsm", dataclasses.replace(method, make=lambda t: tasks.append(t) or method.make(t))
    )
    natural.run(options, [Part("fgsm", 1, samples=32, radius=1.5, width=4)])
    assert [t.eps for t in tasks] == [1.5 * 8 / 255]


def test_a_folder_of_other_options_is_refused(options, monkeypatch):
    natural.run(options, [Part("fgsm", 1, samples=32, width=4)])
    monkeypatch.setattr(natural, "fast_recipe", lambda: dataclasses.replace(SMALL, lr=0.1))
    with pytest.raises(RunFolderError, match=r"lr was 0.05, now 0.1"):
        natural.run(options, [Part("fgsm", 1, samples=32, width=4)])


def test_too_few_images_are_said_before_anything_is_trained(options):
    with pytest.raises(UserError, match="expected 50000 training and 16 held-out images, got 32 and 16"):
        natural.run(options, [Part("fgsm", 1)])
    with pytest.raises(UserError, match="held_out must be at least 1, got 0"):
        Options(held_out=0)
    with pytest.raises(UserError, match=r"settings are few, full, .*; got magic"):
        study_cifar.Study(only=("magic",))
    with pytest.raises(UserError, match=r"methods are replay-wide, .* and ingredients; got magic"):
        speedrun.Speedrun(only=("magic",))


def test_parts_of_a_study_have_folders_of_their_own():
    for parts in [setting.parts for setting in study_cifar.SETTINGS.values()] + [tuple(speedrun.INGREDIENTS.values())]:
        assert len({part.name for part in parts}) == len(parts)
    assert Part("pgd10", 3, p=2.0, change=(("average", 0.0),)).name == "pgd10-1eps-3epochs-50000-seed0-L2-average=0.0"


def test_paired_differences_against_plain_sums():
    rng = np.random.default_rng(1)
    a, b = (torch.from_numpy(rng.random((3, 50)) < share) for share in (0.6, 0.4))
    mean, error = natural.paired(list(a), list(b))
    difference = a.double().numpy().mean(0) - b.double().numpy().mean(0)
    assert mean == pytest.approx(100 * difference.mean())
    assert error == pytest.approx(100 * difference.std(ddof=1) / math.sqrt(50))


def made(method, seconds, share, seed=0, radius=1.0):
    correct = {name: torch.arange(10) < 10 * value for name, value in (("clean", 0.8), ("pgd50", share))}
    passes = {"forward": 2, "backward_input": 1, "backward_parameters": 1}
    return Found(Part(method, 4, seed, radius), seconds, passes, 100, correct)


def test_tables_goals_and_curves(tmp_path):
    found = [made("replay-wide", 100, 0.3), made("replay-wide", 200, 0.4), made("n-fgsm", 100, 0.2)]
    assert natural.table(found, ["a", "b", "c"]).splitlines()[2] == "| a | 4 | 4 | 100 | 80.0 | 30.0 | – | – |"
    rows = speedrun.goals(found).splitlines()[2:]
    assert rows == [
        "| FW replay, 1 step, at 1.25 eps | 100 | 200 | 200 |",
        "| N-FGSM | not reached | not reached | not reached |",
    ]
    text = study_cifar.section("full", found)
    assert "FW replay, 1 step, at 1.25 eps against N-FGSM at 1 eps: +15.0 ± 10.7 points" in text
    natural.curves(tmp_path / "a.png", {"one": found, "two": found})
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_the_studies_run_from_end_to_end(options, monkeypatch):
    monkeypatch.setattr(study_cifar, "SETTINGS", {"few": study_cifar.Setting("a", (Part("replay-wide", 9, width=4),))})
    monkeypatch.setattr(speedrun, "LENGTHS", {"n-fgsm": (1,)})
    monkeypatch.setattr(natural, "make_model", lambda name, shape, classes, width: make_model(name, shape, classes, 4))
    common = {"data": options.data, "held_out": 16, "epochs": 1, "train_samples": 32}
    study_cifar.study(study_cifar.Study(run_dir=options.run_dir / "a", **common))
    assert (options.run_dir / "a" / "few.md").is_file() and (options.run_dir / "a" / "study.png").is_file()
    speedrun.speedrun(speedrun.Speedrun(run_dir=options.run_dir / "b", only=("n-fgsm",), **common))
    assert "N-FGSM" in (options.run_dir / "b" / "speedrun.md").read_text()
