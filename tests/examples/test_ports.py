"""The ports run, do what the script before them did, make the passes of their page, and stand in it as diffs."""

import difflib
import importlib
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

import soatfast as sf

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "ports"
PASSES = {
    "fast_adversarial": ((2, 0, 2), (2, 1, 1)),
    "trades": ((23, 10, 1), (13, 10, 1)),
    "robust_overfitting": ((12, 0, 11), (11, 10, 1)),
    "free": ((1, 0, 1), (1, 0, 1)),
    "torchattacks_tutorial": ((8, 7, 1), (8, 7, 1)),
}
"""Forwards, backwards to the input and to the weights, of a step before and after."""
WAYS = ("before", "after")


@pytest.fixture(autouse=True)
def _beside(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    for name in [name for name in sys.modules if name == "setting" or name.endswith(("_before", "_after"))]:
        del sys.modules[name]


def needed(name):
    if name.startswith("torchattacks"):
        pytest.importorskip("torchattacks")


def diff(name):
    """The port as a diff, without the lines that name the files."""
    before, after = ((FOLDER / f"{name}_{way}.py").read_text().splitlines(keepends=True) for way in WAYS)
    return "".join(list(difflib.unified_diff(before, after, n=1))[2:])


def test_every_port_is_in_the_table():
    files = {path.stem for path in FOLDER.glob("*.py")} - {"setting"}
    assert files == {f"{name}_{way}" for name in PASSES for way in WAYS}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PASSES)
def test_it_runs_as_a_script(name, way, monkeypatch, capsys):
    needed(name)
    monkeypatch.setattr(
        sys, "argv", [name, "--batch-size", "3", "--steps", "2", "--network", "resnet18", "--width", "4"]
    )
    runpy.run_path(str(FOLDER / f"{name}_{way}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(re.match(r"(loss|cost) \d+\.\d{4}", line) for line in lines)


def trained(name, way):
    """Losses of four steps of the small CNN, which has no batch norm, and the passes of the last."""
    setting, script = importlib.import_module("setting"), importlib.import_module(f"{name}_{way}")
    model = setting.network("small-cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    torch.manual_seed(1)
    found = []
    for x, y in setting.batches(8, 4):
        with sf.count_passes(model) as passes:
            found.append(script.step(model, optimizer, x, y))
    losses = [each[0] if isinstance(each, tuple) else each for each in found]
    return losses, (passes.forward, passes.backward_input, passes.backward_parameters)


@pytest.mark.parametrize("name", PASSES)
def test_it_trains_as_before_with_the_passes_of_the_page(name):
    needed(name)
    (before, passes_before), (after, passes_after) = (trained(name, way) for way in WAYS)
    # Free training moves pixels on the edge of the box as well, and signs of tiny gradients hang on rounding.
    assert after == pytest.approx(before, rel=2e-3 if name == "free" else 2e-4)
    assert (passes_before, passes_after) == PASSES[name]
    assert before[0] != before[-1]


@pytest.mark.parametrize("name", PASSES)
def test_the_page_has_its_diff(name):
    blocks = re.findall(r"```diff\n(.*?)```", (ROOT / "docs" / "ports.md").read_text(), re.DOTALL)
    assert diff(name) in blocks


def test_the_profiler_names_the_import_of_a_script_with_torchattacks():
    needed("torchattacks_tutorial")
    with sf.profile_passes() as report:
        trained("torchattacks_tutorial", "before")
    assert report.typical().attack_passes == 7 and report.places[0].endswith(", through torchattacks")
    assert any("soatfast.compat.torchattacks" in line for line in report.lines())


def test_the_profiler_finds_the_attack_of_a_script():
    with sf.profile_passes() as report:
        trained("robust_overfitting", "before")
    step = report.typical()
    assert step.attack_passes == step.unused_gradients == 10 and "robust_overfitting_before.py" in report.places[0]
    with sf.profile_passes() as report:
        trained("trades", "before")
    assert report.typical().attack_passes == 10 and report.typical().repeated == 10
    with sf.profile_passes() as report:
        trained("free", "before")
    assert report.typical().attack_passes == report.typical().unused_gradients == 0
