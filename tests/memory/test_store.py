"""PerturbationMemory: rows by index, in the ball in every format, moved, and shared by processes."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soatfast import ops
from soatfast.memory.crops import CropFlip
from soatfast.memory.shards import reducible, shard_range
from soatfast.memory.store import PerturbationMemory
from soatfast.memory.visit import CopiedVisit

SHAPE = (1, 4, 5)
BOUNDS = (0.0, 1.0)
DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def sample(n: int = 6, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=generator), torch.randn(n, *shape, generator=generator)


def visited(memory: PerturbationMemory, index: Tensor, p: float = math.inf, eps: float = 0.3, seed: int = 0) -> Tensor:
    x, g = sample(len(index), seed, memory.shape)
    with memory.visit(index, x) as visit:
        visit.start(x, eps, BOUNDS)
        return visit.step(g, x, p, eps, 0.5, BOUNDS) - x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
def test_each_sample_has_its_own_row(dtype, p):
    memory = PerturbationMemory(20, SHAPE, dtype)
    assert len(memory) == 20 and not memory.read(torch.arange(20)).any()
    index = torch.tensor([17, 3, 0, 19, 8, 11])
    delta = visited(memory, index, p)
    one_row = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.int8: 1 / 127}[dtype]  # of the largest entry, 1
    torch.testing.assert_close(memory.read(index), delta / 0.3, atol=one_row, rtol=0)
    assert memory.read(index).flatten(1).norm(p, dim=1).max() <= 1 + 1e-6
    others = [i for i in range(20) if i not in index.tolist()]
    assert not memory.read(torch.tensor(others)).any()
    assert memory.visits.sum() == 6 and memory.visits[17] == 1 and memory.visits[1] == 0
    memory.reset()
    assert not memory.read(torch.arange(20)).any() and not memory.visits.any()


def test_bytes():
    assert PerturbationMemory(100, SHAPE, torch.int8).values.nbytes == 100 * 20
    assert PerturbationMemory(100, SHAPE, torch.int8).nbytes == 100 * (20 + 12)
    assert PerturbationMemory(100, SHAPE, torch.bfloat16).nbytes == 100 * (40 + 8)
    assert PerturbationMemory(100, SHAPE).nbytes == 100 * (80 + 8)
    memory = PerturbationMemory(100, SHAPE, torch.int8)
    held = [t for t in vars(memory).values() if isinstance(t, Tensor)]
    assert memory.nbytes == sum(t.nbytes for t in held), "everything it allocates"


@given(
    seed=st.integers(0, 2**31),
    p=st.sampled_from([1.0, 1.5, 2.0, 3.0, math.inf]),
    dtype=st.sampled_from(DTYPES),
    eps=st.sampled_from([1e-3, 0.1, 1.0, 8.0]),
    gamma=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
)
def test_ball_and_box_hold_over_many_visits(seed, p, dtype, eps, gamma):
    memory = PerturbationMemory(3, (7,), dtype)
    index = torch.tensor([2, 0, 1])
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(3, 7, generator=generator)
    for _ in range(4):
        with memory.visit(index, x) as visit:
            start = visit.start(x, eps, BOUNDS)
            x_adv = visit.step(torch.randn(3, 7, generator=generator), x, p, eps, gamma, BOUNDS)
        for point in (start, x_adv):
            assert point.min() >= 0 and point.max() <= 1
            assert (point.double() - x.double()).norm(p, dim=1).max() <= eps * (1 + 1e-6) + 1e-6
        assert memory.read(index).double().norm(p, dim=1).max() <= 1 + 1e-6
        if dtype == torch.int8 and p == math.inf:
            assert memory.read(index).abs().max() <= 1, "exactly"


def test_an_eps_ramp_rescales_the_memory():
    memory = PerturbationMemory(4, (3,))
    index, x = torch.tensor([1, 2]), torch.full((2, 3), 0.5)
    with memory.visit(index, x) as visit:
        visit.step(torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, 1.0]]), x, math.inf, 0.1, 0.5, BOUNDS)
        small = visit.start(x, 0.1, BOUNDS) - x
        large = visit.start(x, 0.2, BOUNDS) - x
    torch.testing.assert_close(large, 2 * small)
    torch.testing.assert_close(small[0], torch.tensor([0.05, -0.05, 0.0]))


def test_put_is_read_back():
    memory = PerturbationMemory(4, (3,))
    index, x = torch.tensor([1, 2]), torch.full((2, 3), 0.5)
    delta = torch.tensor([[0.1, 0.0, -0.1], [0.05, 0.02, 0.0]])
    with memory.visit(index, x) as visit:
        visit.put(delta, math.inf, torch.tensor([0.1, 0.2]))
    torch.testing.assert_close(memory.read(index), delta / torch.tensor([[0.1], [0.2]]))
    with memory.visit(index, x) as visit:
        visit.put(delta, math.inf, 0.0)
    assert not memory.read(index).any(), "a ball without extent holds nothing"


def test_a_visit_counts_when_it_is_over():
    memory = PerturbationMemory(4, SHAPE)
    index, (x, g) = torch.tensor([1, 2]), sample(2)
    with memory.visit(index, x) as visit:
        visit.start(x, 0.1, BOUNDS)
        assert not memory.visits.any()
    assert memory.visits.tolist() == [0, 1, 1, 0]
    with pytest.raises(RuntimeError, match="boom"), memory.visit(index, x) as visit:
        visit.start(x, 0.1, BOUNDS)
        raise RuntimeError("boom")
    assert memory.visits.tolist() == [0, 1, 1, 0], "nothing happened"
    with pytest.raises(RuntimeError, match="boom"), memory.visit(index, x) as visit:
        visit.step(g, x, math.inf, 0.1, 0.5, BOUNDS)
        raise RuntimeError("boom")
    assert memory.visits.tolist() == [0, 2, 2, 0] and memory.values[1:3].all(), "in place: the rows have moved"


def test_one_memory_serves_one_ball():
    memory = PerturbationMemory(4, SHAPE)
    index, (x, g) = torch.tensor([1, 2]), sample(2)
    with pytest.raises(ValueError, match="g must be as x"), memory.visit(index, x) as visit:
        visit.step(g[:1], x, 2, 0.1, 0.5, BOUNDS)
    assert memory.p is None
    visited(memory, index)
    assert memory.p == math.inf
    visited(memory, index, p=2000)  # taken as inf
    before = memory.values.clone()
    message = r"holds perturbations for p = inf, got p = 2; reset\(\) empties it"
    with pytest.raises(ValueError, match=message):
        visited(memory, index, p=2)
    with pytest.raises(ValueError, match=message), memory.visit(index, x) as visit:
        visit.put(x, 2, 1.0)
    assert torch.equal(memory.values, before) and memory.visits.tolist() == [0, 2, 2, 0]
    memory.reset()
    with memory.visit(index, x) as visit:
        visit.put(0.01 * x, 2, 1.0)
    assert memory.p == 2
    with pytest.raises(ValueError, match="p = 2, got p = 1;"):
        visited(memory, index, p=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [2, math.inf])
def test_rows_that_are_copied_end_as_those_in_place(dtype, p):
    """A batch on another device, played on this one."""
    here, copied = PerturbationMemory(8, SHAPE, dtype), PerturbationMemory(8, SHAPE, dtype)
    for index in (torch.tensor([5, 2, 7]), torch.tensor([2, 5, 0])):
        x, g = sample(3, int(index[2]))
        with CopiedVisit(copied, index, x.device) as visit:
            assert visit._values.dtype == dtype, "not in float32, which is four times as much to copy"
            starts = [visit.start(x, 0.3, BOUNDS)]
            moved = [visit.step(g, x, p, 0.3, 0.5, BOUNDS)]
            assert not copied.values[0].any(), "written when the block ends"
        with here.visit(index, x) as visit:
            starts.append(visit.start(x, 0.3, BOUNDS))
            moved.append(visit.step(g, x, p, 0.3, 0.5, BOUNDS))
        assert torch.equal(*starts) and torch.equal(*moved)
        for name, t in here.state().items():
            assert torch.equal(t, copied.state()[name]), name
    with pytest.raises(RuntimeError, match="boom"), CopiedVisit(copied, index, x.device) as visit:
        visit.put(0.1 * x, p, 9.0)
        raise RuntimeError("boom")
    assert all(torch.equal(t, copied.state()[name]) for name, t in here.state().items())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_visit_without_a_step_leaves_the_rows_bit_for_bit(dtype):
    augment = CropFlip(padding=1)
    memory = PerturbationMemory(6, SHAPE, dtype, augment=augment)
    index, (x, g) = torch.tensor([4, 1]), sample(2)
    moves = torch.tensor([[1, 0, 1], [-1, 1, 0]])
    with memory.visit(index, x, moves) as visit:
        visit.step(g, x, 2, 0.1, 0.5, BOUNDS)
    before = {name: t.clone() for name, t in memory.state().items()}
    for visit in (memory.visit(index, x, moves), CopiedVisit(memory, index, x.device)):
        with visit:
            visit.start(x, 0.1, BOUNDS)
    assert memory.visits[4] == 3
    assert all(torch.equal(t, before[name]) for name, t in memory.state().items() if name != "visits")


# ---------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [2, math.inf])
def test_perturbations_follow_crops_and_flips(dtype, p):
    """Against a loop over samples that pads, crops and flips by hand."""
    augment = CropFlip(padding=2, flip=True)
    memory = PerturbationMemory(9, (2, 6, 5), dtype, augment=augment)
    index = torch.tensor([8, 1, 4, 0])
    generator = torch.Generator().manual_seed(3)
    old = torch.randn(4, 2, 6, 5, generator=generator)
    old = 0.9 * old / old.flatten(1).norm(p, dim=1).view(-1, 1, 1, 1)
    clean = torch.rand(4, 2, 6, 5, generator=generator)
    moves = torch.tensor([[-2, 2, 1], [0, 0, 0], [2, -1, 1], [-1, -2, 0]])
    with CopiedVisit(memory, index, clean.device) as still:
        still.put(0.25 * old, p, 0.25)
    before = memory.read(index)
    x = augment.apply(clean, moves)
    with memory.visit(index, x, moves) as visit:
        start = visit.start(x, 0.25, BOUNDS)
        delta = visit.step(torch.randn(4, 2, 6, 5, generator=generator), x, p, 0.25, 0.5, BOUNDS) - x
    after = memory.read(index)
    for b, (dy, dx, flipped) in enumerate(moves.tolist()):
        top, left = dy + 2, dx + 2
        window = torch.nn.functional.pad(before[b], (2, 2, 2, 2))[:, top : top + 6, left : left + 5]
        window = window.flip(2) if flipped else window
        torch.testing.assert_close(start[b], (x[b] + 0.25 * window).clamp(0, 1))
        expected = torch.nn.functional.pad(before[b], (2, 2, 2, 2))
        part = delta[b] / 0.25
        expected[:, top : top + 6, left : left + 5] = part.flip(2) if flipped else part
        expected = expected[:, 2:8, 2:7]
        if p == 2:
            expected = expected / max(1.0, float(expected.norm()))
        torch.testing.assert_close(after[b], expected, atol=1e-6 if dtype == torch.float32 else 1 / 100, rtol=0)
    assert after.flatten(1).norm(p, dim=1).max() <= 1 + 1e-6


def test_a_data_set_with_another_padding_than_the_memory():
    """A smaller one moves the perturbation all the same; a move that the memory's padding has not is refused."""
    index, (x, g) = torch.tensor([1, 0]), sample(2)
    moves = torch.tensor([[-1, 1, 0], [0, 1, 1]])
    rows = []
    for padding in (1, 3):
        memory = PerturbationMemory(2, SHAPE, augment=CropFlip(padding=padding))
        for _ in range(2):
            with memory.visit(index, x, moves) as visit:
                visit.start(x, 0.3, BOUNDS)
                visit.step(g, x, math.inf, 0.3, 0.5, BOUNDS)
        rows.append(memory.values)
    assert torch.equal(*rows) and rows[0].any()
    with pytest.raises(ValueError, match=r"moves must lie in -1\.\.1"):
        PerturbationMemory(2, SHAPE, augment=CropFlip(padding=1)).visit(index, x, 2 * moves)


def test_an_error_in_the_block_leaves_moved_rows_alone():
    memory = PerturbationMemory(3, SHAPE, augment=CropFlip(padding=1))
    x, g = sample(2)
    moves = torch.tensor([[-1, -1, 0], [1, 1, 1]])
    with pytest.raises(RuntimeError, match="boom"), memory.visit(torch.tensor([0, 1]), x, moves) as visit:
        visit.step(g, x, math.inf, 0.1, 0.5, BOUNDS)
        raise RuntimeError("boom")
    assert not memory.values.any()


def test_kept_restores_a_trial_step():
    memory = PerturbationMemory(20, SHAPE, torch.int8)
    index = torch.tensor([5, 2])
    visited(memory, index, p=2)
    before = {name: t.clone() for name, t in memory.state().items()}
    other = PerturbationMemory(20, SHAPE)
    with other.kept(index):
        visited(other, index, p=1)
    assert other.p is None
    with memory.kept(index):
        visited(memory, index, p=2, seed=8)
        assert not torch.equal(memory.values, before["values"])
    assert all(torch.equal(t, before[name]) for name, t in memory.state().items())


# ---------------------------------------------------------------------------------------------- shards, errors


@given(samples=st.integers(1, 200), world=st.integers(1, 9))
def test_shards_are_a_partition(samples, world):
    blocks = [shard_range(samples, rank, world) for rank in range(world)]
    assert [i for block in blocks for i in block] == list(range(samples))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_a_shard_keeps_its_block_alone():
    memory = PerturbationMemory(10, SHAPE, rank=1, world=3)
    assert len(memory) == 3
    delta = visited(memory, torch.tensor([5, 3]))
    torch.testing.assert_close(memory.read(torch.tensor([5, 3])), delta / 0.3)
    with pytest.raises(ValueError, match=re.escape("rank 1 keeps samples 3..5, got 2..5: use ShardedSampler")):
        visited(memory, torch.tensor([2, 5]))
    with pytest.raises(ValueError, match=r"3\.\.5"):
        memory.read(torch.tensor([2]))
    memory.synchronize()  # one process: nothing to do


@pytest.mark.parametrize(
    ("device", "backends", "expected"),
    [
        ("cpu", "cpu:gloo,cuda:gloo", "cpu"),
        ("cpu", "cpu:gloo,cuda:nccl", "cpu"),
        ("cuda:1", "cpu:gloo,cuda:nccl", "cuda:1"),
        ("cpu", "cuda:nccl", "cuda:3"),
        ("cuda:1", "cuda:nccl", "cuda:1"),
        ("cpu", "xpu:xccl", "xpu"),
    ],
)
def test_a_memory_is_reduced_where_the_process_group_can(device, backends, expected, monkeypatch):
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    assert reducible(torch.device(device), backends) == torch.device(expected)


@pytest.mark.parametrize(
    ("index", "error", "message"),
    [
        (torch.tensor([0, 20]), ValueError, r"index must lie in 0\.\.19, got 0\.\.20"),
        (torch.tensor([-1, 3]), ValueError, r"index must lie in 0\.\.19, got -1\.\.3"),
        (torch.tensor([3, 4, 5]), ValueError, r"shape \(2,\).*\(3,\)"),
        (torch.tensor([[3, 4]]), ValueError, r"shape \(2,\)"),
        (torch.tensor([3.0, 4.0]), TypeError, "int64"),
        (torch.tensor([3, 4], dtype=torch.int32), TypeError, "int64"),
        ([3, 4], TypeError, "list"),
    ],
)
def test_bad_indices(index, error, message):
    memory = PerturbationMemory(20, SHAPE)
    with pytest.raises(error, match=message):
        memory.visit(index, sample(2)[0])
    assert not memory.visits.any()


def test_bad_batches():
    memory = PerturbationMemory(20, SHAPE)
    with pytest.raises(ValueError, match=re.escape("expected samples of shape (1, 4, 5), got a batch of (2, 1, 5, 4)")):
        memory.visit(torch.tensor([0, 1]), torch.rand(2, 1, 5, 4))
    with pytest.raises(ValueError, match="memory has no augment, got moves"):
        memory.visit(torch.tensor([0, 1]), sample(2)[0], torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"memory follows CropFlip.*got moves None"):
        PerturbationMemory(20, SHAPE, augment=CropFlip()).visit(torch.tensor([0, 1]), sample(2)[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples"),
        ({"samples": 2.0}, TypeError, "samples must be a whole number"),
        ({"shape": ()}, ValueError, "shape"),
        ({"shape": (3, 0)}, ValueError, "shape"),
        ({"dtype": torch.float16}, ValueError, "dtype must be one of.*int8.*got torch.float16"),
        ({"augment": "flip"}, TypeError, "CropFlip"),
        ({"shape": (5,), "augment": CropFlip()}, ValueError, r"\(C, H, W\)"),
        ({"rank": 2, "world": 2}, ValueError, "rank"),
        ({"device": "cdua"}, ValueError, "torch has no device 'cdua'"),
        ({"device": "memory.bin"}, ValueError, "no device 'memory.bin'; for a file give a pathlib.Path"),
    ],
)
def test_bad_arguments(change, error, message):
    with pytest.raises(error, match=message):
        PerturbationMemory(**{"samples": 4, "shape": SHAPE, **change})


def test_channels_last_batches_keep_their_layout():
    memory = PerturbationMemory(5, (3, 4, 5))
    x, g = sample(2, shape=(3, 4, 5))
    index = torch.tensor([0, 3])
    plain = ops.replay_step(memory.values.clone(), index, g, x, 2, 0.3)
    x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    with memory.visit(index, x) as visit:
        assert visit.start(x, 0.3, BOUNDS).is_contiguous(memory_format=torch.channels_last)
        x_adv = visit.step(g, x, 2, 0.3, 0.5, BOUNDS)
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x_adv, plain)
