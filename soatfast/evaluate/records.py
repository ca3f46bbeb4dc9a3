"""The file of an evaluation: per-sample records, what they cost, and what made them. NumPy arrays, never a pickle."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from soatfast.evaluate.batch import FIELDS, Cell
from soatfast.evaluate.checks import Check
from soatfast.gradients.passes import Passes
from soatfast.runs.errors import RunFolderError
from soatfast.runs.files import make_writable, replacing

FILE = "evaluation.npz"
_VERSION = 3  # 1 had no PSNR and SSIM, 2 no checks of the model
_ANEW = "another folder or resume=False (on the command line --fresh)"
_COSTS = 8  # the six numbers of Passes, and the asked forward and backward sample passes
_CHECK = {field.name for field in dataclasses.fields(Check)}
_PAUSE = 1.0  # seconds between two writes, at least


class Store:
    """The batches that are done, in order; in `folder`, if there is one, they outlive the process.

    A batch is stored when all attacks have been run on it. The file is replaced as a whole, at most once a second,
    and by :meth:`flush`: an interruption at any moment leaves the last whole state.
    """

    def __init__(self, options: dict[str, Any], folder: Path | None = None, resume: bool = True) -> None:
        self.options = json.loads(json.dumps(options))
        self.names: list[str] = list(self.options["attacks"])
        self.finished = False
        self.checks: list[Check] = []
        self.sizes: list[int] = []
        self.digests: list[str] = []
        self.labels: list[np.ndarray] = []
        self.cells: dict[str, list[Cell]] = {name: [] for name in self.names}
        self.path = None if folder is None else folder / FILE
        self._written, self._dirty = 0.0, False
        if self.path is not None:
            make_writable(self.path.parent)
            if resume and self.path.is_file():
                self._load(self.path)
            else:
                self.path.unlink(missing_ok=True)

    @classmethod
    def open(cls, folder: Path) -> Store:
        """What is stored in `folder`, whatever made it; nothing is written."""
        store = cls(read(folder / FILE)[0]["options"])
        store._load(folder / FILE)
        return store

    def __len__(self) -> int:
        return len(self.sizes)

    def add(self, x_digest: str, y: np.ndarray, cells: dict[str, Cell]) -> None:
        self.sizes.append(len(y))
        self.digests.append(x_digest)
        self.labels.append(y.astype(np.int64))
        for name in self.names:
            self.cells[name].append(cells[name])
        self._dirty = True
        if self.path is not None and time.monotonic() - self._written > _PAUSE:
            self.flush()

    def check_same(self, index: int, digest: str) -> None:
        """Raise unless batch `index` of the loader is the one that was evaluated before."""
        if self.digests[index] != digest:
            raise RunFolderError(
                f"{self.path}: batch {index} of the loader is not the one of the interrupted run; a loader to resume "
                "with must not shuffle and must keep its batch size"
            )

    def finish(self) -> None:
        self.finished, self._dirty = True, True
        self.flush()

    def flush(self) -> None:
        if self.path is None or not self._dirty:
            return
        meta = {
            "version": _VERSION,
            "finished": self.finished,
            "options": self.options,
            "digests": self.digests,
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }
        arrays: dict[str, np.ndarray] = {
            "meta": np.array(json.dumps(meta)),
            "sizes": np.array(self.sizes, dtype=np.int64),
            "label": joined(self.labels, np.int64),
        }
        for i, name in enumerate(self.names):
            cells = self.cells[name]
            for field, kind in FIELDS.items():
                arrays[f"{i}.{field}"] = joined([cell.records[field] for cell in cells], kind)
            costs = [(*dataclasses.astuple(cell.passes), *cell.asked) for cell in cells]
            arrays[f"{i}.costs"] = np.array(costs, dtype=np.int64).reshape(-1, _COSTS)
            arrays[f"{i}.seconds"] = np.array([cell.seconds for cell in cells])
        with replacing(self.path) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # no array is called allow_pickle
        self._written, self._dirty = time.monotonic(), False

    def _load(self, path: Path) -> None:
        meta, arrays = read(path)
        changes = _changes(meta["options"], self.options)
        if changes:
            raise RunFolderError(
                f"{path} holds an evaluation with other options ({'; '.join(changes[:4])}); {_ANEW} evaluates anew"
            )
        self.finished, self.digests = meta["finished"], meta["digests"]
        self.checks = [Check(**check) for check in meta["checks"]]
        self.sizes = arrays["sizes"].tolist()
        self.labels = _split(arrays["label"], self.sizes)
        for i, name in enumerate(self.names):
            fields = {field: _split(arrays[f"{i}.{field}"], self.sizes) for field in FIELDS}
            for batch, (costs, seconds) in enumerate(
                zip(arrays[f"{i}.costs"].tolist(), arrays[f"{i}.seconds"].tolist(), strict=True)
            ):
                records = {field: parts[batch] for field, parts in fields.items()}
                self.cells[name].append(Cell(records, Passes(*costs[:6]), (costs[6], costs[7]), seconds))


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(meta, arrays) of an evaluation's file; RunFolderError, with its name, unless it is there, whole and fitting.

    Nothing in it is unpickled.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        meta = json.loads(str(arrays["meta"][()]))
        version = meta["version"]
    except FileNotFoundError as error:
        raise RunFolderError(f"there is no evaluation: expected the file {path}") from error
    except Exception as error:  # zipfile, zlib, numpy and json each have their own
        raise RunFolderError(
            f"{path} is damaged, truncated or no file of an evaluation: {error}; {_ANEW} evaluates anew"
        ) from error
    if version != _VERSION:
        raise RunFolderError(
            f"{path} is of version {version}; this soatfast reads version {_VERSION}; {_ANEW} evaluates anew"
        )
    _check_shapes(path, meta, arrays)
    return meta, arrays


def _check_shapes(path: Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    try:
        sizes = arrays["sizes"]
        total, batches = int(sizes.sum()), len(sizes)
        expected: dict[str, tuple[int, ...]] = {"label": (total,)}
        for i, _ in enumerate(meta["options"]["attacks"]):
            expected |= {f"{i}.{field}": (total,) for field in FIELDS}
            expected |= {f"{i}.costs": (batches, _COSTS), f"{i}.seconds": (batches,)}
        wrong = [name for name, shape in expected.items() if arrays[name].shape != shape]
        checks = all(set(check) == _CHECK for check in meta["checks"])
        if wrong or len(meta["digests"]) != batches or not isinstance(meta["finished"], bool) or not checks:
            raise ValueError(f"the arrays {', '.join(wrong) or 'digests'} do not have the expected shape")
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged: {error}; {_ANEW} evaluates anew") from error


def joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0, kind)


def _split(array: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(array, np.cumsum(sizes)[:-1]) if sizes else []


def _changes(then: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [*now, *(key for key in then if key not in now)]
        return [
            line
            for key in keys
            for line in _changes(then.get(key, "not set"), now.get(key, "not set"), f"{name}.{key}" if name else key)
        ] or ([f"the order of {name or 'them'}"] if list(then) != list(now) else [])
    return [] if then == now else [f"{name} was {then}, now {now}"]
