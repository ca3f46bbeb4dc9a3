"""Frank-Wolfe with memory: each training sample's perturbation, kept from one visit to the next."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .crops import CropFlip
from .gradients import check
from .mapped import mapped
from .ops._arguments import norm_order
from .ops.quantise import remembered
from .visits import CopiedVisit, MovedVisit, Visit

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}
_FILE_BYTES = 1 << 30  # of values in one file of a saved memory, and in one all-reduce


def shard_range(samples: int, rank: int, world: int) -> range:
    """The samples that rank `rank` of `world` keeps: one contiguous block.

    >>> shard_range(10, 1, 3)
    range(3, 6)
    """
    return range(rank * samples // world, (rank + 1) * samples // world)


class PerturbationMemory:
    r"""The perturbation of every training sample, keyed by the data set's index: u_i = v_i / eps, in the unit ball.

    A sample never seen has u = 0. Kept in units of eps, so that an eps ramp rescales all of it at no cost. For use with
    ``AdversarialTraining(attack, memory=memory)(model, x, y, index)``, or SCORPIO.

    Args:
        samples: size of the data set; index 0..samples - 1.
        shape: of one sample, (C, H, W).
        dtype: torch.float32, torch.bfloat16 or torch.int8. int8 costs one byte an entry: u = scale q / 127, with scale
            1 and q the nearest step for p = inf; for other p the scale is the sample's largest |u| and q is rounded
            towards 0. What is read is in the ball either way.
        device: where it lives: "cpu", "cuda", or a path (a ``pathlib.Path``, or a string with a separator) of a file to
            map into memory, for data sets larger than the RAM. The file is made anew, with holes for what was never
            written, and locked for the memory's life; that of a shard has ".rank{rank}of{world}" behind its name. A
            batch on another device is copied there and back each visit.
        augment: the random crops and flips of the data set; u is kept in the coordinates of the image as stored.
        rank, world: keep only the block ``shard_range(samples, rank, world)``, with a sampler that leaves each sample
            on its rank (:class:`~soatfast.train.indexed.ShardedSampler`). A sampler that reshuffles across ranks needs
            a whole memory on each, and :meth:`synchronize` after each epoch.

    ``len()`` is the number of samples kept; ``nbytes`` what they cost; ``visits`` (int32) how often each was visited.
    ``p`` is the norm of the first step, None before it: one memory serves one ball until :meth:`reset`.

    Raises:
        TypeError, ValueError: no such dtype or device, samples or shape not positive, rank not below world, a file that
            is something else or another memory's.

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
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples must be a whole number of at least 1, got {samples!r}")
        if not shape or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"shape must be the positive sizes of one sample, such as (3, 32, 32), got {shape!r}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(map(str, DTYPES))}, got {dtype!r}")
        if augment is not None and not isinstance(augment, CropFlip):
            raise TypeError(f"augment must be a soatfast.crops.CropFlip or None, got {type(augment).__name__}")
        if augment is not None and len(shape) != 3:
            raise ValueError(f"crops and flips need samples of shape (C, H, W), got {tuple(shape)}")
        if not 0 <= rank < world:
            raise ValueError(f"rank must be in 0..world - 1, got rank {rank} of {world}")
        self.samples, self.shape, self.dtype = samples, tuple(shape), dtype
        self.augment, self.rank, self.world = augment, rank, world
        kept = shard_range(samples, rank, world)
        self._first, rows = kept.start, len(kept)
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
        self._common = torch.zeros_like(self.visits)  # visits at the last synchronize
        self.p: float | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self._state().values())

    def describe(self) -> dict[str, Any]:
        """What makes two memories the same kind, in JSON's terms."""
        crops = None if self.augment is None else repr(self.augment)
        return {"samples": self.samples, "shape": list(self.shape), "dtype": DTYPES[self.dtype], "augment": crops}

    def __repr__(self) -> str:
        place = f"device={self.device}" if self.path is None else f"file={self.path.name}"
        shard = "" if self.world == 1 else f", rank={self.rank}, world={self.world}"
        crops = "" if self.augment is None else f", augment={self.augment}"
        shown = f"samples={self.samples}, shape={self.shape}, dtype={DTYPES[self.dtype]}, {place}"
        return f"PerturbationMemory({shown}{crops}{shard})"

    # ------------------------------------------------------------------------------------------ one batch

    def visit(self, index: Tensor, x: Tensor, moves: Tensor | None = None) -> Visit:
        """The rows `index` (B,) for the clean batch x (B, ...), moved by `moves` (B, 3) where the data set augments.

        A context manager: what :class:`Visit` changes is in the memory when the block ends.

        Raises:
            TypeError, ValueError: the index is no int64 (B,), out of range, twice in the batch or on another rank; x is
                not of the memory's shape; moves without an augmentation, or none with one.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(f"expected samples of shape {self.shape}, got a batch of {tuple(x.shape)}")
        if (moves is None) != (self.augment is None):
            have = "has no augment" if self.augment is None else f"follows {self.augment}"
            raise ValueError(f"the memory {have}, got moves {'None' if moves is None else tuple(moves.shape)}")
        rows = self._rows(index, len(x))
        if self.augment is not None and moves is not None:
            return MovedVisit(self, rows, x.device, self.augment, moves)
        return Visit(self, rows) if x.device == self.device else CopiedVisit(self, rows, x.device)

    def check_norm(self, p: float) -> float:
        """p as the ops take it. ValueError where the memory holds perturbations of another ball."""
        order = norm_order(p)
        if self.p not in (None, order):
            raise ValueError(
                f"the memory holds perturbations for p = {self.p:g}, got p = {order:g}; reset() empties it"
            )
        return order

    def _rows(self, index: Tensor, batch: int) -> Tensor:
        """Checked indices, as rows of `values`."""
        if not isinstance(index, Tensor) or index.dtype != torch.int64:
            raise TypeError(f"index must be an int64 tensor, got {getattr(index, 'dtype', type(index).__name__)}")
        if index.shape != (batch,):
            raise ValueError(f"index must have shape ({batch},), one for each sample, got {tuple(index.shape)}")
        index = index.to(self.device)
        if batch:
            low, high = index.aminmax()
            check(
                (low >= 0) & (high < self.samples),
                lambda: f"index must lie in 0..{self.samples - 1}, got {low.item()}..{high.item()}",
            )
            last = self._first + len(self)
            check(
                (low >= self._first) & (high < last),
                lambda: (
                    f"rank {self.rank} keeps samples {self._first}..{last - 1}, got {low.item()}..{high.item()}: use "
                    "ShardedSampler, or a whole memory on each rank and synchronize()"
                ),
            )
            ordered = index.sort().values
            check(
                (ordered[1:] != ordered[:-1]).all(), lambda: "a sample is in the batch twice; each needs its own turn"
            )
        return index - self._first

    def read(self, index: Tensor) -> Tensor:
        """u (B, ...) of these samples in float32, on the memory's device; for pictures and tests."""
        if len(index) and not bool(((index >= self._first) & (index < self._first + len(self))).all()):
            raise ValueError(f"index must lie in {self._first}..{self._first + len(self) - 1}")
        return self._read(index.to(self.device) - self._first)

    def _read(self, rows: Tensor) -> Tensor:
        """u (B, ...) in float32 of these rows of `values`."""
        u = remembered(self.values.flatten(1), self.scale, rows, torch.float32)
        return u.view(len(rows), *self.shape)

    @contextlib.contextmanager
    def kept(self, index: Tensor) -> Iterator[None]:
        """These samples' state is after the block what it was before, for a trial step."""
        rows = index.to(self.device) - self._first
        saved, p = {name: t[rows] for name, t in self._state().items()}, self.p
        try:
            yield
        finally:
            self.p = p
            for name, t in self._state().items():
                t[rows] = saved[name]

    def reset(self) -> None:
        """Forget every perturbation, and whose ball they were in. Rows never visited stay holes of a mapped file."""
        rows = self.visits.nonzero().squeeze(1)
        for name, t in self._state().items():
            t.index_fill_(0, rows, 1 if name == "scale" else 0)
        self.p = None

    # ------------------------------------------------------------------------------------------ several processes

    def synchronize(self) -> None:
        """Bring whole memories on all ranks together, after an epoch whose sampler spread samples over ranks anew.

        Each sample's row comes from the rank that visited it since the last call (the lowest of several). Cost: one
        all-reduce of the whole memory, samples x entries x bytes, through the GPU a block at a time where the process
        group (NCCL) reduces nothing else; a sharded memory needs none. Collective: every rank calls it. Without
        torch.distributed, or with one process, nothing happens.

        Raises:
            ValueError: the memory is sharded, or the ranks hold perturbations of different balls.
        """
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        if self.world != 1:
            raise ValueError("a sharded memory has nothing to synchronize: each sample has one rank")
        rank, world = dist.get_rank(), dist.get_world_size()
        norms: list[float | None] = [None] * world
        dist.all_gather_object(norms, self.p)
        known = {p for p in norms if p is not None}
        if len(known) > 1:
            raise ValueError(f"the ranks' memories must be of one ball, got p = {', '.join(map(str, norms))}")
        device = _reducible(self.device, dist.get_backend_config())
        fresh = self.visits - self._common
        claim = torch.where(fresh > 0, world - rank, 0).to(torch.int32)
        winner = claim.clone()
        _all_reduce(winner, device, dist.ReduceOp.MAX)
        # Rows that nobody visited are the same everywhere: rank 0 hands them round with the others.
        mine = (claim == winner) & (winner > 0) if rank else (claim == winner)
        _all_reduce(fresh, device, dist.ReduceOp.SUM)
        self.visits.copy_(self._common + fresh)
        self._common.copy_(self.visits)
        step = self._block_rows()
        for begin in range(0, len(self), step):
            block, keep = self.values[begin : begin + step], mine[begin : begin + step]
            block[~keep] = 0
            _all_reduce(block, device, dist.ReduceOp.SUM)
        if self.scale is not None:
            self.scale[~mine] = 0
            _all_reduce(self.scale, device, dist.ReduceOp.SUM)
        self.p = known.pop() if known else None

    # ------------------------------------------------------------------------------------------ files

    def save(self, folder: Path) -> None:
        """Write this rank's rows to `folder` as safetensors files of up to 1 GiB."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        label = {**self._label(), "p": str(self.p)}
        for path, block in self._parts(folder):
            save_file({name: t[block].contiguous() for name, t in self._state().items()}, str(path), label)

    def load(self, folder: Path) -> None:
        """Read what :meth:`save` wrote, bit for bit.

        Raises:
            ValueError: it was another kind of memory, or a file is missing or damaged. The memory is as it was then, or
                empty where a file failed that had been found in order.
        """
        norms = {self._norm_of(path, block) for path, block in self._parts(folder)}
        if len(norms) > 1:
            raise ValueError(f"{folder} holds parts of several memories, for p = {' and '.join(sorted(norms))}")
        try:
            for path, block in self._parts(folder):
                self.visits[block] = 1  # if the part fails half-way, reset() empties the whole of it
                with _opened(path) as file:
                    for name, t in self._state().items():
                        t[block].copy_(file.get_tensor(name))
        except BaseException:
            self.reset()
            raise
        p = norms.pop() if norms else "None"
        self.p = None if p == "None" else float(p)

    def _norm_of(self, path: Path, block: slice) -> str:
        """p of a file that fits these rows; ValueError for another."""
        with _opened(path) as file:
            label = dict(file.metadata() or {})
            p = label.pop("p", "")
            if label != self._label() or not p:
                raise ValueError(
                    f"{path} holds another memory: expected {self._label()} and a p, got {file.metadata()}"
                )
            names = file.keys()
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            expected = {name: tuple(t[block].shape) for name, t in self._state().items()}
            if shapes != expected:
                raise ValueError(f"{path} is damaged: expected tensors of {expected}, got {shapes}")
        return p

    def _parts(self, folder: Path) -> Iterator[tuple[Path, slice]]:
        """The files of a saved memory, and the rows that each holds."""
        step = self._block_rows()
        for number, begin in enumerate(range(0, len(self), step)):
            yield folder / f"rows-{number:05d}.safetensors", slice(begin, begin + step)

    def _block_rows(self) -> int:
        return max(1, _FILE_BYTES // (self.values[:1].nbytes or 1))

    def _state(self) -> dict[str, Tensor]:
        """What a file holds, the visits last: :meth:`load` and :meth:`reset` tell by them which rows are in use."""
        scale = {} if self.scale is None else {"scale": self.scale}
        return {"values": self.values, **scale, "common": self._common, "visits": self.visits}

    def _label(self) -> dict[str, str]:
        return {name: str(v) for name, v in {**self.describe(), "rank": self.rank, "world": self.world}.items()}


def _device(device: str | torch.device) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"torch has no device {device!r}; for a file give a pathlib.Path") from error


def _reducible(device: torch.device, backends: str) -> torch.device:
    """`device`, or else one whose tensors a process group's backends, such as "cpu:gloo,cuda:nccl", can reduce."""
    served = [backend.split(":")[0] for backend in backends.split(",")]
    if device.type in served:
        return device
    return torch.device("cuda", torch.cuda.current_device()) if "cuda" in served else torch.device(served[0])


def _all_reduce(t: Tensor, device: torch.device, op: Any) -> None:
    staged = t.to(device)
    dist.all_reduce(staged, op)
    if staged is not t:
        t.copy_(staged)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; ValueError where it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:  # type: ignore[no-untyped-call]
            yield file
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is missing or damaged: {error}") from error
