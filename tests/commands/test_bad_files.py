"""Every file of a run folder missing, empty, cut, of another shape, a folder or a dangling link: one line."""

import json
import shutil

import numpy as np
import pytest

from soatfast.commands import main as cli
from tests.disk import leftovers

HOW = ("missing", "empty", "cut", "list", "object", "flipped", "folder", "link")


def spoil(path, how):
    content = path.read_bytes()
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif how == "list":
        path.write_text("[1]")
    elif how == "object":
        path.write_text('{"history": [{}], "samples": [], "table": 3, "config": {"methods": 1}}')
    elif how == "flipped":
        path.write_bytes(bytes(255 - b for b in content))
    elif how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to("/nonexistent/of/somebody/else")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Finished folders of each command that a later run reads."""
    root = tmp_path_factory.mktemp("whole")
    rng = np.random.default_rng(0)
    np.savez(root / "own.npz", x=rng.random((40, 8, 8)).astype(np.float32), y=np.arange(40) % 2)
    for words in commands(root).values():
        assert cli.main(words) == 0
    return root


def commands(root):
    data = ["--data", f"npz:{root / 'own.npz'}"]
    few = ["--epochs", "1", "--batch-size", "8"]
    weights = ["--weights", str(root / "train" / "model.safetensors")]
    return {
        "train": ["train", "--run-dir", str(root / "train"), *data, *few, "--method", "standard"],
        "attack": ["attack", "--run-dir", str(root / "attack"), *data, *weights, "--attack", "fgsm"],
        "evaluate": ["evaluate", "--run-dir", str(root / "evaluate"), *data, *weights, "--steps", "1"],
        "compare": [
            *("compare", "--run-dir", str(root / "compare"), *data, *few),
            *("--methods", "standard", "pgd4", "--attacks", "clean", "pgd40"),
        ],
        "curvature": ["curvature", "--run-dir", str(root / "compare"), "--samples", "4", "--max-dim", "2"],
        "report": ["report", "--run-dir", str(root / "compare")],
    }


FILES = {
    "train": ["options.json", "result.json", "model.safetensors", "checkpoint-0001/manifest.json"],
    "attack": ["options.json", "attack.json", "adversarial.npz"],
    "evaluate": ["evaluation.npz", "evaluation.json"],
    "curvature": ["results.json", "curvature.json", "standard/seed-0/model.safetensors"],
    "report": ["results.json", "curvature.json", "standard/seed-0/result.json", "standard/seed-0/options.json"],
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("command", FILES)
def test_one_line_or_a_result(whole, tmp_path, monkeypatch, capsys, command, how):
    folder = {"curvature": "compare", "report": "compare"}.get(command, command)
    words = [str(tmp_path / folder) if word == str(whole / folder) else word for word in commands(whole)[command]]
    for name in FILES[command]:
        shutil.rmtree(tmp_path / folder, ignore_errors=True)
        shutil.copytree(whole / folder, tmp_path / folder)
        spoil(tmp_path / folder / name, how)
        capsys.readouterr()
        status = cli.main(words)
        error = capsys.readouterr().err
        assert (status, error.count("\n")) in ((0, 0), (1, 1)), (name, error)
        assert status == 0 or error.startswith("error: ") or name in error, (name, error)
        assert not [left for left in leftovers(tmp_path / folder) if left != name.split("/")[-1]]


def test_a_damaged_method_costs_no_other(whole, tmp_path, capsys):
    shutil.copytree(whole / "compare", tmp_path / "compare")
    words = [w.replace(str(whole / "compare"), str(tmp_path / "compare")) for w in commands(whole)["compare"]]
    spoil(tmp_path / "compare" / "standard" / "seed-0" / "result.json", "list")
    (tmp_path / "compare" / "results.json").unlink()
    assert cli.main(words) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "standard/seed-0/result.json is not what a training writes" in error
    assert "results.md has the other methods" in error
    found = json.loads((tmp_path / "compare" / "results.json").read_text())
    assert list(found["methods"]) == found["config"]["methods"] == ["pgd4"]


def test_a_damaged_result_costs_a_report_its_part(whole, tmp_path, capsys):
    shutil.copytree(whole / "compare", tmp_path / "compare")
    spoil(tmp_path / "compare" / "standard" / "seed-0" / "result.json", "cut")
    assert cli.main(["report", "--run-dir", str(tmp_path / "compare")]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "seed-0/result.json is damaged" in error and "shows all the rest" in error
    page = (tmp_path / "compare" / "report.html").read_text()
    assert "Left out: " in page and "PGD-4" in page and "Curvature" in page


def test_code_that_a_folder_names_is_run_only_where_it_is_trusted(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "compare"
    shutil.copytree(whole / "compare", folder)
    results = json.loads((folder / "results.json").read_text())
    results["config"]["model"] = "theirs:make"
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "theirs.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    monkeypatch.chdir(folder)
    for command in ("curvature", "explain"):
        assert cli.main([command, "--run-dir", "."]) == 1
        assert "names the model theirs:make, whose code would run; --trust allows it" in capsys.readouterr().err
        assert not (folder / "ran").exists()
    assert cli.main(["curvature", "--run-dir", ".", "--trust"]) == 1, "it has no make"
    assert (folder / "ran").exists()
