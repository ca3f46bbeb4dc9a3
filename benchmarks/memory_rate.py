"""What a PerturbationMemory costs: bytes on paper for known data sets, and the measured rate of visits.

    python -m benchmarks.memory_rate [--folder DIR]

A visit reads and writes every row of its batch once: replay_start and replay_step, without the network passes. The
mapped files are dropped from the page cache first ("cold") or not. Rates are memory bytes read plus written a second.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from soatfast.memory.store import PerturbationMemory

DATA = {
    "CIFAR-10": (50_000, (3, 32, 32)),
    "SVHN": (73_257, (3, 32, 32)),
    "ImageNet": (1_281_167, (3, 224, 224)),
}
BATCH = 128
BOUNDS = (0.0, 1.0)


@dataclass(frozen=True)
class Options:
    """Where and how long to measure."""

    folder: Path | None = None
    """Folder of the mapped files; a temporary one by default."""
    rows: int = 4096
    """Rows of the memory with ImageNet's shape."""
    batches: int = 20
    """Batches measured; the median counts."""


def sizes() -> str:
    """The table of docs/measurements.md."""
    lines = ["| data set | float32 | bfloat16 | int8 |", "|---|---:|---:|---:|"]
    for name, (samples, shape) in DATA.items():
        cells = []
        for dtype in (torch.float32, torch.bfloat16, torch.int8):
            total = PerturbationMemory(samples, shape, dtype, "meta").nbytes  # that holds nothing
            cells.append(f"{total / 1e9:.0f} GB" if total > 1e10 else f"{total / 1e6:.0f} MB")
        size = " x ".join((f"{samples:,}".replace(",", " "), *map(str, shape)))
        lines.append(f"| {name}, {size} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate(memory: PerturbationMemory, batches: int, cold: bool) -> tuple[float, float]:
    """(median milliseconds a batch, bytes a second) of visits in random order."""
    order = torch.randperm(len(memory))
    x, g = torch.rand(BATCH, *memory.shape), torch.randn(BATCH, *memory.shape)
    seconds = []
    for step in range(batches):
        index = order[(step * BATCH) % len(memory) :][:BATCH]
        if len(index) < BATCH:
            continue
        if cold and memory.path is not None:
            drop(memory)
        start = time.perf_counter()
        with memory.visit(index, x) as visit:
            visit.start(x, 8 / 255, BOUNDS)
            visit.step(g, x, float("inf"), 8 / 255, 0.5, BOUNDS)
        seconds.append(time.perf_counter() - start)
    middle = statistics.median(seconds)
    return 1e3 * middle, 2 * BATCH * memory.values[0].nbytes / middle


def drop(memory: PerturbationMemory) -> None:
    """Write the file's pages back and drop them from the page cache and from this process."""
    assert memory.path is not None
    pages = memory.values.untyped_storage()
    libc = ctypes.CDLL(None, use_errno=True)
    with memory.path.open("rb") as file:
        os.fsync(file.fileno())
        if libc.madvise(ctypes.c_void_p(pages.data_ptr()), ctypes.c_size_t(pages.nbytes()), mmap.MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def fill(memory: PerturbationMemory) -> None:
    """Every row is written once: a file has no holes then."""
    for begin in range(0, len(memory), 256):
        part = memory.values[begin : begin + 256]
        part.copy_(torch.randint(-127, 128, part.shape).to(part.dtype) if part.dtype == torch.int8 else torch.rand(1))


def main(options: Options) -> None:
    print(sizes(), end="\n\n")
    print(f"| memory, batches of {BATCH} | ms a batch | MB/s read and written |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name, rows, shape in (
            ("CIFAR-10's", 50_000, (3, 32, 32)),
            (f"ImageNet's shape, {options.rows} rows", options.rows, (3, 224, 224)),
        ):
            for dtype in (torch.float32, torch.bfloat16, torch.int8):
                if dtype is not torch.int8 and shape[1] > 32:
                    continue
                path = Path(folder) / f"{name}-{dtype}"
                for place, cold in (("cpu", False), (path, False), (path, True)):
                    memory = PerturbationMemory(rows, shape, dtype, place)
                    fill(memory)
                    milliseconds, speed = rate(memory, options.batches, cold)
                    where = "RAM" if place == "cpu" else "mapped file, " + ("cold" if cold else "cached")
                    label = str(dtype).removeprefix("torch.")
                    print(f"| {name}, {label}, {where} | {milliseconds:.1f} | {speed / 1e6:.0f} |", flush=True)
                    del memory
                path.unlink()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
