"""What holds for every op: numbers against float64, registration, compilation, layouts, independence of samples."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from soatfast import ops
from soatfast.ops import reference
from soatfast.ops.arguments import Layout
from soatfast.testing import DTYPES, LAYOUTS, OPS, check, dtypes, op_cases
from tests.ops.calls import CALLS, as_tuple, make_batch, takes

SMALL = [(0, 33), (3, 33)]
every_dtype = pytest.mark.parametrize(("op", "dtype"), [(op, dtype) for op in OPS for dtype in dtypes(op)], ids=str)
every_call = pytest.mark.parametrize("name", CALLS)


def kernel(op: str):
    return getattr(torch.ops.soatfast, op).default


# Numbers


@every_dtype
def test_kernel_is_within_the_budget(op: str, dtype: torch.dtype) -> None:
    for case in op_cases(op):
        try:
            check(op, kernel(op), case.args(dtype))
        except AssertionError as error:
            raise AssertionError(f"{case.id}: {error}") from None


@pytest.mark.native
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lower_instruction_sets_are_within_the_budget(isa: str) -> None:
    program = """
import sys, torch
from soatfast.ops.config import cpu_isa
from soatfast.testing import OPS, SMALL_SHAPES, check, dtypes, op_cases
if cpu_isa() != sys.argv[1]:
    sys.exit(f"skip: runs {cpu_isa()}")
for op in OPS:
    for case in op_cases(op, SMALL_SHAPES):
        for dtype in dtypes(op):
            check(op, getattr(torch.ops.soatfast, op).default, case.args(dtype))
"""
    environment = {**os.environ, "SOATFAST_ISA": isa}
    done = subprocess.run([sys.executable, "-c", program, isa], env=environment, capture_output=True, text=True)
    if done.stderr.startswith("skip"):
        pytest.skip(f"this processor {done.stderr.strip()[6:]} at most")
    assert done.returncode == 0, done.stderr[-2000:]


@every_call
def test_backend_reference_is_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op, batch = name.split("-")[0], make_batch()
    original, seen = getattr(reference, op), []

    def spy(*args):
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(reference, op, spy)
    with ops.backend("reference"):
        outputs = as_tuple(CALLS[name](batch))
    assert len(seen) == 1
    results = as_tuple(seen[0])  # behind them a replay step shows its memory
    for mine, twin in zip(outputs[: len(results)], results, strict=True):
        assert torch.equal(mine.reshape(twin.shape), twin)
    CALLS[name](batch)
    assert len(seen) == 1, "the reference must serve only inside the block"


def test_backend_name_is_checked_and_restored() -> None:
    with pytest.raises(ValueError, match="backend must be"), ops.backend("cuda"):  # type: ignore[arg-type]
        pass
    with pytest.raises(RuntimeError, match="stop"), ops.backend("reference"):
        raise RuntimeError("stop")
    assert ops.dispatch.choice() == os.environ.get("SOATFAST_BACKEND", "auto")


# Registration and compilation


@every_dtype
def test_opcheck(op: str, dtype: torch.dtype) -> None:
    cases = [case for case in op_cases(op, SMALL) if "degenerate" not in case.id]
    for case in cases[:: max(1, len(cases) // 6)]:
        torch.library.opcheck(kernel(op), case.args(dtype))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset", "expanded"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck_on_other_layouts(op: str, layout: str) -> None:
    case = next(case for case in op_cases(op, [(3, 33)]) if "p=2.0" in case.id or "p=" not in case.id)
    memory = (0,) if op.startswith("replay") else ()  # which must be dense: a step updates it in place
    args = tuple(
        LAYOUTS[layout](a) if isinstance(a, Tensor) and a.dim() == 2 and i not in memory else a
        for i, a in enumerate(case.args())
    )
    torch.library.opcheck(kernel(op), args)
    check(op, kernel(op), args)


@pytest.mark.parametrize("name", [name for name in CALLS if name.split("-")[1] in ("1", "2")])
@pytest.mark.parametrize("dynamic", [False, True])
def test_public_function_compiles_without_a_break(name: str, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (4, 3):
        batch = make_batch(rows)
        for mine, eager in zip(as_tuple(compiled(batch)), as_tuple(CALLS[name](batch)), strict=True):
            assert torch.equal(mine, eager)
            assert mine.stride() == eager.stride()


@pytest.mark.skipif(
    shutil.which("g++") is None or not (Path(sysconfig.get_path("include")) / "Python.h").is_file(),
    reason="Inductor needs g++ and Python.h (python3-dev)",
)
def test_compiles_with_inductor() -> None:
    batch = make_batch()
    call = CALLS["frank_wolfe_step-2-central"]
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True)
    for mine, eager in zip(as_tuple(compiled(batch)), as_tuple(call(batch)), strict=True):
        assert torch.equal(mine, eager)


# Layouts


@every_call
@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset"])
def test_layout_does_not_change_the_result(name: str, layout: str) -> None:
    batch = make_batch()
    other = batch.images(LAYOUTS[layout])
    for mine, plain in zip(as_tuple(CALLS[name](other)), as_tuple(CALLS[name](batch)), strict=True):
        assert torch.equal(mine, plain)


@every_call
def test_channels_last_is_kept(name: str) -> None:
    batch = make_batch()
    other = batch.images(LAYOUTS["channels_last"])
    for mine, plain in zip(as_tuple(CALLS[name](other)), as_tuple(CALLS[name](batch)), strict=True):
        if mine.dim() == 4:
            assert mine.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(mine.contiguous(), plain, rtol=1e-5, atol=1e-6)


def test_channels_last_and_contiguous_are_viewed_not_copied() -> None:
    for layout in ("contiguous", "channels_last"):
        x = LAYOUTS[layout](torch.rand(2, 3, 4, 5))
        view = Layout(x)
        assert view.rows(x, "x").data_ptr() == x.data_ptr()
        assert torch.equal(view.restore(view.rows(x, "x")), x)


# Independence


@pytest.mark.parametrize(
    ("name", "dtype"), [(name, t) for name in CALLS for t in (torch.float32, torch.bfloat16) if takes(name, t)], ids=str
)
def test_a_batch_is_its_samples_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    rows = 5
    batch = make_batch(rows, dtype)
    whole = as_tuple(CALLS[name](batch))
    for i in range(rows):
        alone = as_tuple(CALLS[name](batch.map(lambda t, i=i: t[i : i + 1])))
        for mine, all_ in zip(alone, whole, strict=True):
            blocks = all_.shape[0] // rows
            assert torch.equal(mine, all_[[i + rows * block for block in range(blocks)]])


@every_call
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_bad_sample_changes_no_other(name: str, bad: float) -> None:
    rows, spoiled = 5, 2
    batch = make_batch(rows)
    clean = as_tuple(CALLS[name](batch))

    def spoil(t: Tensor) -> Tensor:
        t = t.clone()
        t[spoiled] = bad
        return t

    dirty = as_tuple(CALLS[name](batch.images(spoil)))
    for mine, other in zip(dirty, clean, strict=True):
        keep = [i for i in range(mine.shape[0]) if i % rows != spoiled]
        assert torch.equal(mine[keep], other[keep])


@pytest.mark.parametrize("bad", [float("nan"), 0.0])
def test_a_bad_gradient_makes_no_step_and_no_nan(bad: float) -> None:
    for name, call in CALLS.items():
        batch = make_batch()
        fields = {"g": bad, "plus": bad, "minus": bad}
        spoiled = type(batch)(
            **{f: torch.full_like(getattr(batch, f), value) for f, value in fields.items()},
            **{f: getattr(batch, f) for f in ("v", "x", "x_adv", "eps", "y")},
        )
        for output in as_tuple(call(spoiled)):
            assert output.isfinite().all(), name


@every_call
def test_every_element_is_written(name: str, poisoned_memory: None) -> None:
    for dtype in filter(partial(takes, name), DTYPES):
        for output in as_tuple(CALLS[name](make_batch(dtype=dtype))):
            assert output.isfinite().all()


@pytest.mark.native
@every_call
def test_threads_do_not_change_a_bit(name: str, restored_threads: None) -> None:
    batch = make_batch(9, shape=(3, 40, 41))
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(as_tuple(CALLS[name](batch)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_call
def test_an_empty_batch_gives_an_empty_result(name: str) -> None:
    for output in as_tuple(CALLS[name](make_batch(0))):
        assert output.shape[0] == 0


@every_call
def test_no_gradient_flows(name: str) -> None:
    batch = make_batch().images(lambda t: t.requires_grad_())
    assert not any(output.requires_grad for output in as_tuple(CALLS[name](batch)))
