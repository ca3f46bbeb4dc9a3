"""Peak memory of attacks against that of one bare gradient pass and, for SOAE, the Krylov basis.

    python -m benchmarks.peak_memory [--device cuda]

The peak is of torch's allocator. On CUDA it keeps that figure itself; on the CPU it is added up from the allocations
and releases that torch.profiler records. "Whole" counts the model and the batch, which are there before the call.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.bench_attack import bare_passes
from soatfast.attacks import PGD, SOAE, Attack, FrankWolfe
from soatfast.runs.table import Column, Table
from soatfast.train.models import ResNet18, SmallCNN

EPS = 0.1
ATTACKS = (PGD(eps=EPS), FrankWolfe(eps=EPS), FrankWolfe(eps=EPS, scheme="cd"))
DIMENSIONS = (5, 10, 20)


@dataclass(frozen=True)
class Options:
    """Where to measure, and where the table goes."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Which allocator is watched."""
    batches: tuple[int, int] = (128, 8)
    """Samples on the small CNN and on ResNet-18."""
    run_dir: Path = Path("runs")
    """The table goes into peak_memory.md there."""


def peak(call: Callable[[], object], device: str = "cpu") -> int:
    """Bytes that a call has allocated at its worst moment, beyond what there was before. The call runs twice."""
    call()  # buffers that stay are made now
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    top = held = 0
    for size in _changes(profiler):
        held += size
        top = max(top, held)
    return top


def _changes(profiler: profile) -> list[int]:
    """Bytes allocated (> 0) and released (< 0), in order of time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(memory, key=lambda event: event["ts"])]


def rows(title: str, model: nn.Module, x: Tensor, y: Tensor) -> Iterator[dict[str, str | float | None]]:
    """One for each attack: megabytes of the bare pass, of the basis and of the attack, and their ratios."""
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers(), x, y))
    bare: dict[int, int] = {}
    for name, attack, dimension in _attacks():
        stacked = math.ceil(attack.passes().forward_samples / attack.passes().forward)  # central differences: 2
        if stacked not in bare:
            many = x.repeat(stacked, 1, 1, 1), y.repeat(stacked)
            bare[stacked] = peak(lambda many=many: bare_passes(model, *many, 1), x.device.type)
        basis = (dimension + 1) * x.nbytes if dimension else 0
        allowed, used = bare[stacked] + basis, peak(lambda attack=attack: attack(model, x, y), x.device.type)
        yield {
            "network": title,
            "attack": name,
            "held": held / 1e6,
            "bare": bare[stacked] / 1e6,
            "basis": basis / 1e6 if basis else None,
            "used": used / 1e6,
            "added": used / allowed,
            "whole": (held + used) / (held + allowed),
        }


def _attacks() -> Iterator[tuple[str, Attack, int]]:
    """(name, attack, Krylov dimension or 0); rtol and rcond are 0, so that the whole space is used."""
    for attack in ATTACKS:
        scheme = f", {attack.scheme}" if isinstance(attack, FrankWolfe) else ""
        yield f"{type(attack).__name__}{scheme}", attack, 0
    for variant in ("newton", "tr"):
        for m in DIMENSIONS:
            soae = SOAE(eps=EPS, variant=variant, steps=2, max_dim=m, rtol=0.0, rcond=0.0)  # type: ignore[arg-type]
            yield f"SOAE {variant}, m = {m}", soae, m


def table(options: Options) -> Table:
    torch.manual_seed(0)
    found: list[dict[str, str | float | None]] = []
    networks = (("SmallCNN", SmallCNN(), (1, 28, 28)), ("ResNet18", ResNet18(), (3, 32, 32)))
    for (name, model, shape), batch in zip(networks, options.batches, strict=True):
        x, y = torch.rand(batch, *shape, device=options.device), torch.randint(0, 10, (batch,), device=options.device)
        found.extend(rows(f"{name}, batch {batch}", model.to(options.device).eval(), x, y))
    columns = [
        Column("network", "network"),
        Column("attack", "attack"),
        Column("held", "there before, MB", 2),
        Column("bare", "a bare pass, MB", 2),
        Column("basis", "the basis, MB", 2),
        Column("used", "the attack, MB", 2),
        Column("added", "over pass and basis", 3),
        Column("whole", "the same, whole", 3),
    ]
    note = f"Peaks of torch's allocator on {options.device}, torch {torch.__version__}, float32."
    return Table("Peak memory", columns, found, note)


def main(options: Options) -> None:
    text = table(options).to_markdown()
    print(text)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    (options.run_dir / "peak_memory.md").write_text(text)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
