"""Wrappers on two ranks (gloo): DistributedDataParallel deep inside, Fabric, Accelerate, torch.compile, FSDP2."""

import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from soatfast.attacks import PGD, FrankWolfe
from soatfast.losses import MART, SCORPIO, TRADES, AdversarialTraining
from tests.nets import batch, conv_net, relu_net

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


class Wrapped(nn.Module):
    """A wrapper of a wrapper: DistributedDataParallel is the second layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def deep(net):
    return Wrapped(Wrapped(DistributedDataParallel(net)))


def behind_a_function(net):
    parallel = DistributedDataParallel(net)
    return lambda x: parallel(x)


def compiled_around(net):
    return Wrapped(torch.compile(DistributedDataParallel(net), backend="eager"))


def compiled_inside(net):
    return DistributedDataParallel(torch.compile(net, backend="eager"))


def fabric(net):
    from lightning_fabric.wrappers import _FabricModule

    class Plain:  # what _FabricModule asks of a precision plugin in float32
        def convert_input(self, data):
            return data

        convert_output = convert_input

        def forward_context(self):
            return torch.enable_grad()

    class Strategy:
        precision = Plain()

    parallel = DistributedDataParallel(net)
    try:
        return _FabricModule(parallel, Strategy())
    except TypeError:
        return _FabricModule(parallel, Plain())


WRAPPERS = [deep, behind_a_function, compiled_around, compiled_inside]


def wrappers(rank: int) -> None:
    """Ranks take different numbers of steps: a wrapper's forward would broadcast batch norm's buffers, and hang."""
    found = list(WRAPPERS)
    try:
        import lightning_fabric  # noqa: F401

        found.append(fabric)
    except ImportError:
        pass
    for wrap in found:
        net = conv_net().train()
        x, y = batch(n=3, shape=(3, 8, 8), dtype=torch.float32)
        model = wrap(net)
        steps = 3 if rank == 0 else 7
        AdversarialTraining(attack=PGD(eps=0.1, steps=steps))(model, x, y).backward()
        assert all(p.requires_grad and p.grad is not None for p in net.parameters()), wrap.__name__
        dist.barrier()


def sharded(rank: int) -> None:
    """Attacks and losses equal those of the model that is not sharded, also with mode="keep"."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    x, y = batch(n=4, dtype=torch.float32)
    for attack in (PGD(eps=0.1, steps=3, random_start=False), FrankWolfe(eps=0.1, steps=2)):
        plain = relu_net(torch.float32)
        expected = attack(plain, x, y)
        model = shard(relu_net(torch.float32), mesh, fully_shard)
        torch.testing.assert_close(attack(model, x, y), expected)
    for loss in (
        SCORPIO(eps=0.2, mode="keep", strength=0.5),
        SCORPIO(eps=0.2),
        TRADES(eps=0.2, steps=2),
        MART(eps=0.2, steps=2),
        AdversarialTraining(PGD(eps=0.1, steps=2, random_start=False)),
    ):
        plain, model = relu_net(torch.float32), shard(relu_net(torch.float32), mesh, fully_shard)
        for net in (plain, model):
            for _ in range(2):
                net.zero_grad()
                torch.manual_seed(0)
                loss(net, x, y).backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            assert p.grad is not None and p.requires_grad
            torch.testing.assert_close(p.grad.full_tensor(), q.grad)


def shard(net, mesh, fully_shard):
    for layer in net:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def work(rank: int, folder: str, name: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        globals()[name](rank)
    finally:
        dist.destroy_process_group()
    os._exit(0)  # as in test_distributed


@pytest.mark.parametrize("name", ["wrappers", "sharded"])
def test_two_ranks(tmp_path, name):
    context = mp.spawn(work, args=(str(tmp_path), name), nprocs=2, join=False)
    deadline = time.monotonic() + 180
    while not context.join(timeout=5):
        assert time.monotonic() < deadline, "a rank hangs"
