"""Every kernel compiled for sm_80, sm_90 and sm_100 without a GPU: registers, spills, vector loads, bytes.

``REGISTERS`` is a budget with a little slack. A failure there is a question, not a verdict: more registers
mean fewer programs at a time on a multiprocessor. Spills are an error.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("kernels compile only without TRITON_INTERPRET", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from soatfast.ops.constants import INIT_LMO, INIT_RAW, INIT_SCALED  # noqa: E402
from soatfast.ops.contract import MEMORY_DTYPES  # noqa: E402

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
ARCHITECTURES = (80, 90, 100)
ON_CHIP, STREAMING = (784, 3072), 150528  # (1, 28, 28), (3, 32, 32) and (3, 224, 224)

# op and p -> most registers a thread in float32 on any architecture: on chip up to D = 3072, and streaming.
REGISTERS: dict[str, dict[float, tuple[int, int]]] = {
    "lmo": {1: (56, 40), 2: (64, 40), 3: (112, 56), math.inf: (40, 40)},
    "frank_wolfe_init": {1: (88, 48), 2: (88, 48), 3: (112, 56), math.inf: (72, 40)},
    "frank_wolfe_step": {1: (112, 72), 2: (96, 64), 3: (104, 72), math.inf: (120, 80)},
    "project": {1: (72, 40), 2: (72, 48), math.inf: (56, 40)},
    "project exact": {1: (96, 40), 2: (96, 48)},
    "pgd_step": {1: (72, 48), 2: (72, 48), math.inf: (56, 40)},
    "pgd_step exact": {1: (96, 48), 2: (104, 48)},
    "replay_start": {math.inf: (48, 32)},
    "replay_step": {1: (80, 48), 2: (120, 48), 3: (104, 72), math.inf: (80, 40)},
    "power_step": {2: (88, 64)},
    "cross_entropy_derivative": {math.inf: (72, 40)},
}


@dataclass(frozen=True)
class Variant:
    """One set of constexprs of an op, with the loads and stores of an entry that the kernel budget allows.

    Of the replay ops' memory, whose dtype is not the batch's, ``test_replay_budget`` counts the accesses: they are not
    in ``loads`` and ``stores``. ``replay_start``, ``cross_entropy_derivative`` and ``power_step`` have no p: they are
    written as inf, as the first reads once, and 2, as the last takes that norm.
    """

    op: str
    p: float
    options: dict[str, Any] = field(default_factory=dict)
    loads: int = 1
    stores: int = 1
    memory: torch.dtype | None = None

    @property
    def name(self) -> str:
        kind = [] if self.memory is None else [str(self.memory).removeprefix("torch.")]
        return "-".join([self.op, f"p{self.p:g}", *kind, *(f"{k}{int(v)}" for k, v in self.options.items())])

    @property
    def reduces(self) -> bool:
        """Whether powers of a row's entries are summed."""
        return self.p in (2, 3) and self.options.get("init") != INIT_RAW

    def made(self, module: ModuleType, entries: int, dtype: torch.dtype) -> dict[str, Any]:
        order = () if self.op in ("replay_start", "power_step", "cross_entropy_derivative") else (self.p,)
        return module.constexprs(entries, dtype, *order, **self.options)


def _variants() -> Iterator[Variant]:
    for p in (1.0, 2.0, 3.0, math.inf):
        yield Variant("lmo", p)
        yield Variant("frank_wolfe_init", p, {"init": INIT_SCALED, "central": True}, 2, 3)
        yield Variant("frank_wolfe_init", p, {"init": INIT_LMO, "central": False}, 2, 2)
        yield Variant("frank_wolfe_step", p, {"central": False, "last": False}, 4, 2)
        yield Variant("frank_wolfe_step", p, {"central": True, "last": False}, 5, 3)
    yield Variant("frank_wolfe_init", 2.0, {"init": INIT_RAW, "central": False}, 2, 2)
    yield Variant("frank_wolfe_step", 2.0, {"central": False, "last": True}, 4, 2)
    yield Variant("frank_wolfe_step", math.inf, {"central": True, "last": True}, 5, 2)
    yield Variant("frank_wolfe_step", math.inf, {"central": False, "last": False, "in_box": True}, 4, 2)
    yield Variant("frank_wolfe_init", math.inf, {"init": INIT_SCALED, "central": False, "in_box": True}, 2, 2)
    for p in (1.0, 2.0, math.inf):
        for exact in (False, True) if p < math.inf else (False,):
            yield Variant("project", p, {"exact": exact}, 2, 1)
            yield Variant("pgd_step", p, {"exact": exact}, 3, 1)
    yield Variant("power_step", 2.0, {}, 4, 2)


def _replay_variants() -> Iterator[Variant]:
    for memory in MEMORY_DTYPES:
        yield Variant("replay_start", math.inf, {}, 1, 1, memory)
        for p in (1.0, 2.0, 3.0, math.inf):
            yield Variant("replay_step", p, {}, 2, 1, memory)
        yield Variant("replay_step", math.inf, {"in_box": True}, 2, 1, memory)


def _box_variants() -> Iterator[Variant]:
    """The searches of ball and box, which read the row many times where it is not on chip."""
    for p in (1.0, 2.0):
        yield Variant("lmo", p, {"in_box": True})
        yield Variant("frank_wolfe_step", p, {"central": False, "last": False, "in_box": True})
        yield Variant("frank_wolfe_init", p, {"init": INIT_LMO, "central": False, "in_box": True})
        yield Variant("replay_step", p, {"in_box": True}, memory=torch.float32)


CROSS_ENTROPY = Variant("cross_entropy_derivative", math.inf)
VARIANTS = tuple(_variants())
REPLAY = tuple(_replay_variants())


def _some(step: int) -> list[Variant]:
    """Every ``step``-th variant, and the only one of its op."""
    return [v for i, v in enumerate(VARIANTS) if i % step == 0 or v.op == "power_step"]


@dataclass(frozen=True)
class Compiled:
    ptx: str
    registers: int
    stack: int
    constexprs: dict[str, Any]
    warps: int
    shared: int  # bytes of shared memory

    def accesses(self, kind: str) -> list[str]:
        """The PTX instructions of global ``ld`` or ``st``."""
        return re.findall(rf"\b{kind}\.global[.\w]*", self.ptx)


def _compiled(
    variant: Variant,
    entries: int,
    dtype: torch.dtype,
    capability: int,
    folder: Path,
    absent: tuple[str, ...] = ("eps_ptr", "alpha_ptr"),
    debug: bool = False,
) -> Compiled:
    launch = importlib.import_module("soatfast.ops.triton._launch")
    module = importlib.import_module(f"soatfast.ops.triton.{variant.op}")
    kernel = getattr(module, f"{variant.op}_kernel")
    constexprs = variant.made(module, entries, dtype)
    own = None if variant.memory is None else {"memory_ptr": variant.memory}
    if variant.memory != torch.int8:
        absent = (*absent, "scale_ptr")
    unaligned = entries % 16 != 0
    signature, values, attributes = launch.aot_source(kernel, dtype, constexprs, absent, unaligned, own)
    warps = launch.warps(constexprs)
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=attributes)
    options = {"num_warps": warps, "debug": debug}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    path = folder / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    usage = subprocess.run([CUOBJDUMP, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    shared = binary.metadata.shared
    return Compiled(binary.asm["ptx"], int(found[1]), int(found[2]), constexprs, warps, shared)


def _longest_on_chip(variant: Variant) -> int:
    module = importlib.import_module(f"soatfast.ops.triton.{variant.op}")
    return max(n for n in (4096, 8192, 16384) if variant.made(module, n, torch.float32)["ON_CHIP"])


@pytest.mark.parametrize("capability", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_float32_budget(variant: Variant, capability: int, tmp_path: Path) -> None:
    """No spill, registers within the budget, 16-byte accesses, each operand read and written once."""
    on_chip, streaming = REGISTERS[variant.op + " exact" * variant.options.get("exact", False)][variant.p]
    for entries in (*ON_CHIP, STREAMING) if capability == 90 else (ON_CHIP[-1], STREAMING):
        made = _compiled(variant, entries, torch.float32, capability, tmp_path)
        label = f"{variant.name} D={entries} sm_{capability}"
        assert made.stack == 0, f"{label} spills {made.stack} bytes a thread"
        budget = streaming if entries == STREAMING else on_chip
        assert made.registers <= budget, f"{label}: {made.registers} registers, budget {budget}"
        loads, stores = made.accesses("ld"), made.accesses("st")
        per_operand = made.constexprs["BLOCK"] // (made.warps * 32 * 4)  # 16-byte accesses of a thread
        narrow = [access for access in loads if ".v4" not in access]
        assert not narrow, f"{label}: narrow loads {narrow}"
        assert sum(".v4" in access for access in stores) == variant.stores * per_operand, label
        single_pass = made.constexprs["ON_CHIP"] or variant.p == math.inf
        if variant.options.get("init") == INIT_RAW:
            single_pass = True
        elif variant.options.get("init") == INIT_SCALED and not made.constexprs["ON_CHIP"]:
            single_pass = False  # eps g / max|g|: the maximum first
        if single_pass:
            assert len(loads) == variant.loads * per_operand, f"{label}: {len(loads)} loads"
        else:
            assert len(loads) > variant.loads * per_operand, label


# An access of 4 entries of the memory, and the scalars of a row: its index, and with int8 its scale.
_OF_MEMORY = {torch.float32: ".v4.b32", torch.bfloat16: ".v2.b32", torch.int8: ".b32"}


@pytest.mark.parametrize("variant", list(_box_variants()), ids=lambda v: v.name)
def test_ball_and_box_do_not_spill(variant: Variant, tmp_path: Path) -> None:
    for entries in (ON_CHIP[-1], STREAMING):
        assert _compiled(variant, entries, torch.float32, 90, tmp_path).stack == 0, entries


@pytest.mark.parametrize("capability", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("variant", REPLAY, ids=lambda v: v.name)
def test_replay_budget(variant: Variant, capability: int, tmp_path: Path) -> None:
    """No spill, registers, each operand once but in the passes that the module's head names; 4 entries an access."""
    assert variant.memory is not None
    on_chip, streaming = REGISTERS[variant.op][variant.p]
    quantised = variant.memory == torch.int8
    kind, scalars = _OF_MEMORY[variant.memory], int(quantised)
    for entries in (*ON_CHIP, STREAMING) if capability == 90 else (ON_CHIP[-1], STREAMING):
        made = _compiled(variant, entries, torch.float32, capability, tmp_path)
        label = f"{variant.name} D={entries} sm_{capability}"
        assert made.stack == 0, f"{label} spills {made.stack} bytes a thread"
        budget = streaming if entries == STREAMING else on_chip
        assert made.registers <= budget, f"{label}: {made.registers} registers, budget {budget}"
        assert made.shared <= 4 * made.warps, f"{label}: {made.shared} bytes shared, more than reductions need"
        once = made.constexprs["BLOCK"] // (made.warps * 32 * 4)  # accesses of a thread to an operand
        of_batch, of_memory = variant.loads * once, once
        if variant.p < math.inf and not made.constexprs["ON_CHIP"]:
            of_batch += once  # the statistics of g
            if quantised:
                of_batch, of_memory = of_batch + 2 * once, 2 * once  # max|u'|
        loads = Counter({".b64": 1, ".v4.b32": of_batch})  # .b64: the index
        loads.update({kind: of_memory + scalars})
        stores = Counter({".v4.b32": variant.stores * once})
        if variant.op == "replay_step":
            stores.update({kind: once + scalars})
        assert Counter(access.removeprefix("ld.global") for access in made.accesses("ld")) == loads, label
        assert Counter(access.removeprefix("st.global") for access in made.accesses("st")) == stores, label


@pytest.mark.parametrize("variant", REPLAY, ids=lambda v: v.name)
def test_replay_does_not_spill_elsewhere(variant: Variant, tmp_path: Path) -> None:
    """In float64, in rows of odd length with a tensor of radii, and in the longest rows on chip."""
    for dtype, entries, absent in (
        (torch.float64, ON_CHIP[-1], ("eps_ptr",)),
        (torch.float64, STREAMING, ("eps_ptr",)),
        (torch.float32, 785, ()),
        (torch.float32, _longest_on_chip(variant), ("eps_ptr",)),
    ):
        for capability in ARCHITECTURES if dtype == torch.float32 else (90,):
            made = _compiled(variant, entries, dtype, capability, tmp_path, absent)
            assert made.stack == 0, f"{dtype} D={entries} sm_{capability} spills {made.stack} bytes a thread"


@pytest.mark.parametrize("op", ["replay_start", "replay_step"])
def test_the_index_is_asserted_in_debug_builds_only(op: str, tmp_path: Path) -> None:
    variant = Variant(op, math.inf, memory=torch.float32)
    release, debug = (_compiled(variant, 784, torch.float32, 90, tmp_path, debug=flag) for flag in (False, True))
    assert "__assertfail" in debug.ptx and "__assertfail" not in release.ptx


@pytest.mark.parametrize("capability", ARCHITECTURES, ids="sm_{}".format)
def test_cross_entropy_budget(capability: int, tmp_path: Path) -> None:
    """No spill, registers, the label once; the logits once, or for maximum, sum and result where they are streamed."""
    on_chip, streaming = REGISTERS[CROSS_ENTROPY.op][CROSS_ENTROPY.p]
    for entries in (*ON_CHIP, STREAMING):
        made = _compiled(CROSS_ENTROPY, entries, torch.float32, capability, tmp_path)
        label = f"K={entries} sm_{capability}"
        assert made.stack == 0, f"{label} spills {made.stack} bytes a thread"
        budget = streaming if entries == STREAMING else on_chip
        assert made.registers <= budget, f"{label}: {made.registers} registers, budget {budget}"
        once = made.constexprs["BLOCK"] // (made.warps * 32 * 4)  # 16-byte accesses of a thread
        passes = 3 if entries == STREAMING else 1
        loads = Counter(access.removeprefix("ld.global") for access in made.accesses("ld"))
        assert loads == {".b64": 1, ".v4.b32": passes * once}, label
        assert [access for access in made.accesses("st") if ".v4" in access] == made.accesses("st"), label
        assert len(made.accesses("st")) == once, label


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_cross_entropy_of_short_and_long_rows_does_not_spill(dtype: torch.dtype, tmp_path: Path) -> None:
    for entries in (2, 10, 1000, _longest_on_chip(CROSS_ENTROPY), STREAMING):
        assert _compiled(CROSS_ENTROPY, entries, dtype, 90, tmp_path).stack == 0, entries


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("variant", _some(3), ids=lambda v: v.name)
def test_other_dtypes_do_not_spill(variant: Variant, dtype: torch.dtype, tmp_path: Path) -> None:
    for entries in (ON_CHIP[-1], STREAMING):
        made = _compiled(variant, entries, dtype, 90, tmp_path)
        assert made.stack == 0, f"{variant.name} D={entries} spills {made.stack} bytes a thread"
        assert all(".v4.b32" in a or ".v2.b64" in a for a in made.accesses("ld")), made.accesses("ld")


@pytest.mark.parametrize("capability", ARCHITECTURES, ids="sm_{}".format)
@pytest.mark.parametrize("variant", _some(2), ids=lambda v: v.name)
def test_longest_rows_on_chip_do_not_spill(variant: Variant, capability: int, tmp_path: Path) -> None:
    assert _compiled(variant, _longest_on_chip(variant), torch.float32, capability, tmp_path).stack == 0


@pytest.mark.parametrize("variant", _some(4), ids=lambda v: v.name)
def test_unaligned_rows_and_per_sample_tensors_compile(variant: Variant, tmp_path: Path) -> None:
    made = _compiled(variant, 785, torch.float32, 90, tmp_path, absent=())
    assert made.stack == 0


@pytest.mark.parametrize("entries", [5, 31, 64])
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v.reduces], ids=lambda v: v.name)
def test_all_lanes_of_a_warp_get_the_same_sum(variant: Variant, entries: int, tmp_path: Path) -> None:
    """A square that is fused with its neighbour's, fma(a, a, b*b), is rounded otherwise than fma(b, b, a*a).

    Lanes would then leave a search at different steps. So what a shuffle brings is added, never fused.
    """
    ptx = _compiled(variant, entries, torch.float32, 90, tmp_path).ptx
    brought = set(re.findall(r"shfl\.sync\.bfly\.b32\s+(%\w+)", ptx))
    brought |= {to for to, what in re.findall(r"mov\.b32\s+(%\w+), (%\w+);", ptx) if what in brought}
    assert brought
    for operands in re.findall(r"fma\.rn\.f32\s+%\w+, (%\w+), (%\w+), (%\w+);", ptx):
        assert not brought & set(operands)


def test_the_launchers_register_for_cuda() -> None:
    import soatfast.ops.triton as kernels

    for op in kernels.register():
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"soatfast::{op}", "CUDA")
    assert kernels.register() == kernels.OPS  # again: no second registration
