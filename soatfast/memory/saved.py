"""A memory on disk (safetensors files of at most a gigabyte) and as a state dict, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from soatfast.memory.rows import Rows
from soatfast.memory.shards import block_rows


def save(rows: Rows, folder: Path) -> None:
    """:meth:`PerturbationMemory.save`."""
    from safetensors.torch import save_file

    check_synchronized(rows)
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


def state_dict(rows: Rows) -> dict[str, Any]:
    """:meth:`PerturbationMemory.state_dict`."""
    if rows.world > 1:
        raise ValueError(
            f"this is rank {rows.rank}'s part of a memory of {rows.world} ranks, and a checkpoint of one rank would "
            "lose the others: memory.save(folder) on every rank keeps all"
        )
    check_synchronized(rows)
    return {"kind": rows.describe(), "p": rows.p, **rows.state()}


def load_state_dict(rows: Rows, state: Mapping[str, Any]) -> None:
    """:meth:`PerturbationMemory.load_state_dict`."""
    own = rows.state()
    if not isinstance(state, Mapping) or "kind" not in state or "p" not in state:
        names = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"expected the state_dict() of a PerturbationMemory, got {names}")
    if state["kind"] != rows.describe() or rows.world > 1:
        part = f", rank {rows.rank} of {rows.world}" if rows.world > 1 else ""
        raise ValueError(f"the state is of another memory: expected {rows.describe()}{part}, got {state['kind']}")
    came = {name: t for name, t in state.items() if name not in ("kind", "p")}
    shapes = {name: (tuple(t.shape), t.dtype) if isinstance(t, Tensor) else type(t) for name, t in came.items()}
    expected = {name: (tuple(t.shape), t.dtype) for name, t in own.items()}
    if shapes != expected:
        raise ValueError(f"the state is damaged: expected tensors of {expected}, got {shapes}")
    p = state["p"]
    if p is not None and (isinstance(p, bool) or not isinstance(p, (int, float)) or not p >= 1):
        raise ValueError(f"the state is damaged: p must be None or a number >= 1, got {p!r}")
    for name, t in own.items():
        t.copy_(came[name])
    rows.p = p


def check_synchronized(rows: Rows) -> None:
    """Raise where this rank's whole memory has visits of its own that :meth:`PerturbationMemory.synchronize` missed."""
    if rows.world > 1 or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    fresh = int((rows.visits != rows.common).sum())
    if fresh:
        raise ValueError(
            f"rank {dist.get_rank()} has visited {fresh} samples since the last synchronize(), and the other ranks "
            "have visited others: call memory.synchronize() on every rank before a checkpoint"
        )


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
