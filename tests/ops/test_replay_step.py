"""replay_step against the formula in NumPy, closed forms, and what a memory promises: ball, box, rounding, its rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast import ops
from soatfast.ops.contract import MEMORY_DTYPES
from soatfast.testing import GENERAL_P, op_cases
from tests.ops.test_replay_start import BAD, memory_of

every_memory = pytest.mark.parametrize("kept", MEMORY_DTYPES, ids=str)
ROWS = torch.tensor([4, 0, 5])


def read(memory: torch.Tensor, scale: torch.Tensor | None, rows: torch.Tensor = ROWS) -> torch.Tensor:
    """u (B, D) in float64, without an op."""
    u = memory[rows].double()
    return u if scale is None else u / 127 * scale[rows].double().unsqueeze(1)


def unit_lmo(g: np.ndarray, p: float) -> np.ndarray:
    """argmax <g, s> over ||s||_p <= 1 for one row, from Hoelder's equality."""
    if p == math.inf:
        return np.sign(g)
    if p == 1:
        s = np.zeros_like(g)
        s[np.argmax(np.abs(g))] = np.sign(g[np.argmax(np.abs(g))])
        return s
    q = p / (p - 1)
    s = np.sign(g) * np.abs(g / np.abs(g).max()) ** (q - 1)
    return s / np.linalg.norm(s, p)


def step(u, g, x, p, eps, gamma, bounds, in_box):
    """(v', x_adv) for a row, written from the formula."""
    down, up = bounds[0] - x, bounds[1] - x
    v, s = np.clip(eps * u, down, up), eps * unit_lmo(g, p)
    if in_box:
        s = np.clip(s, down, up)
    v = np.clip((1 - gamma) * v + gamma * s, down, up)
    return v, np.clip(x + v, *bounds)


def quantised(u: np.ndarray, p: float) -> tuple[np.ndarray, float]:
    """(q, scale): to the nearest 1/127 for p = inf, towards 0 in steps of the largest entry / 127 for other p."""
    if p == math.inf:
        return np.sign(u) * np.floor(np.abs(u) * 127 + 0.5), 1.0
    top = float(np.float32(np.abs(u).max()))
    return np.sign(u) * np.floor(np.abs(u) * 127 / top), top


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-0.2, 0.9)])
@every_memory
@pytest.mark.parametrize(("p", "in_box"), [(p, False) for p in GENERAL_P] + [(math.inf, True)])
def test_one_step_written_out(p: float, in_box: bool, kept: torch.dtype, bounds: tuple[float, float]) -> None:
    memory, scale = memory_of(kept)
    if p != math.inf and kept != torch.int8:
        memory /= 8  # a blend in the ball, or the clamp of u to [-1, 1] would show
    old = read(memory, scale).numpy()
    g = torch.randn(3, 40, dtype=torch.float64)
    x, eps, gamma = (
        torch.rand(3, 40, dtype=torch.float64),
        torch.tensor([0.3, 0.05, 0.7], dtype=torch.float64),
        1 / math.pi,
    )
    if scale is not None and p != math.inf:
        scale /= 8
        old = read(memory, scale).numpy()
    got = ops.replay_step(memory, ROWS, g, x, p, eps, gamma, scale=scale, bounds=bounds, in_box=in_box)
    for i, row in enumerate(ROWS.tolist()):
        radius = eps[i].item()
        v, x_adv = step(old[i], g[i].numpy(), x[i].numpy(), p, radius, gamma, bounds, in_box)
        np.testing.assert_allclose(got[i].numpy(), x_adv, rtol=0, atol=1e-14)
        u = np.clip(v / radius, -1, 1)
        if kept == torch.int8:  # gamma is irrational, so that no entry is at a jump of the rounding
            q, top = quantised(u, p)
            assert scale is not None and scale[row].item() == pytest.approx(top, rel=2**-23, abs=0)
            steps = memory[row].double().numpy()
            if p == math.inf:
                assert scale[row] == 1
                np.testing.assert_array_equal(steps, q)
            else:  # only the largest entry is at a jump: top / top
                largest = np.abs(u) == np.abs(u).max()
                np.testing.assert_array_equal(steps[~largest], q[~largest])
                assert (np.abs(steps[largest]) >= 126).all()
        elif kept == torch.bfloat16 and p != math.inf:
            np.testing.assert_array_less(np.abs(memory[row].double().numpy()), np.abs(u) * (1 + 1e-7) + 1e-30)
            np.testing.assert_allclose(memory[row].double().numpy(), u, rtol=2**-7, atol=1e-30)
        else:
            half = 2**-24 if kept == torch.float32 else 2**-8
            np.testing.assert_allclose(memory[row].double().numpy(), u, rtol=1.001 * half, atol=1e-16)


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("in_box", [False, True])
@every_memory
def test_the_maximum_norm_is_the_reference_bit_for_bit(kept: torch.dtype, in_box: bool, dtype: torch.dtype) -> None:
    """Every operation is elementwise. Half of the int8 entries are halves here, which the cases' budget lets fall."""
    memory, scale = memory_of(kept)
    if scale is not None:
        scale.fill_(1)
    twin, twin_scale = memory.clone(), None if scale is None else scale.clone()
    x = torch.rand(3, 40, dtype=dtype)
    for eps in (8 / 255, 0.3, 1.0):
        g = torch.randn(3, 40, dtype=dtype)
        got = ops.replay_step(memory, ROWS, g, x, math.inf, eps, 0.5, scale=scale, in_box=in_box)
        with ops.backend("reference"):
            expected = ops.replay_step(twin, ROWS, g, x, math.inf, eps, 0.5, scale=twin_scale, in_box=in_box)
        assert torch.equal(got, expected)
        assert torch.equal(memory, twin)
        assert scale is None or torch.equal(scale, twin_scale)


@every_memory
@pytest.mark.parametrize("p", GENERAL_P)
def test_other_rows_keep_their_bits(p: float, kept: torch.dtype) -> None:
    """Also rows of NaN, which nobody reads."""
    memory, scale = memory_of(kept, rows=9)
    if kept != torch.int8:
        memory[[1, 7]] = math.nan
    before = [t.clone().view(torch.uint8) for t in (memory, scale) if t is not None]
    index = torch.tensor([6, 2, 8, 3])
    got = ops.replay_step(memory, index, torch.randn(4, 40), torch.rand(4, 40), p, 0.3, scale=scale)
    assert got.isfinite().all() and memory[index].double().isfinite().all()
    others = [0, 1, 4, 5, 7]
    for old, new in zip(before, (t for t in (memory, scale) if t is not None), strict=True):
        assert torch.equal(old[others], new.view(torch.uint8)[others])
        if new is memory:
            assert (old[index] != new.view(torch.uint8)[index]).any(1).all(), "every row of the index moves"


@pytest.mark.native
@pytest.mark.parametrize("p", GENERAL_P)
@every_memory
def test_a_batch_is_its_samples_bit_for_bit(kept: torch.dtype, p: float) -> None:
    """Of the kernel: torch's own power rounds an entry by its place in the batch."""
    memory, scale = memory_of(kept)
    alone, alone_scale = memory.clone(), None if scale is None else scale.clone()
    g, x, eps = torch.randn(3, 40), torch.rand(3, 40), torch.tensor([0.1, 0.0, 0.4])
    g[1] = math.nan
    together = ops.replay_step(memory, ROWS, g, x, p, eps, scale=scale)
    for i in (2, 0, 1):
        k = slice(i, i + 1)
        one = ops.replay_step(alone, ROWS[k], g[k], x[k], p, eps[k], scale=alone_scale)
        assert torch.equal(one, together[k])
    assert torch.equal(alone, memory)
    assert scale is None or torch.equal(alone_scale, scale)


@every_memory
@pytest.mark.parametrize("p", GENERAL_P)
def test_gamma_one_forgets_the_past(p: float, kept: torch.dtype) -> None:
    memory, scale = memory_of(kept)
    g, x = torch.randn(3, 40), torch.rand(3, 40)
    got = ops.replay_step(memory, ROWS, g, x, p, 0.4, 1.0, scale=scale)
    # v + (s - v) rounds twice for terms of up to 0.4.
    torch.testing.assert_close(got, (x + ops.lmo(g, p, 0.4)).clamp(0, 1), rtol=0, atol=2e-7)


@every_memory
def test_gamma_zero_keeps_the_memory(kept: torch.dtype) -> None:
    """p = inf: int8 and bfloat16 come back to the bit, as u (1 + 2^-22) rounds to u; 30 visits do not wear it down."""
    memory, scale = memory_of(kept)
    if scale is not None:
        scale.fill_(1)
    before, x = memory.clone(), 0.5 + 0.01 * torch.rand(3, 40)
    for visit in range(30):
        g, eps = torch.randn(3, 40), 0.01 * (visit + 1)
        start = ops.replay_start(memory, ROWS, x, eps, scale=scale)
        got = ops.replay_step(memory, ROWS, g, x, math.inf, eps, 0.0, scale=scale)
        assert torch.equal(got, start)
    if kept == torch.float32:
        torch.testing.assert_close(memory, before, rtol=30 * 2**-22, atol=0)
    else:
        assert torch.equal(memory, before)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_other_norms_lose_at_most_a_step_a_visit(p: float) -> None:
    """bfloat16 and int8 round towards 0 there: with gamma = 0 no entry grows, none loses more than one step."""
    x, g = torch.full((3, 40), 0.5), torch.randn(3, 40)
    for kept in (torch.bfloat16, torch.int8):
        memory, scale = memory_of(kept)
        if scale is None:
            memory /= 8
        old = read(memory, scale)
        ops.replay_step(memory, ROWS, g, x, p, 0.3, 0.0, scale=scale)
        new = read(memory, scale)
        lost = old.abs() - new.abs()
        unit = old.abs() * 2**-7 if scale is None else old.abs().amax(1, keepdim=True) / 127
        assert (lost >= -1e-6 * old.abs()).all() and (lost <= 1.000001 * unit).all()
        assert (new * old >= 0).all()


@pytest.mark.parametrize(("p", "in_box"), [*((p, False) for p in GENERAL_P), (math.inf, True)])
def test_is_the_last_frank_wolfe_step_of_one_gradient(p: float, in_box: bool) -> None:
    """g0 = g1 = g and h = 1; the start is inside the box, where into_box does nothing."""
    g, x, eps, gamma = torch.randn(3, 40), 0.3 + 0.4 * torch.rand(3, 40), 0.25, 0.4
    memory = ops.lmo(torch.randn(7, 40), p, 1.0)
    v, x_adv, _ = ops.frank_wolfe_step(
        g, g, eps * memory[ROWS], x, p, eps, gamma=gamma, h=1.0, last=True, in_box=in_box
    )
    got = ops.replay_step(memory, ROWS, g, x, p, eps, gamma, in_box=in_box)
    torch.testing.assert_close(got, x_adv, rtol=0, atol=2e-7)
    torch.testing.assert_close(memory[ROWS], v / eps, rtol=1e-5, atol=1e-6)


@given(
    seed=st.integers(0, 2**32 - 1),
    p=st.sampled_from([1.0, 1.5, 2.0, 3.0, math.inf]),
    kept=st.sampled_from(MEMORY_DTYPES),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    size=st.integers(1, 70),
    gamma=st.floats(0, 1),
    eps=st.just(0.0) | st.floats(1e-30, 2),
    in_box=st.booleans(),
)
def test_never_leaves_ball_and_box(seed, p, kept, dtype, size, gamma, eps, in_box) -> None:
    """Neither the example, nor what the memory gives back; for p = inf the entries of u are in [-1, 1] exactly."""
    generator = torch.Generator().manual_seed(seed)
    x = (1.2 * torch.rand(3, size, generator=generator, dtype=dtype) - 0.1).clamp(0, 1)
    memory = torch.zeros(7, size).to(kept)
    scale = torch.ones(7) if kept == torch.int8 else None
    rows = torch.randperm(7, generator=generator)[:3]
    # Roundings: of x + v once an entry, and of the norm of s and of u in a float32 memory (to nearest) relative to eps.
    slack = 2 * size * torch.finfo(dtype).eps + 4e-6 * eps
    for _ in range(4):
        g = torch.randn(3, size, generator=generator, dtype=dtype)
        start = ops.replay_start(memory, rows, x, eps, scale=scale)
        got = ops.replay_step(memory, rows, g, x, p, eps, gamma, scale=scale, in_box=in_box and p == math.inf)
        back = ops.replay_start(memory, rows, torch.zeros_like(x), 1.0, scale=scale, bounds=(-9, 9))
        for point in (start, got):
            assert point.min() >= 0 and point.max() <= 1
            assert torch.linalg.vector_norm((point - x).double(), p, dim=1).max() <= eps + slack
        assert torch.linalg.vector_norm(back.double(), p, dim=1).max() <= 1 + (4e-6 if p != math.inf else 0)


@given(seed=st.integers(0, 2**32 - 1), eps=st.floats(1e-3, 1), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_int8_is_right_to_half_a_step(seed: int, eps: float, dtype: torch.dtype) -> None:
    """p = inf, gamma = 1: the box cuts v' at any wanted u eps, and the memory gives it back to 1/254."""
    generator = torch.Generator().manual_seed(seed)
    u = 2 * torch.rand(1, 300, generator=generator, dtype=torch.float64) - 1
    u[0, :3] = torch.tensor([1.0, -1.0, 0.0])
    x = torch.where(u > 0, 1 - eps * u, -eps * u).to(dtype)
    memory, scale = torch.zeros(1, 300, dtype=torch.int8), torch.zeros(1)
    row = torch.tensor([0])
    x_adv = ops.replay_step(memory, row, u.to(dtype), x, math.inf, eps, 1.0, scale=scale)
    v = x_adv.double() - x.double()
    torch.testing.assert_close(v / eps, u, rtol=0, atol=4 * torch.finfo(dtype).eps / eps)
    back = read(memory, scale, row)
    assert (back - u).abs().max() <= 0.5 / 127 + 4 * torch.finfo(dtype).eps / eps
    assert scale.item() == 1


def test_int8_keeps_vertices_exactly() -> None:
    g, x = torch.randn(3, 40), torch.full((3, 40), 0.5)
    memory, scale = torch.zeros(7, 40, dtype=torch.int8), torch.zeros(7)
    for eps in (0.1, 8 / 255, 0.3, 1e-3):
        got = ops.replay_step(memory, ROWS, g, x, math.inf, eps, 1.0, scale=scale)
        assert torch.equal(memory[ROWS], (127 * g.sign()).to(torch.int8)) and (scale[ROWS] == 1).all()
        for _ in range(5):  # the same vertex again: nothing wears off
            again = ops.replay_step(memory, ROWS, g, x, math.inf, eps, 0.5, scale=scale)
            assert torch.equal(again, got)
        assert torch.equal(memory[ROWS], (127 * g.sign()).to(torch.int8))


@pytest.mark.parametrize("p", GENERAL_P)
@every_memory
def test_no_radius_gives_no_step_and_is_forgotten(kept: torch.dtype, p: float) -> None:
    memory, scale = memory_of(kept)
    x = torch.rand(3, 40)
    eps = torch.tensor([0.2, 0.0, 0.2])
    got = ops.replay_step(memory, ROWS, torch.randn(3, 40), x, p, eps, scale=scale)
    assert torch.equal(got[1], x[1]) and not memory[ROWS[1]].any()
    assert (memory[ROWS[0]] != 0).any()
    ops.replay_step(memory, ROWS, torch.randn(3, 40), x, p, 0.0, scale=scale)
    assert not memory[ROWS].any()


@pytest.mark.native
@pytest.mark.parametrize("p", GENERAL_P)
@every_memory
def test_a_denormal_radius_is_none(kept: torch.dtype, p: float) -> None:
    """1 / eps is infinite: 0 times that would be a NaN that no later visit loses."""
    memory, scale = memory_of(kept)
    x = torch.rand(3, 40).round()  # on a face, so that some v' are 0
    got = ops.replay_step(memory, ROWS, torch.randn(3, 40), x, p, 1e-42, scale=scale)
    assert (got - x).abs().max() <= 1e-42
    assert not memory[ROWS].any()


@pytest.mark.parametrize("p", GENERAL_P)
def test_special_gradients(p: float) -> None:
    """NaN counts as 0, infinity as the largest number, 0 makes no step; then v' = (1 - gamma) v."""
    x = torch.full((3, 6), 0.5, dtype=torch.float64)
    memory = torch.full((7, 6), 0.125)
    g = torch.tensor([[math.nan] * 6, [0.0] * 6, [math.nan, 0.0, -math.inf, 1.0, -1.0, 0.0]], dtype=torch.float64)
    got = ops.replay_step(memory, ROWS, g, x, p, 0.4, 0.25)
    kept = torch.full((6,), 0.5 + 0.75 * 0.05, dtype=torch.float64)
    torch.testing.assert_close(got[:2], kept.expand(2, 6), rtol=0, atol=1e-15)
    torch.testing.assert_close(memory[ROWS[:2]], torch.full((2, 6), 0.75 * 0.125))
    moved = got[2] - kept
    assert moved[2] < -0.09 and moved[[0, 1, 5]].abs().max() < 1e-15
    assert (moved[3] > 0.09 and moved[4] < -0.09) == (p == math.inf)


def test_ties_of_p_one_go_to_the_lowest_index() -> None:
    memory, x = torch.zeros(1, 300), torch.full((1, 300), 0.5)
    g = torch.zeros(1, 300)
    g[0, [271, 280, 299]] = torch.tensor([-2.0, 2.0, -2.0])
    ops.replay_step(memory, torch.tensor([0]), g, x, 1, 0.25, 1.0)
    assert memory[0].nonzero().tolist() == [[271]] and memory[0, 271] == -1


def test_in_box_moves_towards_the_face_not_beyond() -> None:
    """x = 0.9, eps = 0.4: s ends on the face, 0.1 away; without in_box half of the step leaves the box and is cut."""
    x, g = torch.full((1, 1), 0.9, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    moved = []
    for in_box in (True, False):
        memory = torch.zeros(1, 1)
        moved.append(ops.replay_step(memory, torch.tensor([0]), g, x, math.inf, 0.4, 0.5, in_box=in_box).item())
        assert memory.item() == pytest.approx((moved[-1] - 0.9) / 0.4, rel=1e-6)
    assert moved == pytest.approx([0.95, 1.0], abs=1e-15)


@every_memory
def test_opcheck_knows_what_is_updated(kept: torch.dtype) -> None:
    for label in ("p=inf", "p=1.5"):
        cases = op_cases("replay_step", [(3, 33)])
        args = next(case for case in cases if f"{label}-memory={kept}" in case.id).args()
        torch.library.opcheck(torch.ops.soatfast.replay_step.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("p", [2, math.inf])
@every_memory
def test_compiles_and_updates_the_memory_given(kept: torch.dtype, p: float, dynamic: bool) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(ops.replay_step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    memory, scale = memory_of(kept)
    eager = [t.clone() for t in (memory, scale) if t is not None]
    for rows in (ROWS, ROWS[:2]):
        g, x = torch.randn(len(rows), 40), torch.rand(len(rows), 40)
        got = compiled(memory, rows, g, x, p, 0.3, scale=scale)
        expected = ops.replay_step(eager[0], rows, g, x, p, 0.3, scale=None if scale is None else eager[1])
        assert torch.equal(got, expected)
        assert torch.equal(memory, eager[0]) and (scale is None or torch.equal(scale, eager[1]))


@pytest.mark.native
@pytest.mark.parametrize("bad", [-1, 9])
def test_a_row_outside_the_memory_is_an_error_before_anything_is_written(bad: int) -> None:
    memory, t = torch.zeros(9, 4), torch.ones(3, 4)
    with pytest.raises(RuntimeError, match=rf"index\[2\] is {bad}, outside the memory's 9 rows"):
        ops.replay_step(memory, torch.tensor([0, 1, bad]), t, 0.5 * t, 2, 0.1)
    assert not memory.any()


@pytest.mark.native
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: torch.ones(2, 3)}, "g: expected shape"),
        ({3: torch.ones(2, 4).double()}, "g: expected the dtype"),
        ({5: 0.5}, "p: unsupported order"),
        ({0: torch.zeros(4, 5).T}, "memory: expected a dense tensor"),
    ],
)
def test_the_kernel_checks_its_own(change: dict, message: str) -> None:
    one = torch.ones(2, 4)
    args = [torch.zeros(5, 4), None, torch.zeros(2).long(), one, one, 2.0, 0.1, None, 0.5, 0.0, 1.0, False]
    torch.ops.soatfast.replay_step(*args)
    for place, value in change.items():
        args[place] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.soatfast.replay_step(*args)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *BAD,
        ({"g": torch.ones(2, 3)}, ValueError, r"g must be as x, .*got torch.float32 \(2, 3\)"),
        ({"g": torch.ones(2, 4).double()}, ValueError, r"g must be as x, .*got torch.float64"),
        ({"g": torch.ones(2, 4, device="meta")}, ValueError, "g must be as x"),
        ({"gamma": -0.1}, ValueError, r"gamma must be a number in \[0, 1\], got -0.1"),
        ({"gamma": 1.5}, ValueError, r"gamma must be a number in \[0, 1\]"),
        ({"gamma": math.nan}, ValueError, r"gamma must be a number in \[0, 1\]"),
        ({"gamma": True}, TypeError, "gamma must be a number, got"),
        ({"gamma": torch.tensor(0.5)}, TypeError, "gamma must be a number, got"),
        ({"p": 0.9}, ValueError, "p must be a number >= 1"),
        ({"in_box": True, "p": 3}, ValueError, r"in_box takes p = 1, 2 or math\.inf"),
    ],
)
def test_bad_input_leaves_the_memory_alone(change: dict, error: type[Exception], message: str) -> None:
    memory, one = torch.zeros(5, 4), torch.full((2, 4), 0.5)
    arguments = {"memory": memory, "index": torch.tensor([3, 1]), "g": one, "x": one, "p": 2, "eps": 0.1, **change}
    with pytest.raises(error, match=message):
        ops.replay_step(**arguments)
    assert not memory.any()
