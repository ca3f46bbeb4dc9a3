"""`soatfast bench`: the benchmarks of a checkout, or a short timing where there is none."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import soatfast
from soatfast import ops
from soatfast.attacks import PGD
from soatfast.losses import SCORPIO, AdversarialTraining
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.folder import OPTIONS, check_options, remove_command, write_options
from soatfast.runs.lock import locked
from soatfast.runs.progress import Progress
from soatfast.runs.resume import Start
from soatfast.runs.table import Column, Table
from soatfast.train.models import SmallCNN

RESULTS, SHOWN = "bench.json", "bench.md"
_PARTS = "parts"
_CHECKOUT = Path(soatfast.__file__).parents[1]
_ROUNDS = 21


@dataclass(frozen=True)
class BenchConfig(Start):
    """Time the ops, attacks and training steps against their baselines on this machine.

    In a checkout its benchmarks run through pytest, file by file, for many minutes; after an interruption the same
    command resumes. Elsewhere, or with --quick, a short timing that comes with the package runs.
    """

    run_dir: Path = Path("runs/bench")
    """Output folder. A run found there is resumed."""
    only: tuple[str, ...] = ()
    """Benchmarks of the checkout to run: lmo, attack, training_step, ... None: all."""
    quick: bool = False
    """Run the short timing, also in a checkout."""

    def __post_init__(self) -> None:
        if self.quick and self.only:
            raise ValueError(f"only chooses among the checkout's benchmarks, without quick, got {', '.join(self.only)}")


def run(config: BenchConfig, progress: Progress | None = None, checkout: Path = _CHECKOUT) -> str:
    """Run them; write bench.json, bench.md and options.json; return the Markdown table.

    Raises UserError: `only` names no benchmark, pytest-benchmark is not installed, or a benchmark failed.
    """
    progress = progress or Progress()
    config.check_start(config.run_dir, OPTIONS)
    scripts = sorted((checkout / "benchmarks").glob("bench_*.py"))
    quick = config.quick or not scripts
    if quick and config.only:
        raise UserError(f"only chooses among a checkout's benchmarks, and {checkout} has none")
    names = [] if quick else _names(scripts, config.only)
    with locked(config.run_dir, progress.note):
        return _run(config, names, checkout, progress)


def _run(config: BenchConfig, names: list[str], checkout: Path, progress: Progress) -> str:
    quick = not names
    options = {"command": "bench", "quick": quick, "machine": _machine()}
    if config.fresh:
        remove_command(config.run_dir, "bench", "benchmarks", _PARTS, RESULTS, SHOWN)
    check_options(config.run_dir, options)
    write_options(config.run_dir, options)
    if quick:
        text = _quick(config.run_dir, progress)
    else:
        text = _full(config.run_dir, names, checkout, progress)
    files.write_text(config.run_dir / SHOWN, text)
    progress.wrote(config.run_dir, SHOWN, RESULTS, OPTIONS)
    return text


def _machine() -> dict[str, Any]:
    """What a figure holds for: figures of two machines, versions or thread numbers do not go into one table."""
    version, threads = soatfast.__version__, torch.get_num_threads()
    return {"cpu": platform.machine(), "threads": threads, "torch": torch.__version__, "soatfast": version}


def _names(scripts: list[Path], only: tuple[str, ...]) -> list[str]:
    there = [path.stem.removeprefix("bench_") for path in scripts]
    unknown = [name for name in only if name not in there]
    if unknown:
        raise UserError(f"only must be some of {', '.join(there)}, got {', '.join(unknown)}")
    return [name for name in there if not only or name in only]


def _full(folder: Path, names: list[str], checkout: Path, progress: Progress) -> str:
    """Each file in a process of its own; what is done is kept, so that an interruption costs one file."""
    parts = folder.resolve() / _PARTS
    parts.mkdir(exist_ok=True)
    whole: dict[str, Any] = {}
    for i, name in enumerate(names):
        progress.stage(f"bench_{name}", i, len(names))
        path = parts / f"{name}.json"
        if not path.is_file():
            _run_file(name, path, checkout)
        found = files.read_json(path)
        whole = {**found, "benchmarks": [*whole.get("benchmarks", []), *found["benchmarks"]]}
    files.write_text(folder / RESULTS, json.dumps(whole, indent=2) + "\n")  # pytest-benchmark has infinities
    command = [sys.executable, "-m", "benchmarks.report", str((folder / RESULTS).resolve())]
    return _output(command, checkout, "the report") + "\n"


def _run_file(name: str, path: Path, checkout: Path) -> None:
    with files.replacing(path) as partial:
        command = [sys.executable, "-m", "pytest", "-q", f"benchmarks/bench_{name}.py", f"--benchmark-json={partial}"]
        _output(command, checkout, f"bench_{name}")
        try:
            json.loads(partial.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"bench_{name} wrote no figures: are all its tests deselected? ({error})") from error


def _output(command: list[str], checkout: Path, what: str) -> str:
    # A pytest around this one (its workers time nothing) is none of its business.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=environment)
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        hint = next((line for line in lines if "No module named" in line or "unrecognized arguments" in line), None)
        needs = "; pip install pytest pytest-benchmark" if hint else ""
        raise UserError(f"{what} failed: {hint or (lines[-1] if lines else done.returncode)}{needs}")
    return done.stdout.strip()


def _quick(folder: Path, progress: Progress) -> str:
    rows: list[dict[str, Any]] = []
    races = _races()
    for i, (title, candidates) in enumerate(races.items()):
        progress.stage(title, i, len(races))
        medians = _race(candidates)
        mine, *others = medians.items()
        rivals = ", ".join(f"{name} {seconds / mine[1]:.2f}" for name, seconds in others)
        rows.append({"race": title, "ours": 1e6 * mine[1], "rivals": rivals, "medians": medians})
    columns = [Column("race", "race"), Column("ours", "soatfast, us", 0), Column("rivals", "others' time over ours")]
    machine = _machine()
    note = (
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}: medians of {_ROUNDS} runs in turns "
        f"in float32 on the CPU. This is the short timing of soatfast bench; a checkout's benchmarks say more."
    )
    files.write_json(folder / RESULTS, {"machine": machine, "races": rows})
    return Table("benchmarks, short", columns, rows, note).to_markdown()


def _races() -> dict[str, dict[str, Callable[[], Any]]]:
    """Title -> candidates, ours first."""
    generator = torch.Generator().manual_seed(0)
    g, noise = (torch.randn(128, 3072, generator=generator) for _ in range(2))
    x = torch.rand(128, 3072, generator=generator)
    x_adv = (x + 0.1 * noise).clamp(0, 1)
    races: dict[str, dict[str, Callable[[], Any]]] = {}
    for p, name in ((float("inf"), "inf"), (2.0, "2")):
        calls: dict[str, Callable[[], Any]] = {
            "lmo": partial(ops.lmo, g, p, 0.1),
            "pgd_step": partial(ops.pgd_step, x_adv, g, x, p, 0.1, 0.02),
            "project": partial(ops.project, x_adv, x, p, 0.1),
        }
        for op, call in calls.items():
            races[f"{op}, p = {name}, (128, 3072)"] = {"soatfast": call, "PyTorch": partial(_by_reference, call)}
    images = torch.rand(100, 1, 28, 28, generator=generator)
    labels = torch.randint(0, 10, (100,), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SmallCNN()
    pgd = PGD(eps=0.2, steps=10, mode="keep")
    races["PGD-10, small CNN, batch 100"] = {
        "soatfast": partial(pgd, model, images, labels),
        "its bare passes": partial(_bare, model, images, labels),
    }
    races["training step SCORPIO FE(3), small CNN, batch 100"] = {
        "soatfast": partial(_step, SCORPIO(eps=0.2, mode="keep"), model, images, labels),
        "PGD-10": partial(_step, AdversarialTraining(pgd), model, images, labels),
    }
    return races


def _by_reference(call: Callable[[], Any]) -> Any:
    with ops.backend("reference"):
        return call()


def _bare(model: nn.Module, x: Tensor, y: Tensor) -> None:
    for _ in range(10):
        x = x.detach().requires_grad_()
        torch.autograd.grad(nn.functional.cross_entropy(model(x), y), x)


def _step(loss: Any, model: nn.Module, x: Tensor, y: Tensor) -> None:
    model.zero_grad()
    loss(model, x, y).backward()


def _race(candidates: dict[str, Callable[[], Any]]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(_ROUNDS):
        for name, call in candidates.items():
            call()  # what the others left in the caches is not this call's
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(record) for name, record in times.items()}
