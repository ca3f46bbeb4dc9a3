"""Samples with their index through a DataLoader, data sets that change under the reader, and shards."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from soatfast.memory.crops import CropFlip
from soatfast.memory.shards import shard_range
from soatfast.train.data.batches import Batches
from soatfast.train.data.indexed import IndexedDataset, ShardedSampler

AUGMENT = CropFlip(padding=2)


def pictures(n=12, shape=(2, 5, 4)):
    return TensorDataset(torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3)


class Changing(Dataset):
    """Passes every image through `change(image, i)`; counts its reads."""

    def __init__(self, change, n=12):
        self.pictures, self.change, self.reads = pictures(n), change, []

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        self.reads.append(i)
        x, y = self.pictures[i]
        return self.change(x, i), y


class ReusedMemory(Changing):
    """Hands out the same memory each time."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        self.memory = getattr(self, "memory", torch.empty_like(x))
        return self.memory.copy_(x), y


def shifted_by_torch(x, i):
    return x.roll(int(torch.randint(4, ())), 2)


def shifted_by_python(x, i):
    return x.roll(random.randrange(4), 2)


def shifted_by_numpy(x, i):
    return x.roll(int(np.random.randint(4)), 2)


SHIFTS = [shifted_by_torch, shifted_by_python, shifted_by_numpy]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_the_index(workers):
    data = pictures()
    loader = DataLoader(IndexedDataset(data), batch_size=5, shuffle=True, num_workers=workers)
    seen = []
    for x, y, index in loader:
        assert index.dtype == torch.int64
        assert torch.equal(x, data.tensors[0][index])
        assert torch.equal(y, data.tensors[1][index])
        seen += index.tolist()
    assert sorted(seen) == list(range(12))
    assert seen != sorted(seen)


@pytest.mark.parametrize("workers", [0, 2])
def test_augmented_batches_carry_their_moves(workers):
    data = pictures()
    loader = DataLoader(IndexedDataset(data, AUGMENT), batch_size=5, num_workers=workers)
    epochs = []
    for _ in range(2):
        rows = []
        for x, y, index, moves in loader:
            assert torch.equal(x, AUGMENT.apply(data.tensors[0][index], moves))
            assert torch.equal(y, data.tensors[1][index])
            rows.append(moves)
        epochs.append(torch.cat(rows))
    first, second = epochs
    assert first.shape == (12, 3)
    assert (first != second).any(1).sum() >= 6, "an epoch repeats the moves of the one before"
    assert len(first.unique(dim=0)) >= 6


def test_moves_follow_the_global_seed():
    dataset = IndexedDataset(pictures(), AUGMENT)
    torch.manual_seed(3)
    expected = AUGMENT.draw(1)[0]
    torch.manual_seed(3)
    x, _, index, moves = dataset[7]
    assert torch.equal(moves, expected)
    assert torch.equal(x, AUGMENT.apply(dataset.dataset[7][0][None], moves[None])[0])
    assert index == 7


def test_items_by_other_indices():
    dataset = IndexedDataset(pictures(5))
    assert dataset[-1][2] == 4
    assert dataset[torch.tensor(3)][2] == 3
    assert torch.equal(dataset[-2][0], dataset[3][0])
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"index {index} is out of range for 5 samples"):
            dataset[index]
    assert len(list(dataset)) == 5


@pytest.mark.parametrize("kind", [Changing, ReusedMemory])
@pytest.mark.parametrize("change", SHIFTS)
def test_changing_images_are_refused(kind, change):
    random.seed(0)
    np.random.seed(0)
    with pytest.raises(ValueError, match=rf"{kind.__name__} changes its samples .* augment=CropFlip.* check=False"):
        IndexedDataset(kind(change))
    assert len(IndexedDataset(kind(change), check=False)) == 12


def test_one_changing_sample_at_the_end_is_found():
    reads = iter(range(100))
    changing = Changing(lambda x, i: x + next(reads) if i == 999 else x, n=1000)
    with pytest.raises(ValueError, match="item 999 did"):
        IndexedDataset(changing)


def test_another_size_each_time_is_refused():
    sizes = iter([5, 4])
    with pytest.raises(ValueError, match="changes its samples"):
        IndexedDataset(Changing(lambda x, i: x[:, : next(sizes)]))


@pytest.mark.parametrize(
    ("n", "first"),
    [(1, [0]), (3, [0, 1, 2]), (8, list(range(8))), (1000, [0, 142, 285, 428, 570, 713, 856, 999])],
)
def test_what_the_check_reads(n, first):
    constant = Changing(lambda x, i: x, n)
    IndexedDataset(constant)
    assert constant.reads == [i for i in first for _ in range(2)]
    constant.reads = []
    IndexedDataset(constant, check=False)
    assert constant.reads == [0]


def test_nan_is_no_change():
    assert len(IndexedDataset(Changing(lambda x, i: x * torch.nan))) == 12


@pytest.mark.parametrize("check", [True, False])
def test_random_states_are_put_back(check):
    def all_three(x, i):
        return x + 0 * (torch.rand(()) + random.random() + np.random.rand())  # constant, but at a cost

    def none_left(x, i):
        return shifted_by_torch(shifted_by_numpy(shifted_by_python(x, i), i), i)

    def numbers():
        return torch.rand(()).item(), random.random(), np.random.rand()

    for change in (all_three, none_left):
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(1)
        expected = numbers()
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(1)
        if change is none_left and check:
            with pytest.raises(ValueError, match="changes its samples"):
                IndexedDataset(Changing(change), check=check)
        else:
            IndexedDataset(Changing(change), check=check)
        assert numbers() == expected


class Stream(IterableDataset):
    def __iter__(self):
        return iter(pictures())

    def __len__(self):
        return 12


class Items(Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return self.item


class Endless(Dataset):
    def __getitem__(self, i):
        return torch.zeros(1, 2, 2), 0


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Stream(), "a length and items by index, got Stream"),
        (Endless(), "a length and items by index, got Endless"),
        (5, "a length and items by index, got int"),
        (Items(torch.zeros(1, 2, 2)), r"yield \(x, y\), x a tensor, got a tensor \(1, 2, 2\) as item 0"),
        (Items((np.zeros((1, 2, 2)), 1)), r"got \(ndarray, int\) as item 0"),
        (Items((torch.zeros(1, 2, 2),)), r"got \(a tensor \(1, 2, 2\)\) as item 0"),
        (Items({"picture": torch.zeros(2), "y": 1}), r"'picture': a tensor \(2,\), 'y': int.*; image= names the part"),
    ],
)
def test_what_is_no_data_set_of_pairs(dataset, message, check):
    with pytest.raises(TypeError, match=message):
        IndexedDataset(dataset, check=check)


@pytest.mark.parametrize("check", [True, False])
def test_only_crops_and_flips_need_images(check):
    vectors = Items((torch.zeros(2, 2), 1))
    assert IndexedDataset(vectors, check=check)[2][0].shape == (2, 2)
    with pytest.raises(
        TypeError, match=r"x a tensor \(C, H, W\) to crop and flip, got \(a tensor \(2, 2\), int\) as item 0"
    ):
        IndexedDataset(vectors, AUGMENT, check)


@pytest.mark.parametrize("augment", [lambda x: x, "flip", CropFlip, 4])
def test_other_augmentations(augment):
    with pytest.raises(TypeError, match=r"CropFlip\(padding=..., flip=...\): random crops and horizontal flips"):
        IndexedDataset(pictures(), augment)


def test_empty_data_set():
    with pytest.raises(ValueError, match="the data set is empty"):
        IndexedDataset(pictures(0))


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 3), st.integers(0, 5), st.booleans())
def test_every_rank_has_its_own_block(samples, world, seed, epoch, shuffle):
    samples = max(samples, world)
    for rank in range(world):
        sampler = ShardedSampler(samples, rank, world, seed, shuffle)
        sampler.set_epoch(epoch)
        chosen = list(sampler)
        assert all(type(i) is int for i in chosen)
        assert len(chosen) == len(set(chosen)) == len(sampler) == samples // world
        assert set(chosen) <= set(range(rank * samples // world, (rank + 1) * samples // world))
        assert shuffle or chosen == sorted(chosen)
        assert chosen == list(sampler), "the same epoch again"


def test_one_rank_has_all_samples():
    assert sorted(ShardedSampler(50)) == list(range(50)) == list(ShardedSampler(50, shuffle=False))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = ShardedSampler(60, 1, 3, seed)
        sampler.set_epoch(epoch)
        orders.append(tuple(sampler))
        assert sorted(orders[-1]) == list(range(20, 40))
    assert len(set(orders)) == 3


def test_a_longer_block_leaves_out_another_sample_each_epoch():
    sampler, left_out = ShardedSampler(11, 1, 2), set()
    block = set(shard_range(11, 1, 2))
    assert len(block) == 6
    for epoch in range(60):
        sampler.set_epoch(epoch)
        (missing,) = block - set(sampler)
        left_out.add(missing)
    assert left_out == block


def test_sampler_and_batches_agree():
    data, sampler = pictures(22), ShardedSampler(22, 1, 2, seed=4)
    sampler.set_epoch(3)
    loader = DataLoader(IndexedDataset(data), batch_size=5, sampler=sampler, drop_last=True)
    batches = Batches(data, 10, seed=4, rank=1, world=2, shards=True)
    for (x, _, index), batch in zip(loader, batches.epoch(3), strict=True):
        assert torch.equal(index, batch.index)
        assert torch.equal(x, batch.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5, 2, 2), "got rank 2 of 2"),
        ((5, -1, 2), "got rank -1 of 2"),
        ((5, 0, 0), "got rank 0 of 0"),
        ((2, 0, 3), "each of the 3 ranks needs a sample, got 2"),
        ((0,), "each of the 1 ranks needs a sample, got 0"),
    ],
)
def test_bad_shards(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShardedSampler(*arguments)
