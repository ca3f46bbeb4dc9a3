"""One process at a time writes a run folder: a lock file that says who holds it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from soatfast.runs.errors import RunFolderError
from soatfast.runs.files import make_writable, remove_partial, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


_held: dict[tuple[int, int], int] = {}  # folder (device, inode) -> the thread of this process that holds it


@contextlib.contextmanager
def locked(folder: Path, say: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Make `folder` and hold its file .lock, which names process and host; RunFolderError where another holds it.

    The system drops a lock with its process: what a killed one left is stale, and is taken over; `say` gets a line
    about that. Where the file system has no locks the names in the file decide: a process of this host is looked
    for, one of another host is believed. Inside a block that holds the folder, in the same thread, nothing happens.
    Files that a killed process had not finished are removed.
    """
    make_writable(folder)
    path, found = folder / LOCK, folder.stat()
    key = (found.st_dev, found.st_ino)
    if _held.get(key) == threading.get_ident():
        yield
        return
    with writing(path):
        handle, stale = _take(path)
    _held[key] = threading.get_ident()
    try:
        if stale:
            say(f"{path} was left by {_who(stale)}, which has ended; the folder is taken over")
        remove_partial(folder)
        yield
    finally:
        del _held[key]
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _take(path: Path) -> tuple[int, dict[str, Any]]:
    """(descriptor of the file that is now ours, the record of the process before that left it)."""
    while True:
        handle, made = _open(path)
        try:
            ours, before = _lock(handle), _read(path)
            if ours is False or (ours is None and not made and _lives(before)):
                known = "" if ours is False else f"; if that is not running any more, delete {path}"
                raise RunFolderError(
                    f"{path.parent} is used by {_who(before)}: wait until it has ended, or use another folder{known}"
                )
            if ours is None and not made:
                path.unlink(missing_ok=True)  # and make it: of several that see it only one can
            elif path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                record = {"process": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(record).encode())
                return handle, before
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder has removed the file since it was opened


def _open(path: Path) -> tuple[int, bool]:
    """(descriptor, whether the file is new)."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    with contextlib.suppress(FileExistsError):
        return os.open(path, flags | os.O_EXCL, 0o666), True
    return os.open(path, flags, 0o666), False


def _lock(handle: int) -> bool | None:
    """Whether the lock is ours; None where the system or the file system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return True


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lives(record: dict[str, Any]) -> bool:
    """Whether the process of a record may still run: it is known of this host's only."""
    if record.get("host") != platform.node() or os.name == "nt":
        return True
    try:
        os.kill(int(record["process"]), 0)
    except (ProcessLookupError, KeyError, TypeError, ValueError):
        return False
    except PermissionError:
        pass
    return True


def _who(record: dict[str, Any]) -> str:
    if not record:
        return "another process"
    return f"process {record.get('process')} on {record.get('host')} (since {record.get('since')})"
