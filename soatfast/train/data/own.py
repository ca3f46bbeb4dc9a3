"""Readers of a user's own data: NPZ files, and folders of PNG and JPEG images.

Nothing here unpickles, and Pillow is given its PNG and JPEG readers only: a data file is never code. Every reader names
the file, and where it has one the array, that is missing, damaged or something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from soatfast.runs.errors import MissingDataError

_MOST_CLASSES = 1_000_000  # a larger label is a mistake, and a model for it would fill the memory
_SLACK = 1e-6  # of the box, as the attacks have it: rounding, no more
_TESTS = ("x_test", "y_test")
_PAIRS = (("x_train", "y_train", *_TESTS), _TESTS, ("x_adv", "y"), ("x", "y"))
_ARRAYS = {name for names in _PAIRS for name in names} | {"layout", "classes"}
_ENDINGS = (".png", ".jpg", ".jpeg")
_GREY, _COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True)
class Arrays:
    """What an NPZ file has: images (N, C, H, W) float32 and labels (N,) int64. train is None where only tests are
    there, test where there is one set to be split.
    """

    train: tuple[Tensor, Tensor] | None
    test: tuple[Tensor, Tensor] | None
    classes: int


def read_npz(path: Path) -> Arrays:
    """The arrays x_train, y_train, x_test, y_test; or x, y; or x_test, y_test alone; or x_adv, y of `soatfast attack`.

    Images: uint8 0..255, or floating in [0, 1]. Of shape (N, H, W), or with channels where 1 or 3 entries are: (N, C,
    H, W) or (N, H, W, C). Where both or neither could be channels, an array `layout`, "NCHW" or "NHWC", says it.
    Labels: whole numbers from 0. An array `classes` gives their number, where the largest label does not.
    """
    if not path.is_file():
        raise MissingDataError(f"there is no data file {path}")
    content = _load(path)
    pairs = next((names for names in _PAIRS if all(name in content for name in names)), None)
    if pairs is None or (pairs == _TESTS and {"x_train", "y_train"} & content.keys()):
        has = ", ".join(content) or "none of these"
        raise MissingDataError(f"{path}: expected arrays x_train, y_train, x_test, y_test, or x, y, got {has}")
    layout = _layout(content, path)
    sets = []
    for x, y in zip(pairs[::2], pairs[1::2], strict=True):
        images, labels = _images(content[x], layout, f"{path}, {x}"), _labels(content[y], f"{path}, {y}")
        if len(images) != len(labels) or len(images) == 0:
            raise MissingDataError(f"{path}: expected as many {y} as {x}, got {len(labels)} and {len(images)}")
        sets.append((images, labels))
    shapes = {tuple(images.shape[1:]) for images, _ in sets}
    if len(shapes) > 1:
        raise MissingDataError(f"{path}: expected images of one shape, got {' and '.join(map(str, sorted(shapes)))}")
    classes = _classes(content, max(int(labels.max()) for _, labels in sets), path)
    if len(sets) == 2:
        return Arrays(sets[0], sets[1], classes)
    return Arrays(sets[0], None, classes) if pairs == ("x", "y") else Arrays(None, sets[0], classes)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        file = np.load(path, allow_pickle=False)
    except Exception as error:
        raise MissingDataError(f"{path} is damaged, truncated or no NPZ file{_why(error)}") from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise MissingDataError(f"{path} is no NPZ file: it holds one array without a name")
    content = {}
    with file:
        for name in file.files:
            if name not in _ARRAYS:
                continue
            try:
                content[name] = file[name]
            except Exception as error:
                raise MissingDataError(f"{path}, {name}: damaged, truncated or no plain array{_why(error)}") from error
    return content


def _why(error: Exception) -> str:
    """NumPy's reason, but not its advice to unpickle."""
    return "; pickled objects are not read" if "pickle" in str(error) else f": {error}"


def _layout(content: dict[str, np.ndarray], path: Path) -> str | None:
    if "layout" not in content:
        return None
    layout = str(content["layout"].reshape(-1)[0]) if content["layout"].size == 1 else "several values"
    if layout not in ("NCHW", "NHWC"):
        raise MissingDataError(f"{path}, layout: expected NCHW or NHWC, got {layout}")
    return layout


def _images(images: np.ndarray, layout: str | None, where: str) -> Tensor:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim != 4:
        raise MissingDataError(f"{where}: expected images (N, H, W), (N, C, H, W) or (N, H, W, C), got {images.shape}")
    elif (layout or channels_axis(images.shape, where)) == "NHWC":
        images = images.transpose(0, 3, 1, 2)
    if 0 in images.shape[1:]:
        raise MissingDataError(f"{where}: expected images of at least one pixel, got {images.shape}")
    if images.dtype == np.uint8:
        return torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32).div_(255)
    if images.dtype.kind != "f":
        raise MissingDataError(f"{where}: expected uint8 0..255 or floats in [0, 1], got {images.dtype}")
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)  # NaN if there is one
    if not (low >= -_SLACK and high <= 1 + _SLACK):
        hint = ""
        if low < -_SLACK:
            hint = "; undo the normalisation, which belongs inside the model"
        elif 1 < high <= 255:
            hint = "; divide by 255"
        raise MissingDataError(f"{where}: expected floats in [0, 1], got values from {low:g} to {high:g}{hint}")
    return torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))


def channels_axis(shape: Sequence[int], where: str = "images") -> str:
    """NCHW or NHWC, by which of the two axes has 1 or 3 entries; MissingDataError where both or neither has.

    >>> channels_axis((50, 32, 32, 3)), channels_axis((50, 1, 28, 28))
    ('NHWC', 'NCHW')
    """
    first, last = shape[1] in (1, 3), shape[3] in (1, 3)
    if first == last:
        which = "both axis 1 and axis 3" if first else "neither axis 1 nor axis 3"
        raise MissingDataError(
            f"{where}: {which} of {tuple(shape)} can be the channels (1 or 3); an array layout, NCHW or NHWC, says it"
        )
    return "NCHW" if first else "NHWC"


def _labels(labels: np.ndarray, where: str) -> Tensor:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise MissingDataError(f"{where}: expected whole numbers of shape (N,), got {labels.dtype} {labels.shape}")
    if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < _MOST_CLASSES:
        raise MissingDataError(
            f"{where}: expected labels from 0, below {_MOST_CLASSES}, got {labels.min()} to {labels.max()}"
        )
    return torch.from_numpy(labels.astype(np.int64))


def _classes(content: dict[str, np.ndarray], largest: int, path: Path) -> int:
    if "classes" in content:
        given = content["classes"]
        count = int(given.reshape(-1)[0]) if given.size == 1 and given.dtype.kind in "iu" else 0
        if not largest < count <= _MOST_CLASSES:
            raise MissingDataError(f"{path}, classes: expected one number above the largest label {largest}")
        return count
    if largest == 0:
        raise MissingDataError(f"{path}: all labels are 0; an array classes gives the number of classes")
    return largest + 1


@dataclass(frozen=True)
class Files:
    """Image files of one split, and their labels."""

    paths: list[Path]
    labels: Tensor


@dataclass(frozen=True)
class Folder:
    """What an image folder has. test is None where there is one set to be split. shape: (C, H, W)."""

    train: Files
    test: Files | None
    names: tuple[str, ...]
    shape: tuple[int, int, int]


def read_folder(path: Path) -> Folder:
    """PATH/train/CLASS/* with PATH/test/CLASS/* (else PATH/val/CLASS/*), or PATH/CLASS/*; .png, .jpg and .jpeg.

    The classes are the folders' names, sorted. Every file's header is read: all images must have one size. They are
    grey where all are; transparency is left out.
    """
    if not path.is_dir():
        raise MissingDataError(f"there is no folder {path}")
    if not (path / "train").is_dir():
        names = _class_names(path)
        files = _files(path, names)
        return Folder(files, None, names, _shape(files.paths))
    tests = [path / name for name in ("test", "val") if (path / name).is_dir()]
    if not tests:
        raise MissingDataError(f"{path} has a folder train: expected a folder test or val beside it")
    names, others = _class_names(path / "train"), _class_names(tests[0])
    unknown = [name for name in others if name not in names]
    if unknown:
        raise MissingDataError(f"{tests[0]}: expected the classes of {path / 'train'}, got {', '.join(unknown[:4])}")
    train, test = _files(path / "train", names), _files(tests[0], names, others)
    return Folder(train, test, names, _shape(train.paths + test.paths))


def _class_names(folder: Path) -> tuple[str, ...]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise MissingDataError(f"{folder}: expected a folder for each class, got none")
    return tuple(names)


def _files(folder: Path, names: tuple[str, ...], here: tuple[str, ...] | None = None) -> Files:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        if here is not None and name not in here:
            continue
        found = sorted(p for p in (folder / name).iterdir() if p.suffix.lower() in _ENDINGS and p.is_file())
        found = [p for p in found if not p.name.startswith(".")]
        if not found:
            raise MissingDataError(f"{folder / name}: expected .png, .jpg or .jpeg files, got none")
        paths += found
        labels += [label] * len(found)
    return Files(paths, torch.tensor(labels))


def _open(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDataError(f"reading images needs the package pillow: pip install pillow ({error})") from error
    try:
        return Image.open(path, formats=("PNG", "JPEG"))
    except Exception as error:
        raise MissingDataError(f"{path} is damaged or no PNG or JPEG image: {error}") from error


def _shape(paths: list[Path]) -> tuple[int, int, int]:
    size, channels = None, 1
    for path in paths:
        with _open(path) as image:
            if image.mode not in _GREY + _COLOUR:
                raise MissingDataError(f"{path}: expected 8 bits a channel, got an image of mode {image.mode}")
            if size is None:
                size = image.size
            if image.size != size:
                shown = [f"{width} x {height}" for width, height in (size, image.size)]
                raise MissingDataError(f"{path}: expected {shown[0]} pixels as {paths[0]} has, got {shown[1]}")
            channels = max(channels, 1 if image.mode in _GREY else 3)
    assert size is not None  # no class is empty
    return channels, size[1], size[0]


class ImageFiles(Dataset[tuple[Tensor, Tensor]]):
    """Image files that are read when they are asked for: (x float32 (C, H, W) in [0, 1], y int64 ())."""

    def __init__(self, files: Files, shape: tuple[int, int, int]) -> None:
        self.paths, self.labels, self.shape = files.paths, files.labels, shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.pixels(index)).to(torch.float32).div_(255), self.labels[index]

    def pixels(self, index: int) -> np.ndarray:
        """Image `index` as uint8 (C, H, W)."""
        path = self.paths[index]
        with _open(path) as image:
            try:
                array = np.array(image.convert("L" if self.shape[0] == 1 else "RGB"))
            except Exception as error:
                raise MissingDataError(f"{path} is damaged or truncated: {error}") from error
        array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        if array.shape != self.shape:
            raise MissingDataError(f"{path} changed: expected shape {self.shape}, got {array.shape}")
        return np.ascontiguousarray(array)
