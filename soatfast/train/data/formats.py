"""Readers of the published files of MNIST (idx), CIFAR-10 (binary version) and SVHN (.mat, cropped digits).

Each returns uint8 images (N, C, H, W) and int64 labels (N,). Nothing here unpickles: a data file is never
code. Every reader checks magic numbers and sizes and names the file that is missing, truncated or something
else.
"""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from soatfast.runs.errors import MissingDataError

CIFAR10_RECORDS = 10_000
"""Images in each of the six files of CIFAR-10's binary version."""
_CIFAR10_RECORD = 1 + 3 * 32 * 32


def _find(folders: list[Path], name: str, endings: tuple[str, ...] = ("",)) -> Path:
    for folder in folders:
        for ending in endings:
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    raise MissingDataError(f"expected the file {name}{endings[-1]} in {' or '.join(str(f) for f in folders)}")


def _bytes(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise MissingDataError(f"{path} is damaged or truncated: {error}") from error


def _checked_labels(labels: np.ndarray, path: Path) -> Tensor:
    if labels.size and int(labels.max()) > 9:
        raise MissingDataError(f"{path}: expected labels 0 to 9, got {int(labels.max())}")
    return torch.from_numpy(labels.astype(np.int64))


def read_idx(path: Path) -> np.ndarray:
    """An idx file of bytes, plain or .gz: 0, 0, 8, ndim, ndim big-endian uint32 sizes, then the bytes."""
    raw = _bytes(path)
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08":
        raise MissingDataError(
            f"{path}: expected an idx file of unsigned bytes (it starts 00 00 08), got {raw[:4].hex(' ')!r}"
        )
    ndim = raw[3]
    header = 4 + 4 * ndim
    if len(raw) < header:
        raise MissingDataError(f"{path} is truncated: expected a header of {header} bytes, got {len(raw)}")
    shape = tuple(int(n) for n in np.frombuffer(raw, ">u4", count=ndim, offset=4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(raw) != expected:
        raise MissingDataError(
            f"{path} is truncated or too long: expected {expected} bytes for shape {shape}, got {len(raw)}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_mnist(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """MNIST's idx files (plain or .gz) in `root` or `root`/MNIST/raw."""
    folders = [root, root / "MNIST" / "raw"]
    prefix = "train" if train else "t10k"
    images_path = _find(folders, f"{prefix}-images-idx3-ubyte", ("", ".gz"))
    labels_path = _find(folders, f"{prefix}-labels-idx1-ubyte", ("", ".gz"))
    images, labels = read_idx(images_path), read_idx(labels_path)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise MissingDataError(
            f"{images_path} and {labels_path}: expected shapes (N, 28, 28) and (N,), "
            f"got {images.shape} and {labels.shape}"
        )
    return torch.from_numpy(images[:, None].copy()), _checked_labels(labels, labels_path)


def read_cifar10(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """CIFAR-10's binary version in `root` or `root`/cifar-10-batches-bin.

    Files: data_batch_1.bin to data_batch_5.bin to train, test_batch.bin to test.
    A record is one label byte and 3072 bytes of image in (C, H, W) order; a file has 10 000 records.
    """
    folders = [root, root / "cifar-10-batches-bin"]
    names = [f"data_batch_{i}.bin" for i in range(1, 6)] if train else ["test_batch.bin"]
    images, labels = [], []
    for name in names:
        path = _find(folders, name)
        raw = _bytes(path)
        if len(raw) != CIFAR10_RECORDS * _CIFAR10_RECORD:
            raise MissingDataError(
                f"{path} is truncated or no CIFAR-10 batch: "
                f"expected {CIFAR10_RECORDS * _CIFAR10_RECORD} bytes, got {len(raw)}"
            )
        records = np.frombuffer(raw, np.uint8).reshape(-1, _CIFAR10_RECORD)
        labels.append(_checked_labels(records[:, 0], path))
        images.append(torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32).copy()))
    return torch.cat(images), torch.cat(labels)


def read_svhn(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """SVHN's train_32x32.mat and test_32x32.mat in `root`: X (32, 32, 3, N), y (N, 1), 10 is digit 0."""
    path = _find([root], "train_32x32.mat" if train else "test_32x32.mat")
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingDataError("reading SVHN needs the package scipy: pip install scipy") from error
    try:
        content = loadmat(path)
        images, labels = content["X"], content["y"].reshape(-1)
    except Exception as error:
        raise MissingDataError(f"{path} is damaged, truncated or no SVHN file: {error}") from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, len(labels)):
        raise MissingDataError(
            f"{path}: expected uint8 X of shape (32, 32, 3, {len(labels)}), got {images.dtype} {images.shape}"
        )
    return torch.from_numpy(images.transpose(3, 2, 0, 1).copy()), _checked_labels(labels % 10, path)
