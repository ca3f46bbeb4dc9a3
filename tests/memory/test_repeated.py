"""A sample that is in a batch several times: each begins at the remembered point, the last one is kept."""

import math

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from soatfast.attacks import PGD, FrankWolfe
from soatfast.losses import FGSMPGI, MART, SCORPIO, TRADES, AdversarialTraining
from soatfast.memory import CropFlip, PerturbationMemory
from soatfast.memory.visit import CopiedVisit, last_of_its_row
from soatfast.train.data import IndexedDataset
from tests.memory.test_store import BOUNDS, DTYPES, SHAPE, sample
from tests.nets import relu_net

INDEX, LAST, ONCE = torch.tensor([3, 7, 3, 9, 3, 7]), [4, 5, 4, 3, 4, 5], [3, 4, 5]


def stepped(memory, index, x, g, p, moves=None):
    with memory.visit(index, x, moves) as visit:
        start = visit.start(x, 0.3, BOUNDS)
        return start, visit.step(g, x, p, 0.3, 0.5, BOUNDS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("augment", [None, CropFlip(padding=1)])
def test_the_rows_are_those_of_a_batch_without_the_earlier_ones(dtype, p, augment):
    twice, once = (PerturbationMemory(12, SHAPE, dtype, augment=augment) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for seed in (1, 2):
        x, g = sample(6, seed)
        moves = None if augment is None else augment.draw(6, generator)
        starts, ends = stepped(twice, INDEX, x, g, p, moves)
        some = None if moves is None else moves[ONCE]
        expected_starts, expected = stepped(once, INDEX[ONCE], x[ONCE], g[ONCE], p, some)
        assert torch.equal(starts[ONCE], expected_starts) and torch.equal(ends[ONCE], expected)
        for name in ("values", "scale"):
            a, b = twice.state().get(name), once.state().get(name)
            assert a is b is None or torch.equal(a, b), name
    assert twice.visits[[3, 7, 9]].tolist() == [6, 4, 2] and twice.visits.sum() == 12
    assert once.visits[[3, 7, 9]].tolist() == [2, 2, 2]


def test_where_a_row_comes_last():
    assert last_of_its_row(INDEX).tolist() == LAST
    assert last_of_its_row(torch.tensor([5, 2, 9])) is None and last_of_its_row(INDEX[:0]) is None


def test_only_a_batch_that_repeats_a_sample_is_copied():
    memory = PerturbationMemory(12, SHAPE)
    x, _ = sample(6)
    assert isinstance(memory.visit(INDEX, x), CopiedVisit)
    assert not isinstance(memory.visit(torch.arange(6), x), CopiedVisit)


def test_an_error_in_the_block_leaves_the_rows_alone():
    memory = PerturbationMemory(12, SHAPE)
    x, g = sample(6)
    with pytest.raises(RuntimeError, match="boom"), memory.visit(INDEX, x) as visit:
        visit.step(g, x, math.inf, 0.3, 0.5, BOUNDS)
        raise RuntimeError("boom")
    assert not memory.values.any() and not memory.visits.any()


@pytest.mark.parametrize(
    "make",
    [
        lambda m: AdversarialTraining(FrankWolfe(eps=0.1, steps=1), memory=m),
        lambda m: AdversarialTraining(PGD(eps=0.1, steps=2), memory=m),
        lambda m: SCORPIO(eps=0.1, steps=1, memory=m),
        lambda m: TRADES(eps=0.1, steps=1, memory=m),
        lambda m: MART(eps=0.1, steps=1, memory=m),
        lambda m: FGSMPGI(m, eps=0.1),
    ],
)
def test_a_sampler_with_replacement_trains_every_loss(make):
    """The loader draws 12 of 4 samples, so each batch has some of them twice."""
    torch.manual_seed(0)
    data = TensorDataset(torch.rand(4, 1, 4, 4), torch.arange(4))
    sampler = WeightedRandomSampler([1.0, 1.0, 1.0, 5.0], 12, replacement=True)
    memory, model = PerturbationMemory(4, (1, 4, 4), torch.int8), relu_net(torch.float32)
    loss = make(memory)
    for x, y, index in DataLoader(IndexedDataset(data), 6, sampler=sampler):
        loss(model, x, y, index).backward()
    assert memory.visits.sum() == 12 and memory.visits[3] > 3 and memory.values.any()
    assert memory.read(torch.arange(4)).abs().max() <= 1
