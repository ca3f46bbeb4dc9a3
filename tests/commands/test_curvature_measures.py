"""`soatfast curvature --weights ...` with every measure, on small weights; and what goes wrong."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from soatfast.commands import main as cli
from soatfast.commands.curvature import CurvatureConfig, _name
from soatfast.commands.measures import MEASURES, PICTURES, Ball, measured
from soatfast.solvers import spaces
from soatfast.train.subject import make_model
from tests.nets import batch, hessians, relu_net, smooth_net

pytest.importorskip("sklearn")
SMALL = ["--data", "digits8", "--samples", "4", "--max-dim", "4", "--width", "4"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(folder / f"run-{seed}" / "model.safetensors")
        paths[-1].parent.mkdir()
        save_file(make_model("small-cnn", (1, 8, 8), 10, 4).state_dict(), paths[-1])
    return [str(path) for path in paths]


def test_every_measure_of_several_weights(weights, tmp_path, capsys):
    flags = [f"--{name}" for name in MEASURES]
    assert cli.main(["curvature", "--run-dir", str(tmp_path), "--weights", *weights, *SMALL, *flags]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "run-0-model" in shown and "gap Linf" in shown and "gamma(eps)" in shown and "eps 0.2, Linf" in shown
    for name in PICTURES:
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((tmp_path / "parts").iterdir())) == 2 * (1 + len(MEASURES))
    table = json.loads((tmp_path / "curvature.json").read_text())["table"]
    keys = {column["key"] for column in table["columns"]}
    assert {"smallest", "negative", "trace", "frobenius", "gamma", "alignment", "theorem1"} <= keys
    assert all(cell is not None for row in table["rows"] for cell in row.values())
    assert [row["method"] for row in table["rows"]] == ["run-0-model", "run-1-model"]
    rows = load_file(tmp_path / "parts" / "curvature-gap-run-0-model.safetensors")
    assert rows["gap"].shape == (4, 6) and (rows["gap"] >= 0).all()


def test_the_measures_are_the_functions():
    """One batch or two, the figures of each sample are its own."""
    model, (x, y) = smooth_net(), batch(4)
    ball = Ball(0.3, math.inf, 16, "exact")
    dense = torch.linalg.eigvalsh(hessians(model, x, y)).flip(1)
    ends = measured(MEASURES["ends"], model, x, y, ball, 0, 2)
    torch.testing.assert_close(ends["largest"], dense[:, :3], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(ends["smallest"], dense.flip(1)[:, :3], rtol=1e-8, atol=1e-12)
    profile = measured(MEASURES["profile"], model, x, y, ball, 0, 3)["eigenvalues"]
    torch.testing.assert_close(profile, dense, rtol=1e-8, atol=1e-12)
    density = measured(MEASURES["density"], model, x, y, ball, 0, 2)
    torch.testing.assert_close(density["weights"].sum(1), torch.ones(4).double())
    trace = measured(MEASURES["trace"], relu_net(), x, y, ball, 0, 2)["trace"]  # rank 3: Hutch++ is exact
    torch.testing.assert_close(trace, hessians(relu_net(), x, y).diagonal(dim1=1, dim2=2).sum(1))
    lines = measured(MEASURES["lines"], model, x, y, ball, 0, 2)
    torch.testing.assert_close(lines["adversarial"][:, 4], lines["random"][:, 4])  # t = 0: the clean loss
    assert (lines["adversarial"][:, 8] > lines["random"][:, 8]).all()  # t = 1: the attack's end
    gap = measured(MEASURES["gap"], relu_net(), x, y, ball, 0, 2)
    assert (gap["gap_linf"] >= 0).all() and (gap["gap_l2"] >= 0).all()
    assert ball.radius(2, 3072) == pytest.approx(0.3 * 0.5 / (8 / 255)) and ball.radius(math.inf, 5) == 0.3
    assert Ball(0.5, 2, 4, "exact").radius(math.inf, 3072) == pytest.approx(8 / 255)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--weights", "nowhere.safetensors"], "there is no weights file nowhere.safetensors"),
        (["--weights", "a.pt", "a.pt"], "each weights file is shown once, got one twice"),
        (["--weights", "WEIGHTS", "--max-dim", "65"], "max_dim must lie in 1..64"),
    ],
)
def test_mistakes_end_in_one_line(weights, tmp_path, capsys, options, message):
    options = [weights[0] if word == "WEIGHTS" else word for word in options]
    assert cli.main(["curvature", "--run-dir", str(tmp_path), *SMALL, *options]) == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_options_are_checked():
    with pytest.raises(ValueError, match="either methods of a comparison or --weights, got both"):
        CurvatureConfig(methods=("pgd10",), weights=("a.pt",))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps must be > 0, got 0"):
        CurvatureConfig(eps=0.0)
    with pytest.raises(ValueError, match="p must be"):
        CurvatureConfig(p=3.0)


def test_a_profile_that_does_not_fit_is_one_line(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(spaces, "_SMALL", 0)
    monkeypatch.setattr(spaces, "_free_bytes", lambda device: 64 * 64 * 12 * 2)
    words = ["curvature", "--run-dir", str(tmp_path), "--weights", weights[0], *SMALL, "--max-dim", "1", "--profile"]
    assert cli.main(words) == 1
    shown = " ".join(capsys.readouterr().err.split())
    assert "the Hessians of 4 samples take 196608 bytes" in shown and "batches of 2 would fit" in shown


def test_names_of_paths_tell_them_apart(tmp_path):
    paths = tuple(tmp_path / word for word in ("a/x/m.pt", "b/x/m.pt", "c.pt"))
    assert [_name(path, paths) for path in paths] == ["a-x-m", "b-x-m", "c"]


def test_a_model_without_weights_of_its_own_shape_is_said(weights, tmp_path, capsys):
    words = ["curvature", "--run-dir", str(tmp_path), "--weights", weights[0], "--data", "digits8", "--width", "8"]
    assert cli.main(words) == 1
    assert "does not fit" in capsys.readouterr().err
