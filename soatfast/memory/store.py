"""Frank-Wolfe with memory: each training sample's perturbation, kept from one visit to the next."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from soatfast.memory import saved, shards
from soatfast.memory.crops import CropFlip
from soatfast.memory.on_disk import mapped
from soatfast.memory.rows import DTYPES, Rows
from soatfast.memory.shards import shard_range
from soatfast.memory.visit import CopiedVisit, MovedVisit, Visit, last_of_its_row
from soatfast.ops.arguments import check, check_steps


class PerturbationMemory(Rows):
    r"""The perturbation of every training sample, keyed by the data set's index: u_i = v_i / eps, in the unit ball.

    A sample never seen has u = 0. Kept in units of eps, so that an eps ramp rescales all of it at no cost. For use with
    ``AdversarialTraining(attack, memory=memory)(model, x, y, index)``, or SCORPIO. It is the wrong choice where a
    sample is visited in fewer than about five epochs, and where images are changed by more than crops and flips.

    Args:
        samples: size of the data set; index 0..samples - 1.
        shape: of one sample, (C, H, W).
        dtype: torch.float32, torch.bfloat16 or torch.int8. int8 costs one byte an entry: u = scale q / 127, with scale
            1 and q the nearest step for p = inf; for other p the scale is the sample's largest |u| and q is rounded
            towards 0. What is read is in the ball either way.
        device: where it lives: "cpu", "cuda", or a path (a ``pathlib.Path``, or a string with a separator) of a file to
            map into memory, for data sets larger than the RAM. The file is made anew, the disk's space for all of it
            taken at once, and it is locked for the memory's life; that of a shard has ".rank{rank}of{world}" behind its
            name. A batch on another device is copied there and back each visit.
        augment: the random crops and flips of the data set; u is kept in the coordinates of the image as stored.
        rank, world: keep only the block ``shard_range(samples, rank, world)``, with a sampler that leaves each sample
            on its rank (:class:`~soatfast.train.data.ShardedSampler`). A sampler that reshuffles across ranks needs a
            whole memory on each, and :meth:`synchronize` after each epoch.

    ``len()`` is the number of samples kept; ``nbytes`` what they cost; ``visits`` (int32) how often each was visited.
    ``p`` is the norm of the first step, None before it: one memory serves one ball until :meth:`reset`.

    Raises:
        TypeError, ValueError: no such dtype or device, samples or shape not positive, rank not below world, a file that
            is something else or another memory's.
        OSError: the file does not fit on the disk.

    >>> memory = PerturbationMemory(50_000, (3, 32, 32), torch.int8)
    >>> memory.values.nbytes / 2**20, memory
    (146.484375, PerturbationMemory(samples=50000, shape=(3, 32, 32), dtype=int8, device=cpu))
    """

    def __init__(
        self,
        samples: int,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | Path = "cpu",
        *,
        augment: CropFlip | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        samples = check_steps(samples, "samples")
        if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"shape must be the positive sizes of one sample, such as (3, 32, 32), got {shape!r}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")
        if augment is not None and not isinstance(augment, CropFlip):
            raise TypeError(f"augment must be a soatfast.memory.crops.CropFlip or None, got {type(augment).__name__}")
        if augment is not None and len(shape) != 3:
            raise ValueError(f"crops and flips need samples of shape (C, H, W), got {tuple(shape)}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..world - 1, got rank {rank} of {world}")
        self.samples, self.shape, self.dtype = samples, tuple(shape), dtype
        self.augment, self.rank, self.world = augment, rank, world
        kept = shard_range(samples, rank, world)
        self.first, rows = kept.start, len(kept)
        self.path: Path | None = None
        if isinstance(device, Path) or (isinstance(device, str) and os.sep in device):
            self.path = Path(device)
            if world > 1:
                self.path = self.path.with_name(f"{self.path.name}.rank{rank}of{world}")
            self.values, lock = mapped(self.path, (rows, *self.shape), dtype)
            weakref.finalize(self, os.close, lock)
        else:
            self.values = torch.zeros((rows, *self.shape), dtype=dtype, device=_device(device))
        self.device = self.values.device
        self.scale = torch.ones(rows, device=self.device) if dtype == torch.int8 else None
        self.visits = torch.zeros(rows, dtype=torch.int32, device=self.device)
        self.common = torch.zeros_like(self.visits)  # visits at the last synchronize
        self.p: float | None = None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.state().values())

    def __repr__(self) -> str:
        place = f"device={self.device}" if self.path is None else f"file={self.path.name}"
        shard = "" if self.world == 1 else f", rank={self.rank}, world={self.world}"
        crops = "" if self.augment is None else f", augment={self.augment}"
        shown = f"samples={self.samples}, shape={self.shape}, dtype={DTYPES[self.dtype]}, {place}"
        return f"PerturbationMemory({shown}{crops}{shard})"

    # ------------------------------------------------------------------------------------------ one batch

    def visit(self, index: Tensor, x: Tensor, moves: Tensor | None = None) -> Visit:
        """The rows `index` (B,) for the clean batch x (B, ...), moved by `moves` (B, 3) where the data set augments.

        A context manager: what :class:`Visit` changes is in the memory when the block ends. A sample that is in the
        batch several times, as of a sampler with replacement, begins at one point each time; the last one is kept, and
        each counts as a visit. Give the index on the CPU, as a loader does: then rows are updated in place unless one
        comes twice. An index on a GPU is not read, and the batch's rows are copied there and back.

        Raises:
            TypeError, ValueError: the index is no int64 (B,), out of range or on another rank; x is not of the memory's
                shape; moves without an augmentation, or none with one.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(f"expected samples of shape {self.shape}, got a batch of {tuple(x.shape)}")
        if (moves is None) != (self.augment is None):
            have = "has no augment" if self.augment is None else f"follows {self.augment}"
            raise ValueError(f"the memory {have}, got moves {'None' if moves is None else tuple(moves.shape)}")
        index = self._checked(index, len(x))
        rows, last = index.to(self.device) - self.first, last_of_its_row(index)
        if self.augment is not None and moves is not None:
            return MovedVisit(self, rows, x.device, self.augment, moves, last)
        in_place = x.device == self.device and last is None
        return Visit(self, rows) if in_place else CopiedVisit(self, rows, x.device, last)

    def _checked(self, index: Tensor, batch: int) -> Tensor:
        """The index, on the CPU if the memory is there: where it comes from a loader nothing waits for the device."""
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            raise TypeError(f"index must be an int64 tensor, got {getattr(index, 'dtype', type(index).__name__)}")
        if index.shape != (batch,):
            raise ValueError(f"index must have shape ({batch},), one for each sample, got {tuple(index.shape)}")
        index = index.to(self.device) if self.device.type == "cpu" else index
        if batch:
            low, high = index.aminmax()
            check(
                (low >= 0) & (high < self.samples),
                lambda: f"index must lie in 0..{self.samples - 1}, got {low.item()}..{high.item()}",
            )
            last = self.first + len(self)
            check(
                (low >= self.first) & (high < last),
                lambda: (
                    f"rank {self.rank} keeps samples {self.first}..{last - 1}, got {low.item()}..{high.item()}: use "
                    "ShardedSampler, or a whole memory on each rank and synchronize()"
                ),
            )
        return index

    def read(self, index: Tensor) -> Tensor:
        """u (B, ...) of these samples in float32, on the memory's device; for pictures and tests."""
        if len(index) and not bool(((index >= self.first) & (index < self.first + len(self))).all()):
            raise ValueError(f"index must lie in {self.first}..{self.first + len(self) - 1}")
        return self.recall(index.to(self.device) - self.first)

    @contextlib.contextmanager
    def kept(self, index: Tensor) -> Iterator[None]:
        """These samples' state is after the block what it was before, for a trial step."""
        rows = index.to(self.device) - self.first
        saved, p = {name: t[rows] for name, t in self.state().items()}, self.p
        try:
            yield
        finally:
            self.p = p
            for name, t in self.state().items():
                t[rows] = saved[name]

    # ------------------------------------------------------------------------------------------ processes and files

    def synchronize(self) -> None:
        """Bring whole memories on all ranks together, after an epoch whose sampler spread samples over ranks anew.

        Each sample's row comes from the rank that visited it since the last call (the lowest of several). Cost: one
        all-reduce of the whole memory, samples x entries x bytes, through the GPU a block at a time where the process
        group (NCCL) reduces nothing else; a sharded memory needs none. Collective: every rank calls it. Without
        torch.distributed, or with one process, nothing happens.

        Raises:
            ValueError: the memory is sharded, or the ranks hold perturbations of different balls.
        """
        shards.synchronize(self)

    def save(self, folder: Path) -> None:
        """Write this rank's rows to `folder` as safetensors files of up to 1 GiB.

        Raises:
            ValueError: several processes have a whole memory each, and :meth:`synchronize` was forgotten.
        """
        saved.save(self, folder)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds, as a module's: tensors that are the memory's own rows, also those of a mapped file.

        So ``Accelerator.register_for_checkpointing(memory)``, a Lightning callback and ``torch.save`` take a memory.
        The rows are not copied: a later visit changes them in the dictionary too.

        Raises:
            ValueError: the memory is sharded (such tools write one rank's state; :meth:`save` is for it), or
                :meth:`synchronize` was forgotten.
        """
        return saved.state_dict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` gave, bit for bit, into the rows where they lie: any device, or a file.

        Raises:
            ValueError: it is of another kind of memory, or damaged; the memory is as it was then.
        """
        saved.load_state_dict(self, state)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote, bit for bit.

        Raises:
            ValueError: it was another kind of memory, or a file is missing or damaged. The memory is as it was then, or
                empty where a file failed that had been found in order.
        """
        saved.load(self, folder)


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"torch has no device {device!r}; for a file give a pathlib.Path") from error
