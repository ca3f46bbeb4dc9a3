"""A tensor in a file of its own, which one memory holds at a time."""

from __future__ import annotations

import errno
import math
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor


def mapped(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, int]:
    """A zeroed tensor in a new file, and the descriptor whose lock keeps others out until it is closed.

    An old file is replaced if it has the size of such a tensor or none and nobody holds it. It is not written to: a
    tensor that still maps it keeps what it shows. The disk's space is taken here: where there is not enough, OSError
    says what is missing and no new file is left, and a later write cannot end the process.
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
        _allocate(lock, path, size)
        return torch.from_file(str(path), shared=True, size=entries, dtype=dtype).view(shape), lock
    except BaseException:
        os.close(lock)
        raise


def _allocate(handle: int, path: Path, size: int) -> None:
    """Give the empty file `size` zeroed bytes that the disk really has."""
    free = shutil.disk_usage(path.parent).free
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(handle, 0, size)
        else:  # macOS
            if size > free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.truncate(handle, size)
    except OSError as error:
        path.unlink()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        needs = f"a memory of {size / 1e6:.1f} MB does not fit at {path}, where {free / 1e6:.1f} MB are free"
        raise OSError(f"{needs} ({error.strerror}); int8 takes a quarter of float32") from error


def _locked(path: Path, flags: int) -> int:
    """The descriptor of the file at `path`, made where it is missing, with an exclusive lock."""
    try:
        import fcntl
    except ImportError as error:
        raise ValueError("a memory in a file needs the locks of Linux or macOS; give device='cpu'") from error
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
