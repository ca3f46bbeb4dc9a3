"""Keeping freed memory in the process, so that a network pass on the CPU does not ask the system for it each time."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt's names for them, of malloc.h
_NEVER = -1
_LARGEST = (2**30, 2**25)  # bytes; glibc before 2.35 takes no more than the second
_OWN = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_memory() -> bool:
    """Let the C library keep freed blocks of up to 1 GB for the next pass, until the process ends.

    glibc gives blocks of more than 32 MB (and what lies at the end of the heap) back to the system as soon as they are
    freed, and a pass that asks for them again pays for every page of 4 kB anew. What a network keeps of a batch is of
    that size. Call it once at the start of a script that attacks on a CPU; the command `soatfast` does. It changes no
    result, and tensors on a GPU are not concerned.

    Measured on 2 cores (docs/measurements.md): 0.67 to 0.90 of the time on the small CNN, 0.91 to 0.95 on ResNet-18,
    at a peak of memory at most 4 % higher. What it costs: the process holds its peak until it ends. In threads that
    Python starts, glibc keeps blocks of up to some 60 MB only.

    Returns:
        Whether it was done: False without glibc (macOS, Windows, musl), and where the environment already sets malloc
        (MALLOC_..., GLIBC_TUNABLES) or preloads another (LD_PRELOAD), which is left as it is.

    >>> import soatfast
    >>> isinstance(soatfast.keep_memory(), bool)
    True
    """
    if not sys.platform.startswith("linux") or any(name.startswith(_OWN) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
