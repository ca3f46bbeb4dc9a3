"""A tensor in a file of its own, which one memory holds at a time."""

from __future__ import annotations

import fcntl
import math
import os
from pathlib import Path

import torch
from torch import Tensor


def mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, int]:
    """A zeroed tensor in a new file, and the descriptor whose lock keeps others out until it is closed.

    An old file is replaced if it has the size of such a tensor or none and nobody holds it. It is not written to: a
    tensor that still maps it keeps what it shows.
    """
    entries = math.prod(shape)
    size = entries * dtype.itemsize
    path = path.resolve()  # the file behind a link is replaced, not the link
    if path.exists() and (not path.is_file() or path.stat().st_size not in (0, size)):
        raise ValueError(f"{path} exists and is no memory of {size} bytes; give another path or remove it")
    lock = _locked(path, 0)
    try:
        if os.fstat(lock).st_size:
            path.unlink()
            old, lock = lock, _locked(path, os.O_EXCL)
            os.close(old)
        os.truncate(lock, size)
        return torch.from_file(str(path), shared=True, size=entries, dtype=dtype).view(shape), lock
    except BaseException:
        os.close(lock)
        raise


def _locked(path: Path, flags: int) -> int:
    """The descriptor of the file at `path`, made where it is missing, with an exclusive lock."""
    taken = f"{path} is held by another memory, in this process or another; each needs a file of its own"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | flags, 0o666)
    except FileExistsError:
        raise ValueError(taken) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(lock), path.stat()):  # replaced by its holder since it was opened
            raise BlockingIOError
    except BaseException as error:
        os.close(lock)
        if isinstance(error, (BlockingIOError, FileNotFoundError)):
            raise ValueError(taken) from None
        raise
    return lock
