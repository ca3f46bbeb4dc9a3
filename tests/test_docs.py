"""The documentation: its code runs, its links lead somewhere, its README is one page, its errors are the package's."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import soatfast as sf
from soatfast.attacks.catalogue import ATTACKS
from soatfast.commands.curvature import CurvatureConfig
from soatfast.commands.main import COMMANDS
from soatfast.commands.options import attack_classes, loss_classes
from soatfast.losses.catalogue import LOSSES

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "csrc" / "README.md"])


def blocks(page: str, language: str = "python") -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [textwrap.dedent(code) for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)]


def new_side(diff: str) -> str:
    """The script after the change."""
    return "\n".join(line[1:] for line in diff.splitlines() if not line.startswith("-"))


def setting(*shape: int, classes: int = 10) -> dict[str, object]:
    """The names that a reader's script has: a model, data, one batch, an optimiser."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(torch.Size(shape).numel(), classes))
    dataset = TensorDataset(torch.rand(8, *shape), torch.randint(0, classes, (8,)))
    x, y = dataset[:4]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {
        "torch": torch,
        "model": model,
        "dataset": dataset,
        "loader": DataLoader(dataset, 4),
        "x": x,
        "y": y,
        "optimizer": optimizer,
    }


def trained(names: dict[str, object], code: str) -> bool:
    """Run the code; whether it changed the model's weights."""
    before = [p.detach().clone() for p in names["model"].parameters()]
    exec(code, names)
    return any(not torch.equal(p, q) for p, q in zip(names["model"].parameters(), before, strict=True))


def test_the_readme_is_one_page():
    text = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    words = [word for line in text.splitlines() if not line.startswith("|") for word in line.split()]
    assert len(words) <= 900
    assert len(re.findall(r"^\|[-:|]+\|$", text, re.MULTILINE)) == 1, "one table"
    assert 1 <= len(rows) - 2 <= 8


def test_the_code_of_the_readme():
    names = setting(3, 32, 32)
    for script in blocks("README.md"):
        exec(script, names)
    assert names["memory"].visits.tolist() == [1] * 8 and names["memory"].values.any()
    assert names["passes"].forward == 6 and names["passes"].backward_input == 4
    assert names["result"].worst_case <= names["result"]["clean"].accuracy
    assert names["output"].shape == (4, 10) and names["solved"].x.shape == names["step"].shape == (8, 3, 32, 32)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_changed_lines_train_a_model(page):
    names = setting(3, 4, 4)
    three_lines, *imports = [new_side(diff) for diff in blocks(page, "diff")]
    assert trained(names, three_lines)
    for script in imports:
        exec(script, names)
    if imports:
        attack = names["torchattacks"].PGD(names["model"], eps=8 / 255, steps=2)
        assert attack(names["x"], names["y"]).shape == names["x"].shape
        assert names["trades_loss"](names["model"], names["x"], names["y"], names["optimizer"]).isfinite()


def test_the_table_of_the_readme_is_the_measured_one():
    def table(page: str) -> list[list[str]]:
        lines = (ROOT / page).read_text(encoding="utf-8").split("core-seconds |", 1)[1].splitlines()[2:]
        end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[:end]]

    assert table("README.md") == table("docs/natural-images.md")


def test_the_scripts_of_the_memory_page(monkeypatch):
    script, guarded = blocks("docs/memory.md")
    names = setting(1, 28, 28)
    assert trained(names, script)
    assert names["memory"].visits.tolist() == [1] * 8 and names["memory"].values.any()
    monkeypatch.setattr(sf.train.OverfittingGuard, "_measure", lambda *arguments: (0.0, 50, 0))  # a collapse
    images, labels = names["dataset"].tensors
    names |= {"images": images, "labels": labels, "epoch": 0}
    with pytest.warns(sf.train.OverfittingWarning):
        exec(guarded, names)
    assert names["criterion"].attack.steps == 5 and names["criterion"].memory is names["memory"]


def test_the_scripts_of_the_second_order_page(capsys):
    names = setting(1, 8, 8)
    for script in blocks("docs/second-order.md"):
        exec(script, names)
    assert names["solved"].x.shape == names["x_adv"].shape == (4, 1, 8, 8)
    assert names["soat"](names["model"], names["x"], names["y"]).isfinite()
    assert "torch.Size([4, 1, 8, 8])" in capsys.readouterr().out


def test_the_scripts_of_the_engine_page(monkeypatch):
    names = setting(3, 8, 8)
    called = []
    monkeypatch.setattr(sf, "keep_memory", lambda: called.append(1), raising=False)  # it is for the whole process
    for script in blocks("docs/engines.md"):
        exec(script, names)
    assert called and names["x_adv"].dtype == torch.float32 and names["loss"].isfinite()


def test_the_script_of_the_profile_page(capsys):
    names = setting(3, 8, 8)
    for script in blocks("docs/profile.md"):
        assert trained(names, script)
    assert names["report"].typical().attack_passes == 2 and "by soatfast" in capsys.readouterr().out


def test_the_scripts_of_the_evaluation_page(tmp_path, capsys):
    names = setting(1, 12, 12) | {"folder": tmp_path}
    for script in blocks("docs/evaluation.md"):
        exec(script, names)
    assert "worst case" in capsys.readouterr().out and (tmp_path / "evaluation.npz").exists()


def test_the_scripts_of_the_page_about_scripts():
    names = setting(3, 4, 4)
    for script in blocks("docs/scripts.md"):
        exec(script, names)
    assert names["loss"].isfinite() and names["correct"] <= 4 and names["free"].delta.any()
    assert names["friendly"](names["model"], names["x"], names["y"]).isfinite()


def test_the_scripts_of_the_other_pages(capsys):
    names = setting(3, 4, 4)
    (counted,) = blocks("docs/passes.md")
    exec(counted, names)
    assert names["passes"].forward == 6
    memory = sf.PerturbationMemory(8, (3, 4, 4))
    (defences,) = blocks("docs/which-defence.md")
    exec(defences, {"eps": 0.1, "memory": memory})
    (distributed,) = blocks("docs/distributed.md")
    assert trained(names, distributed)


def test_the_new_attack_of_contributing_passes_its_test(monkeypatch):
    (diff,) = (text for text in blocks("CONTRIBUTING.md", "diff") if "random_sign.py" in text)
    files = {path: new_side(text) for path, text in (part.split("\n", 1) for part in diff.split("+++ ")[1:])}
    names = {"__name__": __name__}
    exec(files["soatfast/attacks/random_sign.py"], names)
    monkeypatch.setattr(sf.attacks, "RandomSign", names["RandomSign"], raising=False)
    exec(files["tests/attacks/test_random_sign.py"], names)
    names["test_every_entry_moves_by_eps_and_half_of_them_up"]()


def test_the_new_op_of_contributing_applies_and_passes_the_tests_of_every_op(tmp_path):
    (diff,) = (text for text in blocks("CONTRIBUTING.md", "diff") if "contract.py" in text)
    for folder in ("soatfast", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.html"))
    applied = subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff, text=True, capture_output=True)
    assert applied.returncode == 0, applied.stderr
    words = [
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/ops/test_mean_abs.py",
        "tests/ops/test_every_op.py",
        "-k",
        "mean_abs",
    ]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and re.search(r"2\d passed", done.stdout), done.stdout[-2000:] + done.stderr


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(page: Path) -> set[str]:
    """The headings as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    """But for docs/api and docs/tutorials, which `make docs` writes and checks."""
    for link in links(page):
        target, _, anchor = link.partition("#")
        if "://" in link or target.split("/")[0] in ("api", "tutorials"):
            continue
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_name_exists(page):
    for name in re.findall(r"\bsf\.([A-Za-z_.]*[A-Za-z_])", page.read_text(encoding="utf-8")):
        found = sf
        for part in name.split("."):
            found = getattr(found, part)


FILLED_IN = r"\.\.\.|\S*[\d\[\]]\S*|= inf|torch\.\w+|'[^']*'|\bsoatfast\.\S+|mypackage\S*|SimBA|DeepFool|ops_cpu"


def sources() -> str:
    """The package's text, with string literals that stand one after the other joined."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "soatfast").rglob("*.py")))
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", text)


def test_the_errors_of_the_faq_are_the_packages():
    """The longest run of words of each quoted message stands in the source: what is filled in is left out."""
    text, messages = sources(), re.findall(r"^`([^`]+)`\n: ", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
    assert len(messages) > 15
    for message in messages:
        runs = re.split(FILLED_IN, message)
        run = max((run.strip(" ;,.") for run in runs), key=len)
        assert len(run.split()) >= 3, message
        assert run in text, f"{message}: no message has {run!r}"


def test_every_row_of_the_any_model_page_names_a_test():
    rows = [line.split("|") for line in (ROOT / "docs" / "any-model.md").read_text().splitlines() if line[:2] == "| "]
    named = [row[-2].strip() for row in rows if "test" in row[-2] and row[-2].strip() != "Test"]
    assert len(named) >= 60 and named[0] != "the same test"
    for cell in named:
        found = re.findall(r"`([\w/.]+)::(\w+)`", cell)
        assert found or cell == "the same test", cell
        for path, name in found:
            assert f"def {name}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), cell


def test_every_row_of_the_mission_page_names_a_test_and_is_counted():
    text = (ROOT / "docs" / "mission.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in text.split("\n## ")[1:])
    claimed = {cells[1].strip(): [int(c) for c in cells[2:5]] for cells in _cells(text.split("\n## ")[0])}
    total = [0, 0, 0]
    for title, body in sections.items():
        rows = [[cell.strip() for cell in row[1:-1]] for row in _cells(body)]
        if not rows:
            continue
        for number, _, call, test, verdict in rows:
            assert verdict in ("yes", "partial", "no"), number
            if verdict != "no":
                path, name = test.strip("`").split("::")
                assert f"def {name}(" in (ROOT / "tests" / f"{path}.py").read_text(encoding="utf-8"), number
                assert call != "–", number
            for command, words in re.findall(r"`soatfast (\w+)([^`]*)`", call):
                assert command in COMMANDS, call
                named = re.match(r" (?:\.\.\. )?([a-z][\w-]*)", words) if command in ("train", "attack") else None
                classes = attack_classes(ATTACKS) | (loss_classes(LOSSES) if command == "train" else {})
                assert named is None or named[1] in classes, call
                if command == "curvature":
                    flags = {flag.replace("-", "_") for flag in re.findall(r"--([\w-]+)", words)}
                    assert flags <= {field.name for field in dataclasses.fields(CurvatureConfig)}, call
            for folder, name in re.findall(r"`(evaluate|solvers|ops)\.(\w+)", call):
                assert hasattr(getattr(sf, folder), name), call
        counts = [sum(row[4] == verdict for row in rows) for verdict in ("yes", "partial", "no")]
        assert claimed[title] == counts, title
        if title in ("SCORPIO (arXiv 2009.04923)", "SOAE and SOAT (arXiv 2207.01396)", "HAAT"):
            total = [a + b for a, b in zip(total, counts, strict=True)]
    assert claimed["the three papers together"] == total and sum(total) == 98


def _cells(text: str) -> list[list[str]]:
    """The rows of the tables of a page, but for heads and rules."""
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[1].strip() not in ("#", "part")]
