"""--resume and --fresh of every command that takes long."""

import shutil

import pytest

from soatfast.commands import main as cli
from soatfast.runs.errors import UserError
from soatfast.runs.resume import Start

COMMANDS = ("train", "attack", "evaluate", "compare", "curvature", "explain", "bench")


def words(command, folder, *more):
    needed = ["--model", "tests.nets:relu_net"] if command in ("attack", "evaluate") else []
    return [command, "--run-dir", str(folder), *needed, *more]


@pytest.mark.parametrize("command", COMMANDS)
def test_resume_where_nothing_was_begun(command, tmp_path, capsys):
    folder = tmp_path / "run"
    assert cli.main(words(command, folder, "--resume")) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: --resume: {folder} holds no run to resume (there is no ")
    assert error.endswith("the same command without --resume starts one\n") and error.count("\n") == 1
    assert not folder.exists(), "a mistyped folder is not made"


@pytest.mark.parametrize("command", COMMANDS)
def test_both_flags(command, tmp_path, capsys):
    assert cli.main(words(command, tmp_path / "run", "--resume", "--fresh")) == 1
    error = capsys.readouterr().err
    assert error == "error: expected --resume, which continues a run, or --fresh, which starts again; got both\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_both_and_no_negation(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert "--resume " in out and "--fresh " in out and "Fail unless run_dir holds a run to resume" in out
    assert "--no-resume" not in out and "--no-fresh" not in out


def test_traces(tmp_path):
    for start in (Start(), Start(fresh=True)):
        start.check_start(tmp_path, "options.json")
    with pytest.raises(UserError, match=r"there is no a\.json or \*/b\.json"):
        Start(resume=True).check_start(tmp_path, "a.json", "*/b.json")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.json").write_text("")
    Start(resume=True).check_start(tmp_path, "a.json", "*/b.json")


def test_resume_goes_on_with_a_training_and_a_comparison(tmp_path, capsys):
    pytest.importorskip("sklearn")
    tiny = ["--data", "digits8", "--train-samples", "40", "--test-samples", "20", "--batch-size", "20", "--epochs"]
    for command, methods in (("train", "--method"), ("compare", "--methods")):
        folder = tmp_path / command
        line = words(command, folder, *tiny, "1", methods, "standard", "--width", "4")
        assert cli.main(line) == 0
        for result in folder.rglob("result.json"):
            result.unlink()  # as if it had been interrupted behind its only epoch
        capsys.readouterr()
        assert cli.main([*line, "--resume"]) == 0
        assert "resumed after epoch 1" in capsys.readouterr().out
        shutil.rmtree(folder)
        assert cli.main([*line, "--resume"]) == 1
