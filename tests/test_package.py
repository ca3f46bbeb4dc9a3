"""The package as a newcomer meets it: what an import costs, which names there are, and what a misspelt one says."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import soatfast as sf

ROOT = Path(sf.__file__).parents[1]
FOLDERS = sorted(path.parent.name for path in Path(sf.__file__).parent.glob("*/__init__.py"))
HEAVY = ("accelerate", "matplotlib", "rich", "scipy", "sklearn", "torchmetrics", "tyro")


def loaded_by(program: str) -> set[str]:
    """The top-level modules that a fresh Python has after the program."""
    program += "\nimport sys\nprint(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_import_loads_nothing_before_its_first_use():
    loaded = loaded_by("import soatfast as sf")
    assert "soatfast" in loaded and not loaded & {*HEAVY, "torch", "numpy"}


@pytest.mark.parametrize("program", ["import soatfast as sf; sf.PGD; sf.TRADES; sf.gmres", "import soatfast.losses"])
def test_attacks_losses_and_solvers_load_no_machinery_of_runs(program):
    loaded = loaded_by(program)
    assert "torch" in loaded and not loaded & set(HEAVY)


def test_every_name_is_there_and_listed():
    assert len(sf.__all__) == len(set(sf.__all__)) > 50
    for name in sf.__all__:
        assert getattr(sf, name) is not None, name
    assert set(sf.__all__) <= set(dir(sf))
    assert {"PGD", "TRADES", "PerturbationMemory", "InputGradient", "gmres", "evaluate", "ops"} <= set(sf.__all__)
    names: dict[str, object] = {}
    exec("from soatfast import *", names)
    assert set(sf.__all__) <= set(names)


@pytest.mark.parametrize("folder", ["attacks", "gradients", "losses", "memory", "solvers"])
def test_a_flat_name_is_that_of_its_folder(folder):
    module = importlib.import_module(f"soatfast.{folder}")
    assert all(getattr(sf, name) is getattr(module, name) for name in module.__all__)


@pytest.mark.parametrize(("name", "near"), [("PDG", "PGD"), ("pgd", "PGD"), ("count_pass", "count_passes")])
def test_a_misspelt_name_says_what_exists(name, near):
    with pytest.raises(AttributeError) as error:
        getattr(sf, name)
    assert str(error.value) == f"module 'soatfast' has no attribute '{name}'; did you mean '{near}'?"


def test_a_name_like_no_other_lists_what_exists():
    with pytest.raises(AttributeError, match=r"has no attribute 'xyzzy'; it has .*PGD.*TRADES"):
        sf.xyzzy  # noqa: B018
    assert not hasattr(sf, "_private") and not hasattr(sf, "__wrapped__")  # inspect and doctest ask such things


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_public_name_hides_a_module(folder):
    package = importlib.import_module(f"soatfast.{folder}")
    for info in pkgutil.iter_modules(package.__path__):
        if info.name in getattr(package, "__all__", ()):
            module = importlib.import_module(f"soatfast.{folder}.{info.name}")
            assert getattr(package, info.name) is module, f"soatfast.{folder}.{info.name} is a module as well"
    if folder in sf.__all__:
        assert getattr(sf, folder) is package


HIDDEN = """
import sys
class Hidden:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in {hidden}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
"""
EXTRAS = {"accelerate", "docstring_parser", "jinja2", "matplotlib", "rich", "scipy", "sklearn", "torchmetrics", "tyro"}


def test_torch_numpy_and_safetensors_are_enough_for_the_library():
    """Attacks, losses, memory, solvers and evaluation; training and the command say which extra they need."""
    program = (
        HIDDEN.format(hidden=EXTRAS)
        + """
import torch, soatfast as sf
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
x, y = torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1])
found = sf.evaluate.suite(model, [(x, y)], {"pgd": sf.PGD(eps=0.1)}, quality=False)
assert "pgd" in found.table().to_markdown().lower()
sf.SCORPIO(eps=0.1)(model, x, y).backward()
try:
    sf.train
except ImportError as error:
    assert str(error) == "soatfast.train: the package accelerate is missing: pip install 'soatfast[train]'", error
else:
    raise SystemExit("sf.train needs accelerate")
from soatfast.commands.main import main
sys.exit(main(["doctor"]))
"""
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert done.stderr == "error: the package rich is missing: pip install 'soatfast[cli]'\n"
