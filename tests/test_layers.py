"""Imports go one way: no file imports from a folder above its own, and no two files import each other."""

import ast
import graphlib
from pathlib import Path

import pytest

import soatfast

ROOT = Path(soatfast.__file__).parent
ORDER = (
    *("ops", "testing", "gradients", "memory", "solvers", "attacks", "losses", "compat"),
    *("runs", "profile", "evaluate", "explain", "train", "commands"),
)
FILES = {
    ".".join(("soatfast", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}


def imported(text: str, name: str = "", package: bool = False) -> set[str]:
    """The modules of soatfast that a source file imports, wherever in it; those under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parts = name.split(".")[: len(name.split(".")) - node.level + package] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in FILES else base for alias in node.names}
    return {module for module in found if module.split(".")[0] == "soatfast"}


def upwards(name: str, modules: set[str]) -> list[str]:
    """Those of `modules` that lie above the file `name`; compat is a leaf that nothing imports."""
    own = ORDER.index(name.split(".")[1])
    folders = {module: ORDER.index(module.split(".")[1]) for module in modules if module != "soatfast"}
    compat = ORDER.index("compat")
    return sorted(module for module, rank in folders.items() if rank > own or (rank == compat != own))


IMPORTS = {name: imported(path.read_text(), name, path.name == "__init__.py") for name, path in FILES.items()}
LIBRARY = [name for name in FILES if name not in ("soatfast", "soatfast.__main__")]


@pytest.mark.parametrize("name", LIBRARY)
def test_no_file_imports_upwards(name):
    assert not upwards(name, IMPORTS[name])


@pytest.mark.parametrize("name", LIBRARY)
def test_no_file_imports_a_private_name_of_another_folder(name):
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("soatfast."):
            other = node.module.split(".")[1] != name.split(".")[1]
            assert not other or not [alias.name for alias in node.names if alias.name.startswith("_")], node.module


def test_there_is_no_circle():
    graph = {name: IMPORTS[name] - {"soatfast"} for name in LIBRARY}
    assert len(tuple(graphlib.TopologicalSorter(graph).static_order())) >= len(LIBRARY)


def test_the_test_sees_an_import_upwards():
    assert upwards("soatfast.ops.lmo", imported("def f():\n    from soatfast.attacks.pgd import PGD")) != []
    assert upwards("soatfast.attacks.pgd", imported("import soatfast.losses.base")) == ["soatfast.losses.base"]
    assert upwards("soatfast.train.trainer", imported("from soatfast.compat import trades")) == [
        "soatfast.compat.trades"
    ]
    assert upwards("soatfast.commands.main", imported("from soatfast import ops")) == []
    with pytest.raises(graphlib.CycleError):
        tuple(graphlib.TopologicalSorter({"a": {"b"}, "b": {"a"}}).static_order())


def test_the_top_of_the_package_is_folders():
    built = {"__pycache__", "_build_info.json"}
    names = {path.name for path in ROOT.iterdir()} - built
    assert {name for name in names if not name.endswith(".so")} == {*ORDER, "__init__.py", "__main__.py", "py.typed"}


def test_no_file_is_two_ideas():
    long = {name: n for name, path in FILES.items() if (n := len(path.read_text().splitlines())) > 400}
    assert not long
