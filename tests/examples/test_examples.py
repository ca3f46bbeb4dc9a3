"""Every example runs as a user runs it: its own process, from another folder, on one core."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import soatfast

ROOT = Path(soatfast.__file__).parents[1]
FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))
SHARE = r"(0\.\d+|1\.0+)"
SAYS = {
    "accelerate_ddp": rf"processes: 2, same weights: True\naccuracy under PGD-10: (?P<least_30>{SHARE})",
    "count_passes": r"forwards 10, backwards to the input alone 0, .* weights 10\n"
    r"soatfast .* alone 10, .* weights 0\nsoatfast states them beforehand: True",
    "curvature": r"1 forward for all of them\nGMRES converged: True, .*\n.*\ndense Hessian agrees: True",
    "evaluate_model": rf"worst case: accuracy (?P<least_50>{SHARE}), resumed (?P=least_50)$",
    "memory": rf"1 to the input\naccuracy under PGD-20: (?P<least_30>{SHARE})",
    "one_import": r"(same predictions: 1\.000|nothing to compare with)\nTRADES loss [\d.]+ from 13 forwards",
    "output_of_attack": rf"epoch 4: .*, training accuracy under attack (?P<least_30>{SHARE})",
    "own_attack": rf"passes as stated: True; largest change 0\.0500\n[^$]*under the new attack: (?P<most_90>{SHARE})",
    "three_lines": rf"accuracy: clean (?P<least_70>{SHARE}), PGD-20 (?P<least_40>{SHARE})",
    "timm_network": rf"before the attack: True, training mode: True\n.*\naccuracy: clean (?P<least_90>{SHARE})",
    "transformers_vit": rf"accuracy: clean (?P<least_90>{SHARE}), PGD-10 (?P<least_80>{SHARE})",
}
"""What each prints, as a pattern. A share named least_30 is at least 30 %, one named most_90 at most 90 %."""
LAUNCHER = {"accelerate_ddp": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]}
NEEDS = {"timm_network": ("timm", "torchvision"), "transformers_vit": ("transformers",)}


def test_every_example_is_in_the_table():
    assert {path.stem for path in SCRIPTS} == set(SAYS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example(script, tmp_path):
    for name in NEEDS.get(script.stem, ()):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, *LAUNCHER.get(script.stem, []), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(SAYS[script.stem], done.stdout, re.MULTILINE)
    assert found, done.stdout
    for name, share in found.groupdict().items():
        kind, percent = name.split("_")
        value, bound = float(share), int(percent) / 100
        assert value >= bound if kind == "least" else value <= bound, f"{name}: {done.stdout}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_is_short_and_says_how_to_run_it(script):
    text = script.read_text()
    assert 20 <= len(text.splitlines()) <= 60
    described = ast.get_docstring(ast.parse(text)) or ""
    assert f"examples/{script.name}" in described and "import soatfast as sf" in text
