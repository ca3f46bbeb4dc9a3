"""The public names as strict type checkers see them, from where a user stands: the package is installed, not theirs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import soatfast

HERE = Path(__file__).parent
ROOT = Path(soatfast.__file__).parents[1]
RIGHT, WRONG = HERE / "user_script.py", HERE / "wrong_script.py"


def mypy(script: Path, folder: Path) -> dict[int, str]:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary", "--hide-error-context"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, str(script)], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    errors: dict[int, str] = {}
    for name, line, text in re.findall(r"^(.+?):(\d+): error: (.*)$", done.stdout, re.MULTILINE):
        assert Path(name).name == script.name, f"{name}:{line}: {text}"
        errors[int(line)] = errors.get(int(line), "") + text
    return errors


def pyright(script: Path, folder: Path) -> dict[int, str]:
    program = shutil.which("basedpyright", path=Path(sys.executable).parent) or shutil.which("basedpyright")
    if program is None:
        pytest.skip("basedpyright, which is pyright with its own node, is not installed")
    shutil.copy(script, folder)
    config = {"typeCheckingMode": "strict", "include": [script.name], "extraPaths": [str(ROOT)]}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    command = [program, "--outputjson", "--pythonpath", sys.executable, "-p", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 1, done.stdout
    errors: dict[int, str] = {}
    for item in found["generalDiagnostics"]:
        line = item["range"]["start"]["line"] + 1
        errors[line] = errors.get(line, "") + item["message"]
    return errors


CHECKERS = pytest.mark.parametrize("checker", [mypy, pyright])


@CHECKERS
def test_a_users_script_is_clean(checker, tmp_path):
    assert checker(RIGHT, tmp_path) == {}


@CHECKERS
def test_every_mistake_is_an_error_that_names_it(checker, tmp_path):
    expected = {
        number: line.partition("  # error: ")[2]
        for number, line in enumerate(WRONG.read_text().splitlines(), 1)
        if "  # error: " in line
    }
    errors = checker(WRONG, tmp_path)
    assert len(expected) > 10 and set(errors) == set(expected)
    for number, name in expected.items():
        assert name in errors[number], errors[number]


def test_the_script_runs():
    done = subprocess.run([sys.executable, RIGHT], capture_output=True, text=True, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr
