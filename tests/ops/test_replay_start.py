"""replay_start against the formula in NumPy, exact points, and bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from soatfast import ops
from soatfast.ops.contract import MEMORY_DTYPES
from soatfast.testing import call, op_cases

ROWS = torch.tensor([4, 0, 5])


def memory_of(dtype: torch.dtype, rows: int = 7, size: int = 40) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows of the unit ball of the maximum norm with vertices among their entries; for int8 scales from 0 to 1."""
    u = (2 * torch.randn(rows, size)).clamp(-1, 1)
    if dtype != torch.int8:
        return u.to(dtype), None
    return (127 * u).round().to(torch.int8), torch.linspace(0, 1, rows)


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.3, 0.4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kept", MEMORY_DTYPES, ids=str)
def test_is_the_formula(kept: torch.dtype, dtype: torch.dtype, bounds: tuple[float, float]) -> None:
    memory, scale = memory_of(kept)
    x, eps = torch.rand(3, 40, dtype=dtype), torch.tensor([0.3, 0.0, 2.0], dtype=dtype)
    got = ops.replay_start(memory, ROWS, x, eps, scale=scale, bounds=bounds)
    u = memory.double().numpy()[ROWS.numpy()]
    if scale is not None:
        u = u / 127 * scale.double().numpy()[ROWS.numpy(), None]
    expected = np.clip(x.double().numpy() + eps.double().numpy()[:, None] * u, *bounds)
    # Of terms up to 2: two roundings of eps u, one of the sum.
    np.testing.assert_allclose(got.double().numpy(), expected, rtol=0.0, atol=6 * torch.finfo(dtype).eps)
    assert got.dtype == dtype


@pytest.mark.parametrize("kept", MEMORY_DTYPES, ids=str)
def test_vertices_are_exact(kept: torch.dtype) -> None:
    """u = -1, 0, 1 give exactly x - eps, x, x + eps: an int8 step times its scale is no 0.9999999."""
    size = 127 if kept == torch.int8 else 1
    memory = (size * torch.tensor([[-1.0, 0.0, 1.0]])).to(kept)
    scale = torch.ones(1) if kept == torch.int8 else None
    for dtype in (torch.float32, torch.float64):
        got = ops.replay_start(
            memory, torch.tensor([0]), torch.zeros(1, 3, dtype=dtype), 0.1, scale=scale, bounds=(-1, 1)
        )
        assert torch.equal(got, 0.1 * torch.tensor([[-1.0, 0.0, 1.0]], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_int8_entry_leaves_the_unit_ball(dtype: torch.dtype) -> None:
    memory = torch.arange(-127, 128).to(torch.int8).unsqueeze(0)
    got = ops.replay_start(
        memory, torch.tensor([0]), torch.zeros(1, 255, dtype=dtype), 1.0, scale=torch.ones(1), bounds=(-2, 2)
    )
    assert got.abs().max() == 1
    assert (got.diff() > 0).all()
    torch.testing.assert_close(got[0], torch.arange(-127, 128, dtype=dtype) / 127, rtol=2e-7, atol=0.0)


def test_reads_only_its_rows_and_writes_none() -> None:
    memory = torch.full((6, 4), math.nan)
    memory[2] = 0.5
    before = memory.clone().view(torch.int32)
    got = ops.replay_start(memory, torch.tensor([2, 2]), torch.full((2, 4), 0.25), 0.5)
    assert torch.equal(got, torch.full((2, 4), 0.5))
    assert torch.equal(memory.view(torch.int32), before)


def test_an_index_with_strides_and_images() -> None:
    memory, x = torch.randn(8, 2, 3, 3).clamp(-1, 1), torch.rand(4, 2, 3, 3)
    got = ops.replay_start(memory, torch.arange(8)[1::2], x, 0.1)
    assert torch.equal(got, (x + 0.1 * memory[1::2]).clamp(0, 1))
    last = x.contiguous(memory_format=torch.channels_last)
    other = ops.replay_start(memory, torch.arange(8)[1::2], last, 0.1)
    assert torch.equal(other, got) and other.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kept", MEMORY_DTYPES, ids=str)
def test_opcheck_and_compile_for_every_memory(kept: torch.dtype) -> None:
    case = next(case for case in op_cases("replay_start", [(3, 33)]) if f"memory={kept}" in case.id)
    args = case.args()
    torch.library.opcheck(torch.ops.soatfast.replay_start.default, args)
    memory, scale, index, x = args[:4]
    torch._dynamo.reset()
    compiled = torch.compile(ops.replay_start, fullgraph=True, backend="aot_eager")
    assert torch.equal(
        compiled(memory, index, x, 0.1, scale=scale), ops.replay_start(memory, index, x, 0.1, scale=scale)
    )


@pytest.mark.native
@pytest.mark.parametrize("bad", [-1, 9, 2**62])
def test_a_row_outside_the_memory_is_an_error_and_names_the_index(bad: int) -> None:
    memory, x = torch.zeros(9, 4), torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match=rf"index\[1\] is {bad}, outside the memory's 9 rows"):
        ops.replay_start(memory, torch.tensor([8, bad, -5]), x, 0.1)


@pytest.mark.native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(5, 4).half()}, "memory"),
        ({0: torch.zeros(5, 3)}, "memory"),
        ({0: torch.zeros(4, 5).T}, "memory"),
        ({0: torch.zeros(5, 4).to(torch.int8)}, "scale"),
        ({1: torch.ones(5)}, "scale"),
        ({0: torch.zeros(5, 4).to(torch.int8), 1: torch.ones(4)}, "scale"),
        ({0: torch.zeros(5, 4).to(torch.int8), 1: torch.ones(5).double()}, "scale"),
        ({0: torch.zeros(5, 4).to(torch.int8), 1: torch.ones(10)[::2]}, "scale"),
        ({2: torch.zeros(2)}, "index"),
        ({2: torch.zeros(3).long()}, "index"),
        ({2: torch.zeros(2, 1).long()}, "index"),
        ({3: torch.zeros(2, 4).half()}, "x: expected a float32 or float64 batch"),
        ({5: torch.zeros(3)}, "eps: expected 1 or 2 numbers"),
    ],
)
def test_the_kernel_checks_what_it_would_read_wrongly(change: dict, message: str) -> None:
    args = [torch.zeros(5, 4), None, torch.zeros(2).long(), torch.zeros(2, 4), 0.1, None, 0.0, 1.0]
    torch.ops.soatfast.replay_start(*args)
    for place, value in change.items():
        args[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.soatfast.replay_start(*args)


BAD = [
    ({"memory": torch.zeros(5, 4).half()}, TypeError, "memory must be float32, bfloat16 or int8, got torch.float16"),
    ({"memory": [[0.0]]}, TypeError, "memory must be float32, bfloat16 or int8, got <class 'list'>"),
    ({"memory": torch.zeros(5, 3)}, ValueError, "memory and x must agree behind the first dimension"),
    ({"memory": torch.zeros(5, 2, 2)}, ValueError, "memory and x must agree behind the first dimension"),
    ({"memory": torch.zeros(4, 5).T}, ValueError, "memory must be contiguous"),
    (
        {"memory": torch.zeros(5, 4).to(torch.int8)},
        ValueError,
        "an int8 memory needs scale, .* torch.int8 and scale None",
    ),
    ({"scale": torch.ones(5)}, ValueError, r"another takes none; got torch.float32 and scale \(5,\)$"),
    (
        {"memory": torch.zeros(5, 4).to(torch.int8), "scale": torch.ones(4)},
        ValueError,
        r"scale must be float32 of shape \(5,\), got torch.float32 \(4,\)",
    ),
    (
        {"memory": torch.zeros(5, 4).to(torch.int8), "scale": torch.ones(5).double()},
        ValueError,
        r"scale must be float32 of shape \(5,\), got torch.float64",
    ),
    ({"x": torch.zeros(2, 4).half()}, TypeError, "x must be a float32 or float64 batch, got torch.float16"),
    ({"x": torch.zeros(2, 4, device="meta")}, ValueError, "memory is on cpu, expected meta"),
    ({"index": torch.zeros(2)}, TypeError, "index must be an int64 tensor, got torch.float32"),
    ({"index": [0, 1]}, TypeError, "index must be an int64 tensor, got list"),
    ({"index": torch.zeros(3).long()}, ValueError, r"index must have shape \(2,\), one for each sample, got \(3,\)"),
    ({"index": torch.zeros(2, device="meta").long()}, ValueError, "index is on meta, expected cpu"),
    ({"eps": torch.rand(7)}, ValueError, "eps must be a number or a floating tensor"),
    ({"eps": -0.1}, ValueError, "eps must be finite and >= 0"),
    ({"bounds": (1.0, 0.0)}, ValueError, r"bounds must be \(lower, upper\)"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"memory": torch.zeros(5, 4), "index": torch.tensor([3, 1]), "x": torch.zeros(2, 4), "eps": 0.1}
    ops.replay_start(**arguments)
    with pytest.raises(error, match=message):
        ops.replay_start(**{**arguments, **change})


def test_call_leaves_the_arguments_alone() -> None:
    """The cases' own helper: what it shows of a memory is a copy, or every comparison after the first would be void."""
    args = op_cases("replay_step", [(3, 33)])[0].args()
    before = args[0].clone()
    after = call("replay_step", torch.ops.soatfast.replay_step, args)[1]
    assert torch.equal(args[0], before) and not torch.equal(after, before)
