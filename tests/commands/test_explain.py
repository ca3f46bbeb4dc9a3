"""`soatfast explain` on a small comparison."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from soatfast.commands import explain as module
from soatfast.commands import main as cli
from soatfast.commands.explain import ExplainConfig, _choose
from soatfast.commands.explain import run as explain
from soatfast.commands.finished import open_comparison
from soatfast.runs.progress import Progress

SIZE = ["--train-samples", "60", "--test-samples", "20", "--batch-size", "30", "--epochs", "1"]
TINY = [*SIZE, "--methods", "standard", "pgd4"]
QUICK = ["--samples", "3", "--wrong", "1", "--steps", "4"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("comparison")
    assert cli.main(["compare", "--run-dir", str(folder), *TINY]) == 0
    return folder


def test_the_command_writes_pictures_values_and_table(run_dir, capsys):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    assert cli.main(["explain", "--run-dir", str(run_dir), *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "[1/2] standard" in shown and "| PGD-4 training |" in shown
    assert f"written to {run_dir}: explain.md, explain.json" in shown
    names = ("perturbations", "saliency", "contrastive-standard", "contrastive-pgd4")
    for name in names:
        pixels = torch.from_numpy(matplotlib_image.imread(run_dir / "explain" / f"{name}.png")[..., :3].copy())
        assert pixels.std() > 0.05 and len(pixels.view(-1, 3).unique(dim=0)) > 20
    assert sorted(path.stem for path in (run_dir / "explain").iterdir()) == sorted(names)
    written = json.loads((run_dir / "explain.json").read_text())
    assert written["config"]["steps"] == 4 and written["attack"]["steps"] == 40 and written["attack"]["eps"] == 0.2
    assert len(written["samples"]) == len(set(written["samples"])) == len(written["labels"]) == 4
    assert written["labels"][:3] == [0, 1, 2]
    for method in ("standard", "pgd4"):
        found = written["methods"][method]
        pairs = zip(found["predictions"], written["labels"], strict=True)
        assert found["correct"] == [said == label for said, label in pairs]
        assert max(found["attacked"]["linf"]) == pytest.approx(0.2)
        assert max(found["contrastive"]["negative"]["l2"]) <= 4 * (1 + 1e-5)
        assert found["cem"]["negative"]["labels"] == found["predictions"]
        assert found["cem"]["positive"]["passes"]["forward"] == 1 + 9 * 5


def test_the_same_seed_gives_the_same_values(run_dir, tmp_path):
    options = {"methods": ("standard",), "samples": 2, "wrong": 0, "steps": 2, "fresh": True}
    state = torch.random.get_rng_state()
    explain(ExplainConfig(run_dir, **options))
    first = (run_dir / "explain.json").read_text()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    explain(ExplainConfig(run_dir, **options))
    assert (run_dir / "explain.json").read_text() == first


class StopsAt(Progress):
    """Ctrl-C before the model of this label."""

    def __init__(self, label):
        self.label = label

    def stage(self, name, index, total):
        if name == self.label:
            raise KeyboardInterrupt


def test_it_goes_on_behind_the_models_that_are_done(run_dir, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    options = {"samples": 2, "wrong": 0, "steps": 2}
    explain(ExplainConfig(folder, **options))
    whole = (folder / "explain.json").read_text()
    pictures = {path.name: path.read_bytes() for path in (folder / "explain").iterdir()}
    shutil.rmtree(folder / "parts")
    with pytest.raises(KeyboardInterrupt):
        explain(ExplainConfig(folder, **options), StopsAt("PGD-4 training"))
    assert [path.name for path in (folder / "parts").iterdir()] == ["explain-standard.safetensors"]
    asked = []
    real = module._explanations
    monkeypatch.setattr(module, "_explanations", lambda *args: asked.append(1) or real(*args))
    explain(ExplainConfig(folder, resume=True, **options))
    assert len(asked) == 1
    assert (folder / "explain.json").read_text().replace('"resume": true', '"resume": false') == whole
    assert {path.name: path.read_bytes() for path in (folder / "explain").iterdir()} == pictures
    explain(ExplainConfig(folder, samples=2, wrong=0, steps=3))
    assert len(asked) == 3, "other options are made anew"


def test_a_method_named_twice_is_shown_once(run_dir):
    table = explain(ExplainConfig(run_dir, methods=("pgd4", "pgd4"), samples=2, wrong=0, steps=2))
    assert [row["method"] for row in table.rows] == ["PGD-4 training"]


def test_samples_are_of_one_class_after_the_other_and_then_wrong_ones(run_dir):
    found = open_comparison(run_dir)
    models = [found.model(name, 0) for name in ("standard", "pgd4")]
    x, y, index = _choose(ExplainConfig(run_dir, samples=11, wrong=3), found, models)
    assert y[:11].tolist() == [*range(10), 0] and len(set(index)) == 14
    assert all(torch.equal(x[i], found.data.test[number][0]) for i, number in enumerate(index))
    wrong = torch.stack([model(x).argmax(1) != y for model in models])
    assert wrong.any(0)[11:].all()
    _, _, less = _choose(ExplainConfig(run_dir, samples=2, wrong=0), found, models)
    assert less == index[:2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run-dir", "nowhere"], "run soatfast compare --run-dir nowhere first"),
        (["--methods", "haat"], "has standard, pgd4, not haat"),
        (["--methods", "pgd44"], "there is no method 'pgd44'; the nearest are pgd4"),
        (["--seed", "3"], "standard was not trained with seed 3"),
    ],
)
def test_mistakes_end_in_one_line(run_dir, capsys, options, message):
    assert cli.main(["explain", "--run-dir", str(run_dir), *options]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("command", ["explain", "curvature"])
def test_an_unfinished_or_damaged_run(run_dir, tmp_path, capsys, command):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)

    def fails(message):
        assert cli.main([command, "--run-dir", str(folder)]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1

    results = (folder / "results.json").read_text()
    (folder / "results.json").write_text(results.replace('"pgd4"', '"older"'))
    fails("this version of soatfast has no method older")
    (folder / "results.json").write_text(results)
    weights = folder / "pgd4" / "seed-0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    fails("model.safetensors cannot be loaded into SmallCNN")
    weights.unlink()
    fails("model.safetensors is not there: pgd4 was not trained with seed 0")
    (folder / "results.json").write_text('{"config": {}}')
    fails("is not what soatfast compare writes")
    (folder / "results.json").write_text('{"config": ')
    fails("results.json is damaged")
    (folder / "results.json").unlink()
    fails("holds an unfinished comparison: the same soatfast compare command resumes it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"wrong": -1}, "wrong must be at least 0, got -1"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"attack": "autoattack"}, "there is no attack 'autoattack'; the nearest are"),
        ({"radius": -1.0}, "eps must be finite and >= 0, got -1"),
        ({"kappa": -1.0}, "kappa must be finite and >= 0, got -1"),
        ({"base": 2.0}, "base must lie in bounds"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ExplainConfig(**options)


def test_defaults_are_the_demos():
    assert str(ExplainConfig().run_dir) == "runs/demo"
