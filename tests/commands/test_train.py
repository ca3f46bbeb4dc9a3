"""`soatfast train`: methods and losses by name, the run folder, own models, data and weights, Ctrl-C, mistakes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from soatfast.commands import main as cli
from soatfast.commands.train import TrainingConfig, run
from soatfast.train import TrainConfig
from soatfast.train.subject import Subject
from tests.commands.interrupted import interrupted_and_again

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty images of two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = (rng.random((40, 8, 8)) * 0.4 + 0.6 * y[:, None, None]).astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "own.npz"
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


def words(folder, data, *more, epochs=2):
    return ["train", "--run-dir", str(folder), "--data", data, "--epochs", str(epochs), "--batch-size", "8", *more]


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: "), error
    return error


def test_the_run_folder_names_what_made_it(tmp_path, data, capsys):
    assert cli.main(words(tmp_path, data, "--eps", "0.1", "--seed", "3")) == 0
    out = capsys.readouterr().out
    assert "PGD-10 training: epoch 2/2  loss" in out and "| PGD-10 training |" in out
    assert f"written to {tmp_path}: model.safetensors" in out
    options = json.loads((tmp_path / "options.json").read_text())
    assert options["config"]["seed"] == 3 and options["config"]["epochs"] == 2
    assert options["loss"]["attack"]["eps"] == 0.1
    assert options["about"]["command"] == "train" and options["about"]["model"] == "small-cnn"
    assert options["versions"]["torch"] == torch.__version__
    assert (options["passes"]["forward"], options["passes"]["backward_input"]) == (11, 10)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["passes"] == options["passes"] and len(result["history"]) == 2
    assert json.loads((tmp_path / "accuracy.json").read_text())["samples"] == 8


def test_again_other_options_and_fresh(tmp_path, data, capsys):
    assert cli.main(words(tmp_path, data)) == 0
    assert cli.main(words(tmp_path, data)) == 0
    assert "trained already" in capsys.readouterr().out
    options = json.loads((tmp_path / "options.json").read_text())
    options["versions"]["torch"] = "2.11.0"
    (tmp_path / "options.json").write_text(json.dumps(options))
    assert cli.main(words(tmp_path, data)) == 0, "another version is no other run"
    capsys.readouterr()
    assert cli.main(words(tmp_path, data, "--eps", "0.1")) == 1
    assert "loss.attack.eps was 0.2, now 0.1" in one_line(capsys)
    assert cli.main(words(tmp_path, data, "--eps", "0.1", "--fresh")) == 0
    (tmp_path / "options.json").write_text("[1]")
    capsys.readouterr()
    assert cli.main(words(tmp_path, data)) == 1
    assert "options.json is damaged" in one_line(capsys)
    (tmp_path / "options.json").write_text("{")
    assert cli.main(words(tmp_path, data)) == 1
    assert "options.json is damaged" in one_line(capsys)
    assert cli.main(words(tmp_path, data, "--fresh")) == 0


@pytest.mark.parametrize(
    ("more", "passes"),
    [
        (["cross-entropy"], (1, 0, 1)),
        (["scorpio", "--steps", "2", "--strength", "1", "--no-recycle"], (4, 3, 1)),
        (["trades", "--steps", "3", "--mode", "keep"], (5, 3, 1)),
        (["--p", "1", "pgd", "--steps", "3"], (4, 3, 1)),
        (["frank-wolfe", "--steps", "2", "--scheme", "cd"], (4, 3, 1)),
        (["--method", "replay"], (2, 1, 1)),
        (["--method", "fgsm-pgi"], (2, 1, 1)),
        (["--method", "elle", "--average", "0.9"], (3, 1, 1)),
        (["nfgsm", "--noise", "1.5"], (2, 1, 1)),
        (["free", "--replays", "2"], (1, 0, 1)),
        (["--method", "pgd4", "--engine", "bf16"], (5, 4, 1)),
        (["scorpio", "--engine", "bf16+channels_last"], (6, 4, 1)),
    ],
)
def test_methods_losses_and_attacks_with_their_own_options(tmp_path, data, more, passes):
    assert cli.main(words(tmp_path, data, *more, epochs=1)) == 0
    found = json.loads((tmp_path / "options.json").read_text())["passes"]
    assert tuple(found[name] for name in ("forward", "backward_input", "backward_parameters")) == passes


def test_own_model_weights_and_imagefolder(tmp_path, data, capsys, monkeypatch):
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    Path("cli_net.py").write_text(
        "from torch import nn\n"
        "def make(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, classes))\n"
    )
    assert cli.main(words("first", data, "--model", "cli_net:make", "scorpio")) == 0
    weights = "first/model.safetensors"
    start = load_file(weights)
    assert cli.main(words("second", data, "--model", "cli_net:make", "--weights", weights, "--lr", "1e-9")) == 0
    end = load_file("second/model.safetensors")
    assert all(torch.allclose(start[f"2.{name}"], end[f"2.{name}"], atol=1e-6) for name in ("weight", "bias"))
    options = json.loads(Path("second/options.json").read_text())
    assert options["loss"]["attack"]["mode"] == "eval" and len(options["about"]["weights"]) == 64
    capsys.readouterr()
    assert cli.main(words("second", data, "--model", "cli_net:make", "--lr", "1e-9")) == 1
    assert "about.weights was" in one_line(capsys)
    assert cli.main(words("third", data, "--weights", weights)) == 1
    assert "does not fit SmallCNN: missing: features.0.weight" in one_line(capsys)
    for i in range(20):
        Path(f"pictures/{i % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 200 * (i % 2)).save(f"pictures/{i % 2}/{i}.png")
    assert cli.main(words("fourth", "imagefolder:pictures", "--model", "cli_net:make", "--method", "standard")) == 0
    sys.modules.pop("cli_net", None)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--method", "magic"], "there is no method 'magic'; the nearest are"),
        (["--method", "pgd4", "pgd"], "either --method pgd4 or PGD at the end"),
        (["--p", "1"], "p must be 2 or inf, got 1"),
        (["--eps", "2"], "at most 1, got 2"),
        (["--train-samples", "0"], "train_samples must be at least 1"),
        (["--engine", "fast"], "engine must be"),
        (["--method", "cure", "--engine", "bf16"], "CURE has no attack whose passes"),
        (["--engine", "bf16", "haat"], "need full precision"),
        (["--width", "0"], "width must be at least 1"),
        (["pgd", "--steps", "0"], "steps must be at least 1"),
        (["--steps", "3"], "Unrecognized"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path, data, capsys, more, text):
    with pytest.raises(SystemExit) as stop:
        cli.main(words(tmp_path, data, *more))
    assert stop.value.code == 2
    assert text in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--weights", "none.safetensors"], "there is no weights file none.safetensors"),
        (["--model", "no_such_module:Net"], "there is no module no_such_module"),
        (["--model", "vgg"], "model must be one of small-cnn"),
        (["--data", "npz:none.npz"], "there is no data file none.npz"),
        (["--data", "imagefolder:none"], "there is no folder none"),
        (["--data", "tapes"], "npz:PATH, imagefolder:PATH, got 'tapes'"),
    ],
)
def test_what_a_user_can_mend_ends_in_one_line(tmp_path, data, capsys, more, text):
    assert cli.main(words(tmp_path, data, *more)) == 1
    assert text in one_line(capsys)


def test_folders(tmp_path, data, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(words(tmp_path / "file" / "run", data)) == 1
    assert "cannot be written: Not a directory" in one_line(capsys)
    with pytest.raises(ValueError, match="the weights to start from lie in run_dir itself"):
        TrainingConfig(run_dir=tmp_path, subject=Subject(weights=tmp_path / "model.safetensors"))


def test_help_names_the_options(capsys):
    for line, options in (
        (["train", "--help"], ["--model", "--weights", "--data", "--epochs", "--fresh", "scorpio", "frank-wolfe"]),
        (["train", "scorpio", "--help"], ["--strength", "--in-box", "--scheme"]),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(line)
        assert stop.value.code == 0
        out = capsys.readouterr().out
        assert all(option in out for option in options)


def test_ctrl_c_then_the_same_command_resumes(tmp_path, data):
    again = interrupted_and_again(words(tmp_path / "cut", data, epochs=60), tmp_path, "epoch  1/60")
    assert "resumed after epoch" in again and "epoch 60/60" in again
    config = TrainingConfig(
        run_dir=tmp_path / "whole",
        subject=Subject(data=data),
        train=TrainConfig(epochs=60, batch_size=8),
    )
    run(config)
    cut, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], whole[name]) for name in whole), "resuming changed the weights"
    options = json.loads((tmp_path / "cut" / "options.json").read_text())
    assert options["passes"]["forward"] == 11
