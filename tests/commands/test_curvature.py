"""`soatfast curvature` on a small comparison."""

from __future__ import annotations

import json
import shutil

import pytest

from soatfast.commands import curvature as module
from soatfast.commands import main as cli
from soatfast.commands.curvature import CurvatureConfig
from soatfast.commands.curvature import run as curvature
from soatfast.runs.progress import Progress

SIZE = ["--train-samples", "60", "--test-samples", "20", "--batch-size", "30", "--epochs", "1"]
TINY = [*SIZE, "--methods", "standard", "pgd4"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("comparison")
    assert cli.main(["compare", "--run-dir", str(folder), *TINY]) == 0
    return folder


def test_the_command_writes_table_values_and_picture(run_dir, capsys):
    assert cli.main(["curvature", "--run-dir", str(run_dir), "--samples", "7", "--max-dim", "4"]) == 0
    shown = capsys.readouterr().out
    assert "PGD-4 training" in shown and f"written to {run_dir}: curvature.md" in shown
    values = json.loads((run_dir / "curvature.json").read_text())["values"]
    assert {name: len(value) for name, value in values.items()} == {"standard": 7, "pgd4": 7}
    assert all(v > 0 for value in values.values() for v in value), "a network of ReLUs is curved upwards"
    assert (run_dir / "curvature.png").read_bytes()[:4] == b"\x89PNG"


def test_it_goes_on_behind_the_models_that_are_done(run_dir, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    options = {"samples": 3, "max_dim": 3, "scheme": "fe"}
    curvature(CurvatureConfig(folder, **options))
    whole = json.loads((folder / "curvature.json").read_text())["values"]
    shutil.rmtree(folder / "parts")
    with pytest.raises(KeyboardInterrupt):
        curvature(CurvatureConfig(folder, **options), Stops())
    assert [path.name for path in (folder / "parts").iterdir()] == ["curvature-standard.safetensors"]
    asked = []
    real = module._values
    monkeypatch.setattr(module, "_values", lambda *args: asked.append(1) or real(*args))
    curvature(CurvatureConfig(folder, resume=True, **options))
    assert len(asked) == 1 and json.loads((folder / "curvature.json").read_text())["values"] == whole
    curvature(CurvatureConfig(folder, **options, seed=0, fresh=True))
    assert len(asked) == 3


class Stops(Progress):
    """Ctrl-C before the second model."""

    def stage(self, name, index, total):
        if index == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run-dir", "nowhere"], "run soatfast compare --run-dir nowhere first"),
        (["--methods", "haat"], "has standard, pgd4, not haat"),
        (["--methods", "pgd44"], "there is no method 'pgd44'; the nearest are pgd4"),
        (["--seed", "3"], "standard was not trained with seed 3"),
        (["--max-dim", "1000"], "max_dim must lie in 1..784"),
    ],
)
def test_mistakes_end_in_one_line(run_dir, capsys, options, message):
    assert cli.main(["curvature", "--run-dir", str(run_dir), *options]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_are_checked():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        CurvatureConfig(samples=0)


def test_defaults_are_the_demos():
    assert str(CurvatureConfig().run_dir) == "runs/demo"
