"""A memory in parts: which rank keeps which samples, and how the ranks' rows come together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from soatfast.memory.rows import Rows

FILE_BYTES = 1 << 30  # of values in one file of a saved memory, and in one all-reduce


def shard_range(samples: int, rank: int, world: int) -> range:
    """The samples that rank `rank` of `world` keeps: one contiguous block.

    >>> shard_range(10, 1, 3)
    range(3, 6)
    """
    return range(rank * samples // world, (rank + 1) * samples // world)


def reducible(device: torch.device, backends: str) -> torch.device:
    """`device`, or else one whose tensors a process group's backends, such as "cpu:gloo,cuda:nccl", can reduce."""
    served = [backend.split(":")[0] for backend in backends.split(",")]
    if device.type in served:
        return device
    return torch.device("cuda", torch.cuda.current_device()) if "cuda" in served else torch.device(served[0])


def all_reduce(t: Tensor, device: torch.device, op: Any) -> None:
    staged = t.to(device)
    dist.all_reduce(staged, op)
    if staged is not t:
        t.copy_(staged)


def block_rows(rows: Rows) -> int:
    """Rows in one file and in one all-reduce."""
    return max(1, FILE_BYTES // (rows.values[:1].nbytes or 1))


def synchronize(rows: Rows) -> None:
    """:meth:`PerturbationMemory.synchronize`."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    if rows.world != 1:
        raise ValueError("a sharded memory has nothing to synchronize: each sample has one rank")
    rank, world = dist.get_rank(), dist.get_world_size()
    norms: list[float | None] = [None] * world
    dist.all_gather_object(norms, rows.p)
    known = {p for p in norms if p is not None}
    if len(known) > 1:
        raise ValueError(f"the ranks' memories must be of one ball, got p = {', '.join(map(str, norms))}")
    device = reducible(rows.device, dist.get_backend_config())
    fresh = rows.visits - rows.common
    claim = torch.where(fresh > 0, world - rank, 0).to(torch.int32)
    winner = claim.clone()
    all_reduce(winner, device, dist.ReduceOp.MAX)
    # Rows that nobody visited are the same everywhere: rank 0 hands them round with the others.
    mine = (claim == winner) & (winner > 0) if rank else (claim == winner)
    all_reduce(fresh, device, dist.ReduceOp.SUM)
    rows.visits.copy_(rows.common + fresh)
    rows.common.copy_(rows.visits)
    step = block_rows(rows)
    for begin in range(0, len(rows), step):
        block, keep = rows.values[begin : begin + step], mine[begin : begin + step]
        block[~keep] = 0
        all_reduce(block, device, dist.ReduceOp.SUM)
    if rows.scale is not None:
        rows.scale[~mine] = 0
        all_reduce(rows.scale, device, dist.ReduceOp.SUM)
    rows.p = known.pop() if known else None
