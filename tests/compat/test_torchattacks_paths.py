"""torchattacks' import paths, the names that are not here, and the page that lists all of them."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import soatfast.compat.torchattacks as compat
from soatfast.compat.torchattacks.elsewhere import ELSEWHERE
from tests.nets import conv_net

PACKAGE = "soatfast.compat.torchattacks"
PAGE = Path(__file__).parents[2] / "docs" / "torchattacks.md"


@pytest.mark.parametrize("name", compat.__all__)
def test_every_class_is_at_its_path(name):
    folder = "wrappers" if name in compat.__wrapper__ else "attacks"
    module = importlib.import_module(f"{PACKAGE}.{folder}.{name.lower()}")
    assert getattr(module, name) is getattr(compat, name)
    assert issubclass(getattr(compat, name), importlib.import_module(f"{PACKAGE}.attack").Attack)


def test_a_star_gives_attacks_and_nothing_else():
    names: dict[str, object] = {}
    exec(f"from {PACKAGE} import *", names)
    assert set(names) - {"__builtins__"} == set(compat.__all__)
    assert set(compat.__wrapper__) < set(compat.__all__) and "Attack" not in compat.__all__


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_class_that_is_not_here_names_torchattacks_however_it_is_asked_for(name):
    line = rf"has no {name}\b.*Take {name} from torchattacks itself: from torchattacks import {name}"
    with pytest.raises(AttributeError, match=line):
        getattr(compat, name)
    for script in (f"from {PACKAGE} import {name}", f"import {PACKAGE}.{ELSEWHERE[name]}"):
        with pytest.raises(ImportError, match=line) as error:
            exec(script, {})
        assert "\n" not in str(error.value)
    assert not hasattr(compat, name)


def test_other_names_are_pythons_own_errors():
    with pytest.raises(ImportError, match="cannot import name 'PDG'"):
        exec(f"from {PACKAGE} import PDG", {})
    with pytest.raises(ModuleNotFoundError, match=rf"No module named '{PACKAGE}\.attacks\.none'"):
        importlib.import_module(f"{PACKAGE}.attacks.none")
    script = (
        f"import {PACKAGE} as t, importlib, sys; importlib.reload(t.elsewhere); importlib.reload(t); t.Finder.install()"
    )
    script += "; print(sum(type(f).__name__ == 'Finder' for f in sys.meta_path))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n", done.stderr


def test_the_lists_are_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    assert {*compat.__all__, *ELSEWHERE} == set(torchattacks.__all__) and len(torchattacks.__all__) == 39
    assert not set(compat.__all__) & set(ELSEWHERE)
    assert set(compat.__wrapper__) == set(torchattacks.__wrapper__) - set(ELSEWHERE)
    for name, module in ELSEWHERE.items():
        assert getattr(importlib.import_module(f"torchattacks.{module}"), name) is getattr(torchattacks, name)


def test_the_table_of_the_page():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert set(rows) == {*compat.__all__, *ELSEWHERE}
    assert {name for name, cell in rows.items() if cell == "raises"} == set(ELSEWHERE)


def test_the_script_of_the_page():
    (script,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {"model": conv_net()}
    exec(script, names)
    assert all(inner.normalization_used is not None for inner in names["attack"].attacks)
