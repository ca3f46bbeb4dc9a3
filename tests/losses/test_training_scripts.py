"""Every loss of the catalogue in the loops that scripts write: accumulation, clipping, a GradScaler, no_sync, FSDP2."""

import math
import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from soatfast.attacks.task import Task
from soatfast.losses import SCORPIO
from soatfast.losses.catalogue import LOSSES
from tests.nets import batch, relu_net, smooth_net

TASK = Task(eps=0.1, samples=8, shape=(1, 4, 4), classes=4)
HALVES = (slice(0, 4), slice(4, 8))


def value_of(loss, model, x, y, half, seed):
    torch.manual_seed(seed)
    memory = getattr(loss, "memory", None)
    index = () if memory is None else (torch.arange(8)[half],)
    return loss(model, x[half], y[half], *index)


def by_hand(row, seeds):
    """The mean of the halves' gradients, each taken alone by a plain backward of a twin."""
    loss, model, (x, y) = row.make(TASK), smooth_net(torch.float32), batch(n=8, dtype=torch.float32)
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for half, seed in zip(HALVES, seeds, strict=True):
        model.zero_grad()
        value_of(loss, model, x, y, half, seed).backward()
        for total, p in zip(sums, model.parameters(), strict=True):
            total += p.grad / 2
    return sums


@pytest.mark.parametrize("row", LOSSES, ids=lambda row: row.name)
def test_accumulated_scaled_and_clipped_gradients_are_those_by_hand(row):
    expected = by_hand(row, seeds=(0, 1))
    loss, model, (x, y) = row.make(TASK), smooth_net(torch.float32), batch(n=8, dtype=torch.float32)
    optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1024.0)
    for seed, half in enumerate(HALVES):
        scaler.scale(value_of(loss, model, x, y, half, seed) / 2).backward()
    scaler.unscale_(optimizer)
    close = {"rtol": 1e-4, "atol": 1e-6}
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, **close)
    size = math.sqrt(sum(g.double().square().sum().item() for g in expected))
    norm = nn.utils.clip_grad_norm_(model.parameters(), size / 2)
    torch.testing.assert_close(norm.item(), size, **close)
    before = [p.detach().clone() for p in model.parameters()]
    scaler.step(optimizer)
    for p, old, g in zip(model.parameters(), before, expected, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * g / 2, **close)


def no_sync(rank: int) -> None:
    """Only the last backward of an accumulation speaks with the other rank, which has random numbers of its own."""
    for row in LOSSES:
        of_ranks = [by_hand(row, seeds=(10 * r, 10 * r + 1)) for r in (0, 1)]
        loss, (x, y) = row.make(TASK), batch(n=8, dtype=torch.float32)
        model = DistributedDataParallel(smooth_net(torch.float32))
        with model.no_sync():
            (value_of(loss, model, x, y, HALVES[0], 10 * rank) / 2).backward()
        (value_of(loss, model, x, y, HALVES[1], 10 * rank + 1) / 2).backward()
        for p, a, b in zip(model.parameters(), *of_ranks, strict=True):
            torch.testing.assert_close(p.grad, (a + b) / 2, rtol=1e-4, atol=1e-6, msg=lambda m, row=row: row.name + m)


TWICE = ("grad-align", "soar", "cure", "gradient-penalty", "llr")
"""Go twice through the model's backward. With FSDP's weights freed torch fails; kept, the gradients are lost."""


def sharded(rank: int) -> None:
    """FSDP2: the gradients of the model that is not sharded, over two steps; or one line."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    x, y = batch(n=8, dtype=torch.float32)
    whole = fully_shard(relu_net(torch.float32), mesh=mesh)
    with pytest.raises(TypeError, match="an exact Hessian goes twice"):
        SCORPIO(eps=0.1, scheme="exact")(whole, x, y)
    for row in LOSSES:
        results = []
        for net in (relu_net(torch.float32), relu_net(torch.float32)):
            if results:
                for layer in (net[1], net[3], net):
                    fully_shard(layer, mesh=mesh)
            loss = row.make(TASK)
            if results and row.name in TWICE:
                with pytest.raises(TypeError, match="twice through the model's backward, which FSDP does not support"):
                    value_of(loss, net, x, y, slice(0, 8), 0)
                results.append(results[0])
                break
            for step in range(2):
                net.zero_grad()
                value_of(loss, net, x, y, slice(0, 8), step).backward()
            results.append([p.grad.full_tensor() if results else p.grad for p in net.parameters()])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-6, msg=lambda m, row=row: row.name + m)


def work(rank: int, folder: str, name: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        globals()[name](rank)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # as in test_distributed


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("name", ["no_sync", "sharded"])
def test_two_ranks(tmp_path, name):
    context = mp.spawn(work, args=(str(tmp_path), name), nprocs=2, join=False)
    deadline = time.monotonic() + 240
    while not context.join(timeout=5):
        assert time.monotonic() < deadline, "a rank hangs"
