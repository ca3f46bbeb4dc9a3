"""keep_memory: memory that was freed is used again without a page fault, and a user's own settings stay."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import torch
import soatfast

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(1 << 24)  # 64 MB, 16384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
done = soatfast.keep_memory()
# The heap grows at first, and again whenever a small block came to lie behind the large one.
print(done, given_back, min(faults() for _ in range(6)))
"""


def run(program: str, **environment: str) -> list[str]:
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
    }
    return subprocess.run(
        [sys.executable, "-c", program], env={**own, **environment}, check=True, capture_output=True, text=True
    ).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again_without_a_page_fault():
    done, given_back, kept = run(FAULTS)
    # 81920 pages of 4 kB, or 160 of 2 MB where the system makes all large blocks of those
    assert done == "True" and int(given_back) > 5 * int(kept) + 100, (given_back, kept)


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_settings_of_the_environment_are_left_alone(name):
    (done,) = run("import soatfast; print(soatfast.keep_memory())", **{name: ""})
    assert done == "False"


@pytest.mark.parametrize("missing", ["platform", "mallopt"])
def test_systems_without_it(missing, monkeypatch):
    from soatfast.gradients import allocator

    if missing == "platform":
        monkeypatch.setattr(sys, "platform", "darwin")
    else:
        monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    assert allocator.keep_memory() is False
