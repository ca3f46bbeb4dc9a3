"""Dictionaries, longer tuples and concatenations of data sets, with their index."""

import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from soatfast.memory import CropFlip, PerturbationMemory
from soatfast.train import IndexedDataset
from soatfast.train.data.items import NAMES

AUGMENT = CropFlip(padding=1)


class Made(Dataset):
    """Items that `make(x, y)` makes of nine images."""

    def __init__(self, make, n=9):
        self.make, self.images = make, torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.make(self.images[i], i % 3)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_dictionaries_get_an_index(name, workers):
    data = Made(lambda x, y: {"labels": y, name: x, "text": f"{y}"})
    for batch in DataLoader(IndexedDataset(data), 4, num_workers=workers if name == NAMES[0] else 0):
        assert list(batch) == ["labels", name, "text", "index"] and batch["index"].dtype == torch.int64
        assert torch.equal(batch[name], data.images[batch["index"]])
        assert torch.equal(batch["labels"], batch["index"] % 3)


def test_augmented_dictionaries_get_their_moves():
    data = Made(lambda x, y: {"image": x, "label": y})
    memory = PerturbationMemory(9, (1, 4, 4), augment=AUGMENT)
    for batch in DataLoader(IndexedDataset(data, AUGMENT), 4):
        assert torch.equal(batch["image"], AUGMENT.apply(data.images[batch["index"]], batch["moves"]))
        memory.visit(batch["index"], batch["image"], batch["moves"])


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_longer_tuples_keep_their_further_entries(augment):
    data = Made(lambda x, y: (x, y, f"file{y}", torch.tensor([y, 2])))
    (x, _, names, box, index, *moves) = next(iter(DataLoader(IndexedDataset(data, augment), 4)))
    assert list(names) == ["file0", "file1", "file2", "file0"]
    assert box.shape == (4, 2) and index.tolist() == [0, 1, 2, 3]
    images = data.images[:4]
    assert torch.equal(x, images if augment is None else augment.apply(images, moves[0]))


def test_the_image_can_be_named():
    pairs = IndexedDataset(Made(lambda x, y: (y, x)), AUGMENT, image=1)
    label, x, index, moves = pairs[5]
    assert label == 2 and index == 5 and torch.equal(x, AUGMENT.apply(pairs.dataset.images[5:6], moves[None])[0])
    named = IndexedDataset(Made(lambda x, y: {"image": x[:, :2], "picture": x}), image="picture")
    assert named[3]["picture"].shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("make", "fields", "error", "message"),
    [
        (lambda x, y: {"picture": x}, {}, TypeError, "got {'picture': a tensor .*; image= names the part that is x"),
        (lambda x, y: {"picture": x}, {"image": "img"}, TypeError, "under image='img', got {'picture'"),
        (lambda x, y: (x, y), {"image": 1}, TypeError, r"under image=1, got \(a tensor \(1, 4, 4\), int\)"),
        (lambda x, y: (x, y), {"image": 7}, TypeError, "under image=7, got"),
        (lambda x, y: (x, y), {"image": "x"}, TypeError, "under image='x', got"),
        (lambda x, y: (x, y), {"image": 1.0}, TypeError, "image must be a key, a place in a tuple or None, got 1.0"),
        (lambda x, y: (x, y), {"image": True}, TypeError, "image must be a key, a place in a tuple or None, got True"),
        (lambda x, y: (x, y), {"check": "no"}, TypeError, "check must be True or False, got 'no'"),
        (lambda x, y: {"x": x.flatten()}, {"augment": AUGMENT}, TypeError, r"x a tensor \(C, H, W\) to crop and flip"),
    ],
)
def test_bad_items_and_arguments(make, fields, error, message):
    with pytest.raises(error, match=message) as raised:
        IndexedDataset(Made(make), **fields)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["index", "moves"])
def test_a_key_that_is_taken(name):
    data = IndexedDataset(Made(lambda x, y: {"x": x, name: y}), AUGMENT)
    with pytest.raises(ValueError, match=f"the data set's items have '{name}' already, which the index needs"):
        data[0]


# ---------------------------------------------------------------------------------------------- concatenations


def pictures(n):
    return TensorDataset(torch.rand(n, 1, 4, 4), torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "join",
    [
        lambda a, b: ConcatDataset([a, b]),
        lambda a, b: a + b,
        lambda a, b: ConcatDataset([Subset(a, [0, 1]), Subset(b, [3])]),
        lambda a, b: ConcatDataset([ConcatDataset([a, b])]),
        lambda a, b: Subset(ConcatDataset([a, b]), [0, 1, 6]),
    ],
)
def test_indexed_sets_in_a_concatenation_are_refused(join, workers):
    joined = join(IndexedDataset(pictures(5)), IndexedDataset(pictures(4)))
    message = r"a ConcatDataset of 2 indexed data sets \(TensorDataset, TensorDataset\) has every index several times"
    with pytest.raises(ValueError, match=message):
        list(DataLoader(joined, 2, num_workers=workers))


def test_parts_of_one_indexed_set_may_be_joined():
    """Its folds, or the same set twice: each index is still one sample."""
    data = IndexedDataset(pictures(6))
    folds = ConcatDataset([Subset(data, [4, 5]), Subset(data, [0, 1])])
    assert [item[2] for item in folds] == [4, 5, 0, 1]
    assert [item[2] for item in ConcatDataset([data, data])] == [*range(6), *range(6)]
    assert [item[2] for item in Subset(data, [3, 1])] == [3, 1]


def test_the_concatenation_is_indexed_instead():
    a, b = pictures(5), pictures(4)
    joined = IndexedDataset(ConcatDataset([a, b]))
    assert torch.equal(joined[6][0], b[1][0]) and joined[6][2] == 6
    for inside in (ConcatDataset([IndexedDataset(a), b]), Subset(IndexedDataset(a), [1]), IndexedDataset(a)):
        with pytest.raises(TypeError, match="indexed already: give IndexedDataset the plain ones"):
            IndexedDataset(inside)
