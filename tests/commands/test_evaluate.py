"""`soatfast evaluate`: what it writes, that it resumes, and what it says to a wrong call."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from soatfast import evaluate as ev
from soatfast.attacks import FGSM
from soatfast.commands import main as cli
from soatfast.commands.evaluate import EvaluateConfig, run
from soatfast.commands.report import ReportConfig
from soatfast.commands.report import run as report
from soatfast.evaluate import load_suite
from soatfast.runs.errors import RunFolderError, UserError
from soatfast.runs.progress import Progress
from soatfast.train.models import SmallCNN
from soatfast.train.subject import Subject

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(SmallCNN(size=8, width=4).state_dict(), path)
    return path


@pytest.fixture
def config(weights: Path, tmp_path: Path) -> EvaluateConfig:
    subject = Subject(data="digits8", model="small-cnn", width=4, weights=weights)
    return EvaluateConfig(run_dir=tmp_path / "e", eps=0.1, steps=2, subject=subject, samples=12, batch_size=5)


def test_the_whole_suite_with_its_analysis(config: EvaluateConfig) -> None:
    tables = run(dataclasses.replace(config, analysis=True))
    names = [row["name"] for row in tables[0].rows]
    assert names[:3] == ["clean", "fgsm", "pgd2"] and names[-1] == "worst case" and {"simba", "asod", "tm"} < set(names)
    assert len(tables[1].rows) == 7, "the signs of masked gradients"
    found = load_suite(config.run_dir)
    assert len(found.label) == 12 and found["pgd2"].correct.shape == (12,)
    written = json.loads((config.run_dir / "evaluation.json").read_text())
    psnr = [row["psnr"] for row in written["tables"][0]["rows"]]
    assert psnr[0] is None and psnr[1]["mean"] == pytest.approx(found["fgsm"].quality[0])
    assert written["config"]["eps"] == 0.1 and written["passes"]["forward_samples"] == found.passes.forward_samples
    assert all((config.run_dir / f"{name}.png").stat().st_size > 5_000 for name in ("curves", "plateau", "masking"))
    analysis = written["analysis"]
    assert len(analysis["curves"]["at"]) == 7 and analysis["plateau"]["at"] == [1, 2, 5, 10, 20, 40, 100]
    for curve in (analysis["curves"], analysis["plateau"]):
        assert len(curve["accuracy"]) == 7 and curve["passes"]["forward_samples"] > 0
        assert ev.Curve.from_json(curve).clean == pytest.approx(found["clean"].accuracy)
    assert [scatter["black_box"]["step_size"] for scatter in analysis["scatters"].values()] == [0.1, 0.2]
    for scatter in analysis["scatters"].values():
        assert len(scatter["white"]) == len(scatter["black"]) == 12 == sum(scatter["quadrants"].values())
        assert scatter["passes"]["white"]["backward_input_samples"] == 12 * 100
        assert scatter["below"]["0"] == sum(b < w for b, w in zip(scatter["black"], scatter["white"], strict=True))
    assert [sign["name"] for sign in analysis["signs"]] == [row["name"] for row in tables[1].rows]
    assert written["results"] == json.loads(json.dumps(found.to_json())) and len(written["results"]["checks"]) == 6
    page = report(ReportConfig(run_dir=config.run_dir)).read_text(encoding="utf-8")
    assert "Evaluation</h2>" in page and page.count("data:image/png") == 3 and "more steps still help" in page


def test_the_same_call_goes_on_and_another_is_refused(config: EvaluateConfig) -> None:
    asked: list[str] = []

    class Stop(Progress):
        def report(self, name: str, done: int, total: int | None) -> None:
            asked.append(name)
            if len(asked) == 20:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, Stop())
    run(config)
    again = load_suite(config.run_dir)
    whole = dataclasses.replace(config, run_dir=config.run_dir.with_name("whole"))
    run(whole)
    for name, result in load_suite(whole.run_dir).results.items():
        assert np.array_equal(result.correct, again[name].correct)
        assert np.array_equal(result.margin, again[name].margin)
    with pytest.raises(RunFolderError):
        run(dataclasses.replace(config, eps=0.2))
    run(dataclasses.replace(config, eps=0.2, fresh=True))


def test_two_models_in_pairs_and_on_one_picture(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[list[str]] = []
    monkeypatch.setattr(ev, "standard_attacks", lambda *args, **fields: {"fgsm": FGSM(eps=0.1)})
    monkeypatch.setattr(
        ev, "curves_picture", lambda path, curves, title, steps=False: drawn.append([c.label for c in curves])
    )
    run(dataclasses.replace(config, analysis=True))
    torch.manual_seed(5)
    save_file(SmallCNN(size=8, width=4).state_dict(), tmp_path / "other.safetensors")
    subject = dataclasses.replace(config.subject, weights=tmp_path / "other.safetensors")
    second = dataclasses.replace(
        config, run_dir=tmp_path / "f", subject=subject, analysis=True, beside=(config.run_dir,)
    )
    tables = run(second)
    assert drawn[2:] == [["PGD-20, f", "PGD-20, e"], ["PGD, f", "PGD, e"]]
    written = json.loads((second.run_dir / "evaluation.json").read_text())
    pairs = written["paired"][str(config.run_dir)]
    expected = load_suite(second.run_dir).paired(load_suite(config.run_dir))
    assert pairs == {name: dataclasses.asdict(pair) for name, pair in expected.items()}
    assert [row["name"] for row in tables[1].rows] == list(expected) == ["clean", "fgsm", "worst case"]
    assert "McNemar" in report(ReportConfig(run_dir=second.run_dir)).read_text(encoding="utf-8")

    with pytest.raises(RunFolderError, match="there is no evaluation"):
        run(dataclasses.replace(second, beside=(tmp_path / "none",), fresh=True))
    with pytest.raises(UserError, match="is of other samples than this evaluation"):
        run(dataclasses.replace(second, samples=11, fresh=True))
    for beside in ((second.run_dir,), (config.run_dir, config.run_dir)):
        with pytest.raises(ValueError, match="beside must be other folders, each once"):
            dataclasses.replace(second, beside=beside)
    (config.run_dir / "evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="has no analysis; soatfast evaluate --analysis writes it"):
        run(second)


def test_the_engine_is_an_exact_one(config: EvaluateConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(config)
    found = run(dataclasses.replace(config, run_dir=config.run_dir.with_name("c"), engine="channels_last"))
    for a, b in zip(plain[0].rows, found[0].rows, strict=True):
        assert [a.get(key) for key in ("name", "accuracy", "attacked")] == [
            b.get(key) for key in ("name", "accuracy", "attacked")
        ]
    for engine in ("bf16", "fp16+compile"):
        with pytest.raises(ValueError, match="engine must be an exact one, as SOAE and HAAT need float32"):
            dataclasses.replace(config, engine=engine)
    with pytest.raises(ValueError, match="engine must be"):
        dataclasses.replace(config, engine="fast")


class Stopping(FGSM):
    """Ctrl-C in its n-th call."""

    def __call__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls[0] -= 1
        if calls[0] == 0:
            raise KeyboardInterrupt
        return super().__call__(model, x, y)


calls = [0]


def test_ctrl_c_and_the_same_command_again(
    config: EvaluateConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    attacks = {"fgsm": FGSM(eps=0.1), "last": Stopping(eps=0.1)}
    monkeypatch.setattr(ev, "standard_attacks", lambda *args, **fields: attacks)
    words = ["evaluate", "--data", "digits8", "--width", "4", "--weights", str(config.subject.weights)]
    words += ["--run-dir", str(config.run_dir), "--samples", "12", "--batch-size", "5"]
    calls[0] = 2
    assert cli.main(words) == 130
    assert capsys.readouterr().err == "interrupted; the same command (without --fresh) resumes\n"
    with pytest.raises(RunFolderError, match=r"unfinished evaluation \(1 batches"):
        load_suite(config.run_dir)
    assert cli.main(["report", "--run-dir", str(config.run_dir)]) == 1
    assert capsys.readouterr().err.endswith("has nothing to report: not finished: the evaluation\n")
    calls[0] = 0
    assert cli.main([*words, "--resume"]) == 0
    assert calls[0] == -2, "the first batch is not attacked again"
    assert len(load_suite(config.run_dir).label) == 12


def probabilities(size: int) -> nn.Module:
    return nn.Sequential(SmallCNN(size=size, width=4), nn.Softmax(1))


def test_a_warning_is_one_line(
    config: EvaluateConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ev, "standard_attacks", lambda *args, **fields: {"fgsm": FGSM(eps=0.1)})
    words = ["evaluate", "--data", "digits8", "--samples", "6", "--run-dir", str(config.run_dir)]
    assert cli.main([*words, "--model", f"{__name__}:probabilities"]) == 0
    error = capsys.readouterr().err
    assert error.startswith("warning: the model returns probabilities, not logits") and error.count("\n") == 1


def test_worst_case_and_l2(config: EvaluateConfig) -> None:
    found = run(dataclasses.replace(config, p=2, worst_case=True))[0]
    assert "haat" not in [row["name"] for row in found.rows]
    assert "survivors" in found.note


def test_wrong_options(config: EvaluateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change, message in (
        ({"p": 3.0}, "p must be 2 or inf"),
        ({"eps": -1.0}, "eps must be finite"),
        ({"eps": 0.0, "analysis": True}, "analysis needs eps > 0, got 0"),
        ({"steps": 0}, "steps, batch_size and samples must be at least 1, got 0, 5, 12"),
        ({"subject": Subject()}, "weights are needed: small-cnn"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config, **change)
    assert config.p == math.inf
    words = ["evaluate", "--data", "digits8", "--width", "4", "--run-dir", str(tmp_path / "x")]
    assert cli.main([*words, "--weights", str(tmp_path / "none.safetensors")]) == 1
    assert "none.safetensors" in capsys.readouterr().err


def test_command(config: EvaluateConfig, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--data", "digits8", "--width", "4", "--run-dir", str(config.run_dir), "--samples", "6"]
    assert cli.main([*words, "--steps", "2", "--weights", str(config.subject.weights)]) == 0
    out = capsys.readouterr().out
    assert "| worst case |" in out and f"written to {config.run_dir}: evaluation.npz" in out
