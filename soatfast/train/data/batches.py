"""Shuffled batches of a data set, the same for every number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset, default_collate

from soatfast.memory.crops import CropFlip
from soatfast.memory.shards import shard_range
from soatfast.train.data.indexed import IndexedDataset, block_of, check_augment, epoch_generator


class Batch(NamedTuple):
    """x (B, ...), y (B,), the samples' index (B,) int64 in the data set, moves (B, 3) of the augmentation or None.

    The index is on the CPU, where a memory reads it without waiting for a device.
    """

    x: Tensor
    y: Tensor
    index: Tensor  # type: ignore[assignment]  # in place of tuple's method
    moves: Tensor | None


class Batches:
    """Shuffled batches of a data set; the order of epoch e depends on (seed, e) alone.

    A TensorDataset is moved to `device` once and indexed a whole batch at a time; any other Dataset is
    collated sample by sample. With `world` processes, each takes its share of every batch of `batch_size`:
    the batches, and so the training, are the same for every number of processes. The last, smaller batch of
    an epoch is left out.

    augment: crops and flips of the images (B, C, H, W); a sample's moves depend on (seed, e) and its index alone.
    shards: rank r takes its share from its own block of the data set, shard_range(samples, rank, world), in
    the epoch's order; which samples form a batch then depends on the number of processes.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world: int = 1,
        augment: CropFlip | None = None,
        shards: bool = False,
    ) -> None:
        check_augment(augment)
        if isinstance(dataset, IndexedDataset):
            raise TypeError("batches carry the index themselves: give Batches the data set inside IndexedDataset")
        self.samples = len(dataset)  # type: ignore[arg-type]
        if self.samples == 0:
            raise ValueError("the training set is empty")
        self.batch_size = min(batch_size, self.samples)
        if self.batch_size < 1 or self.batch_size % world:
            raise ValueError(f"batch size must be a positive multiple of the {world} processes, got {self.batch_size}")
        self.dataset, self.seed, self.rank, self.world = dataset, seed, rank, world
        self.augment, self.shards = augment, shards
        self.device = torch.device(device)
        self.tensors: tuple[Tensor, ...] | None = None
        if isinstance(dataset, TensorDataset):
            self.tensors = tuple(t.to(self.device) for t in dataset.tensors)

    def __len__(self) -> int:
        return self.samples // self.batch_size

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """This process's share of every batch of epoch `epoch` (0-based), from batch `first` on."""
        generator = epoch_generator(self.seed, epoch)
        order = torch.randperm(self.samples, generator=generator)
        moves = None
        if self.augment is not None:  # for all samples at once: a sample's are the same on whichever process it is
            moves = self.augment.draw(self.samples, generator, self.device)
        share = self.batch_size // self.world
        if self.shards:
            own = block_of(order, shard_range(self.samples, self.rank, self.world))[: len(self) * share]
        else:
            own = order[: len(self) * self.batch_size][self.rank :: self.world].contiguous()
        there = own.to(self.device)
        for index, chosen in zip(own.view(-1, share)[first:], there.view(-1, share)[first:], strict=True):
            if self.tensors is not None:
                x, y = (t[chosen] for t in self.tensors)
            else:
                x, y = (t.to(self.device) for t in default_collate([self.dataset[i] for i in index.tolist()]))
            if self.augment is None or moves is None:
                yield Batch(x, y, index, None)
            else:
                yield Batch(self.augment.apply(x, moves[chosen]), y, index, moves[chosen])
