"""Build, test and measure on the GPU at hand: ``make gpu-check``. Without one: say so, claim nothing, exit 0.

Steps: build with CUDA, the tests marked ``cuda``, compute-sanitizer's memcheck over every op at odd sizes,
and the bandwidth of every op as a share of a measured copy, in ``benchmarks/results/<device>.json`` and
``.md``."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OPERAND_BYTES = 64 * 2**20
ENTRIES = 3072  # a CIFAR sample

_ODD_SIZES = """
import torch
from soatfast.testing import OPS, dtypes, op_cases

for op in OPS:
    kernel = getattr(torch.ops.soatfast, op)
    for case in op_cases(op, ((1, 1), (3, 33), (2, 785), (1, 4097), (1, 20003)))[::3]:
        for dtype in {torch.float32, torch.bfloat16} & set(dtypes(op)):
            kernel(*case.args(dtype, "cuda"))
torch.cuda.synchronize()
"""


def _run(command: list[str], **environment: str) -> bool:
    print("$", " ".join(command[:8]), flush=True)
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode == 0


def build() -> bool:
    """The CUDA library, from the sources."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", "-e", "."]
    return _run(command, SOATFAST_CUDA="1")


def test() -> bool:
    """The tests that need a GPU."""
    return _run([sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests"])


def memcheck() -> bool:
    """Every op at odd sizes under compute-sanitizer, without the caching allocator, so that overruns show."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=f"{home}/bin")
    if sanitizer is None:
        print("compute-sanitizer is not installed (it comes with the CUDA toolkit)")
        return False
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", "1", sys.executable, "-c", _ODD_SIZES]
    return _run(command, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def _milliseconds(call: Callable[[], object], repeats: int = 30) -> float:
    """Median GPU time of a call, with a full L2 cache's worth of other data in between."""
    import torch

    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    times = []
    for _ in range(3):
        call()
    for _ in range(repeats):
        flush.zero_()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def _calls() -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> (bytes an entry as the kernel budget counts them, the call)."""
    import torch

    import soatfast.ops as ops

    shape = (OPERAND_BYTES // 4 // ENTRIES, ENTRIES)
    g0, g1, v, x, x_adv = (torch.rand(shape, device="cuda") for _ in range(5))
    g2 = torch.rand((2 * shape[0], ENTRIES), device="cuda")

    calls: dict[str, tuple[int, Callable[[], object]]] = {}
    for p in (math.inf, 2, 3):
        calls[f"lmo p={p}"] = 8, lambda p=p: ops.lmo(g0, p, 0.5)
        calls[f"frank_wolfe_init p={p}"] = 16, lambda p=p: ops.frank_wolfe_init(g0, x, p, 0.5)
        calls[f"frank_wolfe_step FE p={p}"] = (
            24,
            lambda p=p: ops.frank_wolfe_step(g0, g1, v, x, p, 0.5, gamma=0.5),
        )
        calls[f"frank_wolfe_step CD p={p}"] = (
            32,
            lambda p=p: ops.frank_wolfe_step(g0, g2, v, x, p, 0.5, gamma=0.5, central=True),
        )
        calls[f"lp_norm p={p}"] = 4, lambda p=p: ops.lp_norm(g0, p)
    for p in (math.inf, 2, 1):
        calls[f"project p={p}"] = 12, lambda p=p: ops.project(x_adv, x, p, 0.5)
        calls[f"pgd_step p={p}"] = 16, lambda p=p: ops.pgd_step(x_adv, g0, x, p, 0.5, 0.1)
    for p in (2, 1):
        calls[f"pgd_step exact p={p}"] = 16, lambda p=p: ops.pgd_step(x_adv, g0, x, p, 0.5, 0.1, exact=True)
    calls["power_step"] = 24, lambda: ops.power_step(g0, g1, v, x, 0.5)
    y = torch.arange(shape[0], device="cuda") % ENTRIES
    calls["cross_entropy_derivative"] = 8, lambda: ops.cross_entropy_derivative(g0, y)
    return calls


def measure() -> bool:
    """Achieved over copied bandwidth of every op, to a JSON file and a Markdown table."""
    import torch

    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = "none"
    source, target = (torch.rand(OPERAND_BYTES // 4, device="cuda") for _ in range(2))
    copy = 2 * OPERAND_BYTES / _milliseconds(lambda: target.copy_(source)) / 1e6
    entries = OPERAND_BYTES // 4 // ENTRIES * ENTRIES
    rows = []
    for name, (size, call) in _calls().items():
        time = _milliseconds(call)
        speed = size * entries / time / 1e6
        rows.append({"op": name, "bytes_per_entry": size, "ms": time, "GB/s": speed, "of_copy": speed / copy})
    device = torch.cuda.get_device_name()
    head = {"device": device, "torch": torch.__version__, "triton": triton_version, "copy_GB/s": copy}
    name = re.sub(r"\W+", "-", device).strip("-").lower()
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({**head, "ops": rows}, indent=1) + "\n")
    lines = [
        f"{device}, torch {torch.__version__}, triton {triton_version}; measured copy {copy:.0f} GB/s",
        "",
        f"float32, {entries // ENTRIES} samples of {ENTRIES} entries; medians of CUDA event times.",
        "",
        "| op | bytes/entry | ms | GB/s | of the copy |",
        "|---|---|---|---|---|",
        *(
            f"| {r['op']} | {r['bytes_per_entry']} | {r['ms']:.4f} | {r['GB/s']:.0f} | {r['of_copy']:.2f} |"
            for r in rows
        ),
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return True


def main() -> int:
    try:
        import torch
    except ImportError:
        print("gpu-check: PyTorch is not installed here, so no GPU can be used; nothing was checked.")
        return 0
    if not torch.cuda.is_available():
        print("gpu-check: no GPU is at hand; nothing was checked.")
        return 0
    if sys.argv[1:] == ["measure"]:
        return 0 if measure() else 1
    outcome = {}
    for step in (build, test, memcheck):
        outcome[step.__name__] = step()
    outcome["measure"] = _run([sys.executable, __file__, "measure"])  # with the library just built
    for name, passed in outcome.items():
        print(f"gpu-check: {name} {'passed' if passed else 'FAILED'}")
    return 0 if all(outcome.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
