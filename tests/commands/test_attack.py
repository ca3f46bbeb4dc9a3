"""`soatfast attack`: the examples it writes, its figures, Ctrl-C, mistakes."""

import dataclasses
import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from soatfast.attacks import PGD
from soatfast.commands import main as cli
from soatfast.commands.attack import AttackConfig, run
from soatfast.runs.progress import Progress
from soatfast.train import SmallCNN, load_data
from soatfast.train.subject import Subject


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(data, weights): forty images of three classes, and a network that is not trained."""
    folder = tmp_path_factory.mktemp("attack")
    rng = np.random.default_rng(0)
    np.savez(folder / "own.npz", x=rng.random((40, 8, 8)), y=np.arange(40) % 3)
    torch.manual_seed(0)
    save_model(SmallCNN(1, 3, size=8), str(folder / "w.safetensors"))
    return f"npz:{folder / 'own.npz'}", folder / "w.safetensors"


def words(folder, made, *more):
    subject = ["--data", made[0], "--weights", str(made[1]), "--split", "train"]
    return ["attack", "--run-dir", str(folder), *subject, "--batch-size", "12", *more]


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: "), error
    return error


def read(folder):
    with np.load(folder / "adversarial.npz", allow_pickle=False) as file:
        return dict(file)


def test_examples_and_figures(tmp_path, made, capsys):
    assert cli.main(words(tmp_path, made, "--eps", "0.1")) == 0
    out = capsys.readouterr().out
    assert "[3/3] PGD-40, samples 25 to 31 of 31" in out and "| PGD-40 |" in out
    data = load_data(made[0])
    x, y = data.train.tensors
    found = read(tmp_path)
    assert found["x_adv"].shape == tuple(x.shape) and found["x_adv"].dtype == np.float32
    assert np.array_equal(found["y"], y.numpy()) and found["classes"] == 3
    assert np.abs(found["x_adv"] - x.numpy()).max() <= 0.1 + 1e-6
    model = Subject(made[0], weights=made[1]).make_model(data).eval()
    with torch.no_grad():
        clean, attacked = (model(t).argmax(1) for t in (x, torch.from_numpy(found["x_adv"])))
    assert np.array_equal(found["prediction_clean"], clean) and np.array_equal(found["prediction"], attacked)
    results = json.loads((tmp_path / "attack.json").read_text())
    assert results["clean"] == pytest.approx(float((clean == y).float().mean()))
    assert results["attacked"] == pytest.approx(float(((clean == y) & (attacked == y)).float().mean()))
    assert results["seconds"] > 0 and 0.09 < results["largest_distance"] <= 0.1 + 1e-6
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["passes"] == results["passes"]
    assert (options["passes"]["forward"], options["passes"]["forward_samples"]) == (3 * 40, 31 * 40)
    assert options["seed"] == 0 and options["versions"]["torch"] == torch.__version__
    assert options["attack"]["steps"] == 40
    assert not (tmp_path / "parts").exists()


def test_again_other_options_and_fresh(tmp_path, made, capsys):
    assert cli.main(words(tmp_path, made)) == 0
    before = (tmp_path / "adversarial.npz").stat().st_mtime_ns
    assert cli.main(words(tmp_path, made)) == 0
    assert "attacked already" in capsys.readouterr().out
    assert (tmp_path / "adversarial.npz").stat().st_mtime_ns == before
    assert cli.main(words(tmp_path, made, "--eps", "0.1")) == 1
    assert "attack.eps was 0.2, now 0.1" in one_line(capsys)
    (tmp_path / "mine.txt").write_text("")
    assert cli.main(words(tmp_path, made, "--eps", "0.1", "--fresh")) == 0
    assert (tmp_path / "mine.txt").exists()
    (tmp_path / "options.json").write_text('{"config": {}}')
    capsys.readouterr()
    assert cli.main(words(tmp_path, made, "--fresh")) == 1
    assert "does not hold an attack" in one_line(capsys)


class CtrlC(Progress):
    def __init__(self, at):
        self.at, self.stages = at, []

    def stage(self, name, index, total):
        self.stages.append(index)
        if index == self.at:
            raise KeyboardInterrupt


def test_an_interrupted_attack_goes_on_batch_by_batch(tmp_path, made, monkeypatch):
    calls = []
    real = PGD.__call__
    monkeypatch.setattr(PGD, "__call__", lambda self, *a: calls.append(1) or real(self, *a))
    subject = Subject(data=made[0], weights=made[1])
    config = AttackConfig(run_dir=tmp_path / "cut", subject=subject, split="train", batch_size=8)
    with pytest.raises(KeyboardInterrupt):
        run(config, CtrlC(at=2))
    assert len(calls) == 2
    (tmp_path / "cut" / "parts" / "000001.safetensors").write_bytes(b"half a file")
    run(config)
    assert len(calls) == 2 + 3, "whole batches are not attacked again, a damaged one is"
    run(dataclasses.replace(config, run_dir=tmp_path / "whole"))
    cut, whole = read(tmp_path / "cut"), read(tmp_path / "whole")
    assert all(np.array_equal(cut[name], whole[name]) for name in whole)


def test_ctrl_c_on_the_command_line(tmp_path, made, capsys, monkeypatch):
    from soatfast.runs import progress

    monkeypatch.setattr(progress, "make_progress", lambda console: CtrlC(at=1))
    assert cli.main(words(tmp_path, made)) == 130
    assert capsys.readouterr().err == "interrupted; the same command (without --fresh) resumes\n"
    assert len(list((tmp_path / "parts").iterdir())) == 1


@pytest.mark.parametrize(
    ("more", "samples", "forward"),
    [
        (["--attack", "fgsm"], 31, 1),
        (["--samples", "5", "pgd", "--steps", "3", "--restarts", "2"], 5, 8),
        (["--p", "1", "frank-wolfe"], 31, 4),
        (["--samples", "None", "haat", "--steps", "2"], 31, 12),
    ],
)
def test_attacks_with_their_own_options(tmp_path, made, more, samples, forward):
    assert cli.main(words(tmp_path, made, *more)) == 0
    passes = json.loads((tmp_path / "options.json").read_text())["passes"]
    assert len(read(tmp_path)["y"]) == samples and passes["forward_samples"] == samples * forward


def test_the_examples_are_data_for_another_model(tmp_path, made):
    assert cli.main(words(tmp_path / "a", made)) == 0
    spec = f"npz:{tmp_path / 'a' / 'adversarial.npz'}"
    found = load_data(spec)
    assert (len(found.train), len(found.test), found.classes) == (0, 31, 3)
    line = ["attack", "--run-dir", str(tmp_path / "b"), "--data", spec, "--weights", str(made[1]), "fgsm"]
    assert cli.main(line) == 0
    before, after = (json.loads((tmp_path / name / "attack.json").read_text()) for name in "ab")
    assert after["clean"] >= before["attacked"], "a wrong sample may have become right"


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--attack", "clean"], "there is no attack 'clean'; the nearest are"),
        (["--attack", "fgsm", "pgd"], "either --attack fgsm or PGD at the end, got both"),
        (["--samples", "0"], "must be at least 1"),
        (["--p", "3"], "p must be 2 or inf"),
        (["--p", "3", "pgd"], "p must be 1, 2 or math.inf for PGD"),
        (["--split", "both"], "split"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path, made, capsys, more, text):
    with pytest.raises(SystemExit) as stop:
        cli.main(words(tmp_path, made, *more))
    assert stop.value.code == 2
    assert text in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_weights_are_asked_for(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["attack"])
    assert stop.value.code == 2
    assert "weights are needed" in capsys.readouterr().err


def test_what_a_user_can_mend_ends_in_one_line(tmp_path, made, capsys, monkeypatch):
    assert cli.main(words(tmp_path, (made[0], tmp_path / "none.pt"))) == 1
    assert "there is no weights file" in one_line(capsys)
    (tmp_path / "file").write_text("")
    assert cli.main(words(tmp_path / "file" / "run", made)) == 1
    assert "cannot be written" in one_line(capsys)
    np.savez(tmp_path / "tests.npz", x_test=np.zeros((2, 8, 8)), y_test=np.arange(2), classes=3)
    assert cli.main(words(tmp_path / "run", (f"npz:{tmp_path / 'tests.npz'}", made[1]))) == 1
    assert "has no samples in the split train" in one_line(capsys)
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    assert cli.main(words(tmp_path / "run", made, "--attack", "autoattack")) == 1
    assert "pip install --no-deps torchattacks" in one_line(capsys)
