"""Data sets whose samples carry their index, for perturbations that are kept from epoch to epoch."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler

from soatfast.memory.crops import CropFlip
from soatfast.memory.shards import shard_range
from soatfast.ops.arguments import check_flag
from soatfast.train.data.items import (
    Key,
    check_key,
    check_not_concatenated,
    check_plain,
    described,
    found_image,
    with_index,
)
from soatfast.train.data.transform import CropFlipTransform, agree

Read = tuple[Any, Any, Tensor, Tensor | None]
"""An item, the place of its image, the image, and the moves that a transform has reported."""

_CHECKED = 8  # samples read twice: a flip of every other one goes unseen once in 256 times


class IndexedDataset(Dataset[Any]):
    """Item i of `dataset` as (x, y, i), or with `augment` as (x moved, y, i, moves (3,)).

    For DataLoader and its default collation, which make x (B, ...), i (B,) int64 and moves (B, 3). Longer tuples keep
    their further entries, (x, y, more, i); dictionaries get the keys "index" and "moves". The moves come from torch's
    global generator: in a worker process from the worker's, which the DataLoader seeds anew each epoch, so that every
    epoch has other moves. Give the data set as it is stored, without random transforms: a stored perturbation follows
    its image only through moves that it is told. Several data sets are concatenated first:
    ``IndexedDataset(ConcatDataset([a, b]))``; indexed ones in a ConcatDataset are refused when they are read.

    Args:
        dataset: a map-style data set of tuples whose first entry is x, or of dictionaries; x a tensor, with `augment`
            an image (C, H, W).
        augment: crops and flips, which are applied here; or the :class:`~soatfast.train.CropFlipTransform` that the
            data set applies itself; or None.
        check: read some samples twice and refuse a data set that gives another image the second time. The random
            states of torch, random and numpy are put back; a generator of the data set's own is not.
        image: the key or place of x; None: the first entry, or the first of "pixel_values", "image", "images", "img",
            "x", "input" and "inputs" that is a tensor.

    Raises:
        TypeError: augment is none of these, `dataset` has no length or index or is indexed already, its first item has
            no such image.
        ValueError: it is empty, changes its samples from read to read, or does not call the transform once an item.

    >>> from torch.utils.data import TensorDataset
    >>> dataset = IndexedDataset(TensorDataset(torch.rand(5, 1, 8, 8), torch.arange(5)), CropFlip(padding=1))
    >>> x, y, index, moves = dataset[3]
    >>> index, moves.shape
    (3, torch.Size([3]))
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        augment: CropFlip | CropFlipTransform | None = None,
        check: bool = True,
        image: Key = None,
    ) -> None:
        if not isinstance(augment, CropFlipTransform):
            check_augment(augment)
        check_flag(check, "check")
        check_key(image)
        map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if not map_style or isinstance(dataset, IterableDataset):
            raise TypeError(f"dataset must have a length and items by index, got {type(dataset).__name__}")
        check_plain(dataset, IndexedDataset)
        self.dataset, self.augment, self.image = dataset, augment, image
        if len(self) == 0:
            raise ValueError("the data set is empty")
        if check:
            _check_unchanging(self._read, len(self), type(dataset).__name__, augment, "as augment=CropFlip(...)")
        else:
            with _random_states_kept():
                self._read(0)

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        check_not_concatenated(IndexedDataset)
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"index {i} is out of range for {len(self)} samples")
        i %= len(self)  # -1 is the last sample, also in the memory
        item, place, x, moves = self._read(i)
        if isinstance(self.augment, CropFlip):
            moves = self.augment.draw(1)[0]
            x = self.augment.apply(x[None], moves[None])[0]
        return with_index(item, place, x, i, moves)

    def _read(self, i: int) -> Read:
        augment = self.augment
        before = augment.calls if isinstance(augment, CropFlipTransform) else 0
        item = self.dataset[i]
        x, place = found_image(item, self.image)
        if x is None or (augment is not None and x.dim() != 3):
            raise _no_image(item, i, augment, self.image)
        if not isinstance(augment, CropFlipTransform):
            return item, place, x, None
        if augment.calls != before + 1 or augment.moves is None:
            raise ValueError(
                f"the data set called its CropFlipTransform {augment.calls - before} times for item {i}: it has to be "
                "in the data set's transform, and applied to each item once"
            )
        return item, place, x, augment.moves


class ShardedSampler(Sampler[int]):
    """Rank r's own block of the samples, shard_range(samples, rank, world), in an order that (seed, epoch) fixes.

    Every sample stays on its rank, and with it its perturbation. All ranks have samples // world samples an epoch: a
    longer block leaves one out, with `shuffle` another one each epoch, else its last. Call ``set_epoch`` before each.

    Raises ValueError: no sample for every rank, or rank not below world.

    >>> list(ShardedSampler(7, rank=1, world=2, shuffle=False))  # of the block 3..6
    [3, 4, 5]
    """

    def __init__(self, samples: int, rank: int = 0, world: int = 1, seed: int = 0, shuffle: bool = True) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..world - 1, got rank {rank} of {world}")
        if samples < world:
            raise ValueError(f"each of the {world} ranks needs a sample, got {samples}")
        self.samples, self.rank, self.world, self.seed, self.shuffle = samples, rank, world, seed, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch (0-based) whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.samples // self.world

    def __iter__(self) -> Iterator[int]:
        block = shard_range(self.samples, self.rank, self.world)
        if not self.shuffle:
            return iter(block[: len(self)])
        order = torch.randperm(self.samples, generator=epoch_generator(self.seed, self.epoch))
        return iter(block_of(order, block)[: len(self)].tolist())


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


def block_of(order: Tensor, block: range) -> Tensor:
    """The samples of `block`, in the order in which they come in `order`."""
    return order[(order >= block.start) & (order < block.stop)]


def check_augment(augment: Any) -> None:
    """Raise TypeError unless augment is a CropFlip or None."""
    if augment is not None and not isinstance(augment, CropFlip):
        raise TypeError(
            f"augment must be None or CropFlip(padding=..., flip=...): random crops and horizontal flips are what a "
            f"stored perturbation can follow, got {augment!r}"
        )


def check_unchanging(dataset: Dataset[Any], augment: CropFlip | None, instead: str) -> None:
    """Raise ValueError if one of a few samples (x, y) of `dataset`, read twice, has another x the second time.

    instead: how crops and flips are given here, for the message.
    """

    def read(i: int) -> Read:
        item = dataset[i]
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        x, place = found_image(item, None) if pair else (None, None)
        if x is None or (augment is not None and x.dim() != 3):
            raise _no_image(item, i, augment, None)
        return item, place, x, None

    _check_unchanging(read, len(dataset), type(dataset).__name__, augment, instead)  # type: ignore[arg-type]


def _check_unchanging(
    read: Callable[[int], Read], samples: int, name: str, augment: CropFlip | CropFlipTransform | None, instead: str
) -> None:
    spread = sorted({k * (samples - 1) // (_CHECKED - 1) for k in range(_CHECKED)})
    with _random_states_kept():
        for i in spread:
            _, _, first, there = read(i)
            first = first.clone()  # a data set may write the next one into the same memory
            _, _, again, then = read(i)
            if isinstance(augment, CropFlipTransform) and there is not None and then is not None:
                same = agree(augment.crops, (first, there), (again, then))
            else:
                same = first.shape == again.shape and torch.equal(first.nan_to_num(), again.nan_to_num())
            if not same:
                raise ValueError(
                    f"{name} changes its samples from read to read (item {i} did): a stored "
                    f"perturbation cannot follow a transformation that it does not know. Take random crops and flips "
                    f"out of the data set and give them {instead}; check=False is for changes that do not move pixels "
                    f"(noise, colour)"
                )


def _no_image(item: Any, i: int, augment: object, key: Key) -> TypeError:
    x = "x a tensor" if augment is None else "x a tensor (C, H, W) to crop and flip"
    where = "" if key is None else f" under image={key!r}"
    instead = "; image= names the part that is x" if isinstance(item, Mapping) and key is None else ""
    return TypeError(f"the data set must yield (x, y), {x}{where}, got {described(item)} as item {i}{instead}")


@contextmanager
def _random_states_kept() -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    # Asking for the GPUs' states would start CUDA, which a worker process forked later could not use any more.
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
