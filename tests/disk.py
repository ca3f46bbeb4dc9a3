"""A disk that has no room for files above a size: the system's own limit, so that every way of writing fails."""

import contextlib
import resource
from pathlib import Path


@contextlib.contextmanager
def full_disk(size):
    """Files of this process end at `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def leftovers(folder: Path):
    """Files of no byte or half written."""
    files = [p for p in folder.rglob("*") if p.is_file()]
    return [p.name for p in files if not p.stat().st_size or p.name.endswith(".partial")]
