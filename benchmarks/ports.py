"""Five scripts of the field before and after their port: passes, time, and what `soatfast profile` said before.

    OMP_NUM_THREADS=1 python -m benchmarks.ports [--networks resnet18] [--rounds 9] [--only trades] [--malloc]

Both ways train networks of their own, from the same weights and on the same batches, step by step in turns. Each has a
process of its own, as its memory would be the other's else. The ratio is the median seconds of a step before over those
after. `soatfast profile` runs the script before its port, and has not seen the port. glibc gives memory back between
passes, now more and now less: the port is timed with the line sf.keep_memory() as well, and with --malloc the
environment keeps the memory of every process.

Prediction, written before the first run: 1.3 for PGD-10 and TRADES, 1.15 for FGSM, 1.0 for free training and 1.1 for
torchattacks, which computes no gradients of the weights.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

import soatfast as sf

FOLDER = Path(__file__).parents[1] / "examples" / "ports"
NAMES = ("fast_adversarial", "trades", "robust_overfitting", "free", "torchattacks_tutorial")
BATCH = {"small-cnn": 128, "resnet18": 32}
WAYS = ("before", "after", "kept")
PARTS = ("forward", "backward_input", "backward_parameters")
_PROFILED = 8  # optimizer steps


def said(name: str, network: str) -> dict[str, Any]:
    """The JSON of `soatfast profile` for the script before its port."""
    with tempfile.TemporaryDirectory() as folder:
        script = [str(FOLDER / f"{name}_before.py"), "--network", network, "--batch-size", str(BATCH[network])]
        options = ["--steps", str(_PROFILED), "--run-dir", folder]
        command = [sys.executable, "-m", "soatfast", "profile", *options, *script, "--steps", str(_PROFILED)]
        path = os.pathsep.join([str(FOLDER.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path})
        return json.loads((Path(folder) / "profile.json").read_text())


def work(pipe: Connection, name: str, way: str, network: str, rounds: int) -> None:
    """In a process of its own: the passes of a step, then the seconds of one step a message."""
    sys.path.insert(0, str(FOLDER))
    if way == "kept":
        sf.keep_memory()
    file = f"{name}_{'after' if way == 'kept' else way}"
    setting, script = importlib.import_module("setting"), importlib.import_module(file)
    batches = setting.batches(BATCH[network], rounds + 2)
    model = setting.network(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    script.step(model, optimizer, *batches[0])
    with sf.count_passes(model) as counted:
        script.step(model, optimizer, *batches[1])
    pipe.send(counted.total())
    for x, y in batches[2:]:
        pipe.recv()
        start = time.perf_counter()
        script.step(model, optimizer, x, y)
        pipe.send(time.perf_counter() - start)


def measured(name: str, network: str, rounds: int) -> dict[str, Any]:
    """Passes of a step before and after, and the median seconds of each, in turns."""
    context = multiprocessing.get_context("spawn")
    pipes, passes, seconds = {}, {}, {}
    for way in WAYS:
        pipes[way], other = context.Pipe()
        context.Process(target=work, args=(other, name, way, network, rounds), daemon=True).start()
        passes[way], seconds[way] = pipes[way].recv(), []
    for _ in range(rounds):
        for way, pipe in pipes.items():
            pipe.send("step")
            seconds[way].append(pipe.recv())
    return {"passes": passes, "seconds": {way: statistics.median(record) for way, record in seconds.items()}}


def row(name: str, network: str, rounds: int) -> str:
    profile = said(name, network)
    estimate = profile["estimate"]
    stays = sum(saving["seconds"] for saving in estimate["savings"] if saving["name"] == "memory that stays")
    told = {"after": estimate["speed"], "kept": estimate["seconds"] / (estimate["after"] - stays)}
    found = measured(name, network, rounds)
    seconds = found["seconds"]
    cells = [" / ".join(str(getattr(found["passes"][way], part)) for part in PARTS) for way in ("before", "after")]
    cells += [f"{1e3 * seconds[way]:.1f}" for way in WAYS]
    for way, speed in told.items():
        ratio = seconds["before"] / seconds[way]
        cells += [f"{speed:.2f}", f"{ratio:.2f}", f"{100 * (speed / ratio - 1):+.0f}"]
    return f"| {name} | {network} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", choices=tuple(BATCH), default=list(BATCH))
    parser.add_argument("--only", nargs="*", choices=NAMES, default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--malloc", action="store_true", help="memory stays in all processes, also before the port")
    chosen = parser.parse_args()
    if chosen.malloc:
        os.environ.update(MALLOC_MMAP_THRESHOLD_=str(2**30), MALLOC_TRIM_THRESHOLD_=str(2**32))
    print(
        "| script | network | passes before | after | ms before | after | with keep_memory "
        "| said | measured | off by % | with keep_memory: said | measured | off by % |"
    )
    print("|---|---|---|---|" + "---:|" * 9)
    for network in chosen.networks:
        for name in chosen.only:
            print(row(name, network, chosen.rounds), flush=True)


if __name__ == "__main__":
    main()
