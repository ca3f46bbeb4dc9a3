"""The pages that nobody writes by hand: one for each public name of the package, and one for each example."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from formulas import escaped
from sphinx.util.nodes import make_refnode

# Module: title. A name that several list belongs to the first; soatfast's page, the last, lists the flat names.
# A module that one of these names in its __all__ gets a page as well.
MODULES = {
    "soatfast.attacks": "Attacks",
    "soatfast.losses": "Losses",
    "soatfast.memory": "Memory",
    "soatfast.gradients": "Gradients and passes",
    "soatfast.solvers": "Solvers and curvature",
    "soatfast.evaluate": "Evaluation",
    "soatfast.explain": "Explanations",
    "soatfast.profile": "Profiling a script",
    "soatfast.train": "Training",
    "soatfast.ops": "Ops",
    "soatfast.compat": "Other libraries' names",
    "soatfast.compat.torchattacks": "torchattacks' names",
    "soatfast.compat.trades": "TRADES' name",
    "soatfast.compat.mart": "MART's name",
    "soatfast.compat.fast_adversarial": "fast_adversarial's name",
    "soatfast": "The flat names",
}

_INDEX = """Reference
=========

``import soatfast as sf`` gives the flat names. They and their sub-packages:

.. toctree::
   :maxdepth: 1
"""
_EXAMPLES = """# Examples

Each is a script of `examples/` that runs on a CPU in seconds.
"""


class Reference:
    """The public names, and the page on which each has its home."""

    def __init__(self) -> None:
        self.names: dict[str, dict[str, object]] = {}
        self.homes: dict[int, str] = {}
        waiting = list(MODULES)
        while waiting:
            module = waiting.pop(0)
            found = importlib.import_module(module)
            self.names[module] = {name: getattr(found, name) for name in _public(found)}
            for name, item in self.names[module].items():
                if not isinstance(item, ModuleType):
                    self.homes.setdefault(id(item), f"{module}.{name}")
                elif module != "soatfast" and item.__name__ not in (*self.names, *waiting):
                    waiting.append(item.__name__)

    def write(self, folder: Path) -> None:
        for module in self.names:
            short = module.removeprefix("soatfast.")
            own = [name for name, item in self.names[module].items() if self._home(module, name, item) is None]
            for name in own:
                _write(folder / short / f"{name}.rst", self._page(module, name, self.names[module][name]))
            children = [name for name in self.names if name not in MODULES and name.rpartition(".")[0] == module]
            _write(folder / f"{short}.rst", self._module(module, short, own, children))
        listed = [f"   {module.removeprefix('soatfast.')}" for module in ("soatfast", *list(MODULES)[:-1])]
        _write(folder / "index.rst", "\n".join([_INDEX, *listed, ""]))

    def _home(self, module: str, name: str, item: object) -> str | None:
        """Where else this name is at home; None: here."""
        if isinstance(item, ModuleType):
            return item.__name__
        home = self.homes.get(id(item), f"{module}.{name}")
        return None if home == f"{module}.{name}" else home

    def near(self, module: str, target: str) -> object:
        """What a docstring of this module calls by a short name: it may stand in any of the module's files."""
        items = self.names.get(module, {}).values()
        files = dict.fromkeys([module, *(getattr(item, "__module__", module) for item in items)])
        return next((found for file in files if (found := _imported(f"{file}.{target}")) is not None), None)

    def ancestor(self, item: type) -> type | None:
        """The nearest public class that it derives from."""
        return next((base for base in item.__mro__[1:] if id(base) in self.homes), None)

    def _page(self, module: str, name: str, item: object) -> str:
        full = f"{module}.{name}"
        lines = [name, "=" * len(name), ""]
        if inspect.isclass(item):
            elsewhere = [b.__name__ for b in item.__mro__[1:] if id(b) in self.homes or not _ours(b)]
            lines += [f".. autoclass:: {full}", "   :members:", "   :special-members: __call__"]
            lines += [f"   :inherited-members: {', '.join(elsewhere)}"]
            lines += ["   :show-inheritance:"] if self.ancestor(item) else []
        elif inspect.isroutine(item):
            lines += [f".. autofunction:: {full}"]
        else:
            lines += [f".. py:data:: {full}", f"   :value: {repr(item)[:100]}"]
        return "\n".join([*lines, ""])

    def _module(self, module: str, short: str, own: list[str], children: list[str]) -> str:
        title = MODULES.get(module, short)
        lines = [title, "=" * len(title), "", f".. automodule:: {module}", "   :no-members:", ""]
        for name, item in self.names[module].items():
            kind = "mod" if isinstance(item, ModuleType) else "obj"
            home = self._home(module, name, item) or f"{module}.{name}"
            lines.append(f"- :py:{kind}:`{name} <{home}>`{_first_sentence(item)}")
        below = [f"{short}/{name}" for name in own] + [name.removeprefix("soatfast.") for name in children]
        lines += ["", ".. toctree::", "   :hidden:", "", *(f"   {name}" for name in below), ""]
        return "\n".join(lines)


def _public(module: ModuleType) -> list[str]:
    names = getattr(module, "__all__", None)
    if names is None:  # what it defines
        names = [n for n, item in vars(module).items() if getattr(item, "__module__", None) == module.__name__]
    return [name for name in names if not name.startswith("_")]


def _ours(item: type) -> bool:
    return item.__module__.startswith("soatfast")


def _first_sentence(item: object) -> str:
    if not (inspect.isroutine(item) or inspect.isclass(item) or isinstance(item, ModuleType)):
        return ""
    paragraph = " ".join((inspect.getdoc(item) or "").split("\n\n")[0].split())
    first = re.split(r"(?<! al)\. (?=[A-Z])", paragraph)[0]
    first = re.sub(r":[a-z:]+:`~?(?:\w+\.)*(\w+)`", r"``\1``", first)
    return f": {escaped(first.rstrip('.:'))}." if first else ""


def bases(app: Any, name: str, item: type, options: Any, found: list[Any]) -> None:
    """The public class that it derives from, in place of those between."""
    found[:] = [app.reference.ancestor(item)]


def examples(source: Path, folder: Path) -> None:
    """A page for each script of examples/: its docstring, then the rest of it."""
    listed, pages = [], []
    for script in sorted(source.glob("*.py")):
        if script.stem.startswith(("_", "test_", "conftest")):
            continue
        tree = ast.parse(script.read_text(encoding="utf-8"))
        title, said = script.stem.replace("_", " ").capitalize(), ast.get_docstring(tree) or ""
        begin = f":lines: {(tree.body[0].end_lineno or 0) + 2}-\n" if said else ""
        code = f"```{{literalinclude}} ../../examples/{script.name}\n:language: python\n{begin}```"
        _write(folder / f"{script.stem}.md", f"# {title}\n\n{said}\n\n{code}\n")
        first = " ".join(said.partition("\n\n")[0].split())
        listed.append(f"- [{title}]({script.stem}.md): {first}")
        pages.append(script.stem)
    toctree = "\n".join(["```{toctree}", ":hidden:", "", *pages, "```"])
    _write(folder / "index.md", "\n".join([_EXAMPLES, *listed, "", toctree, ""]))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def generate(app: Any) -> None:
    docs = Path(app.srcdir)
    app.reference = Reference()
    for folder in ("api", "tutorials"):
        shutil.rmtree(docs / folder, ignore_errors=True)
    app.reference.write(docs / "api")
    examples(docs.parent / "examples", docs / "tutorials")


def signature(
    app: Any, what: str, name: str, item: object, options: Any, arguments: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """8/255 as people write it, not 0.03137254901960784; classes by the path of their page, as two may share a name."""
    around = sys.modules.get(getattr(item, "__module__", ""))

    def path(match: re.Match[str]) -> str:
        home: str = app.reference.homes.get(id(getattr(around, match[0], None)), match[0])
        return home

    def fraction(match: re.Match[str]) -> str:
        times = 255 * float(match[0])
        return f"{round(times)}/255" if abs(times - round(times)) < 1e-12 else match[0]

    shown = arguments and re.sub(r"0\.0\d{9,}", fraction, arguments).replace("<factory>", "...")
    return shown and re.sub(r"(?<![\w.'])[A-Z]\w+", path, shown), returned


def resolve(app: Any, env: Any, node: nodes.Element, content: nodes.Element) -> nodes.Element | None:
    """A reference by another path than the page's (soatfast.attacks.base.Attack): the same object, so the same page.

    What exists and has no page is text; what does not exist is left, for Sphinx to warn of.
    """
    target, module = str(node.get("reftarget", "")), str(node.get("py:module"))
    if node.get("refdomain") != "py":
        return None
    item = _imported(target) if target.startswith("soatfast.") else app.reference.near(module, target)
    entry = env.get_domain("py").objects.get(app.reference.homes.get(id(item), ""))
    if entry is None:
        return None if item is None else content
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, content, target)


def _imported(target: str) -> object:
    module, _, name = target.rpartition(".")
    while module:
        try:
            item: object = importlib.import_module(module)
        except ImportError:
            module, _, head = module.rpartition(".")
            name = f"{head}.{name}"
            continue
        for part in name.split("."):
            fields = getattr(item, "__annotations__", {})  # a dataclass has its fields without a default only there
            item = getattr(item, part, fields.get(part))
        return item
    return None


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", generate)
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-bases", bases)
    app.connect("autodoc-process-signature", signature)
    return {"parallel_read_safe": True}
