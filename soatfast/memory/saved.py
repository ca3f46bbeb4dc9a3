"""A memory on disk: safetensors files of at most a gigabyte, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from soatfast.memory.rows import Rows
from soatfast.memory.shards import block_rows


def save(rows: Rows, folder: Path) -> None:
    """:meth:`PerturbationMemory.save`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    label = {**rows.label(), "p": str(rows.p)}
    for path, block in _parts(rows, folder):
        save_file({name: t[block].contiguous() for name, t in rows.state().items()}, str(path), label)


def load(rows: Rows, folder: Path) -> None:
    """:meth:`PerturbationMemory.load`."""
    norms = {_norm_of(rows, path, block) for path, block in _parts(rows, folder)}
    if len(norms) > 1:
        raise ValueError(f"{folder} holds parts of several memories, for p = {' and '.join(sorted(norms))}")
    try:
        for path, block in _parts(rows, folder):
            rows.visits[block] = 1  # if the part fails half-way, reset() empties the whole of it
            with _opened(path) as file:
                for name, t in rows.state().items():
                    t[block].copy_(file.get_tensor(name))
    except BaseException:
        rows.reset()
        raise
    p = norms.pop() if norms else "None"
    rows.p = None if p == "None" else float(p)


def _norm_of(rows: Rows, path: Path, block: slice) -> str:
    """p of a file that fits these rows; ValueError for another."""
    with _opened(path) as file:
        label = dict(file.metadata() or {})
        p = label.pop("p", "")
        if label != rows.label() or not p:
            raise ValueError(f"{path} holds another memory: expected {rows.label()} and a p, got {file.metadata()}")
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        expected = {name: tuple(t[block].shape) for name, t in rows.state().items()}
        if shapes != expected:
            raise ValueError(f"{path} is damaged: expected tensors of {expected}, got {shapes}")
    return p


def _parts(rows: Rows, folder: Path) -> Iterator[tuple[Path, slice]]:
    """The files of a saved memory, and the rows that each holds."""
    step = block_rows(rows)
    for number, begin in enumerate(range(0, len(rows), step)):
        yield folder / f"rows-{number:05d}.safetensors", slice(begin, begin + step)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; ValueError where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:  # type: ignore[no-untyped-call]
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from error
