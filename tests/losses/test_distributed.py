"""Attacks and losses on a DistributedDataParallel model: two processes on this machine, gloo."""

import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from soatfast.attacks import PGD
from soatfast.gradients import count_passes
from soatfast.losses import (
    CURE,
    LLR,
    MART,
    SCORPIO,
    SOAR,
    SORA,
    STN,
    TRADES,
    AdversarialTraining,
    InputGradientPenalty,
)
from tests.nets import batch, conv_net, relu_net

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")

LOSSES = [
    SCORPIO(eps=0.2),
    SCORPIO(eps=0.2, mode="keep"),
    SCORPIO(eps=0.2, mode="keep", strength=1.0),
    CURE(),
    CURE(mode="keep"),
    SOAR(eps=0.2, strength=0.0, start="x"),  # its noise differs from rank to rank
    InputGradientPenalty(mode="keep"),
    InputGradientPenalty(variant="difference"),
    LLR(eps=0.2, strength=0.0, mu=0.0, mode="keep"),
    STN(sigma=0.0),
    TRADES(eps=0.2, steps=2),
    TRADES(eps=0.2, steps=2, mode="keep"),
    MART(eps=0.2, steps=2),
    SORA(eps=0.2, gain=100.0),  # the whole step, whatever rho
]


def work(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    try:
        different_numbers_of_steps(rank)
        gradients_are_the_mean_over_ranks(rank)
    finally:
        dist.destroy_process_group()
    # DistributedDataParallel keeps the group's threads alive; one that frees a tensor while Python shuts down aborts.
    os._exit(0)


def different_numbers_of_steps(rank: int) -> None:
    """A wrapper would broadcast batch-norm buffers in every forward, and hang."""
    model = DistributedDataParallel(conv_net().train())
    x, y = batch(n=3, shape=(3, 8, 8), dtype=torch.float32)
    steps = 3 if rank == 0 else 7
    with count_passes(model) as passes:
        AdversarialTraining(attack=PGD(eps=0.1, steps=steps))(model, x, y).backward()
    assert (passes.forward, passes.backward_input, passes.backward_parameters) == (steps + 1, steps, 1)
    assert all(p.requires_grad for p in model.parameters())


def gradients_are_the_mean_over_ranks(rank: int) -> None:
    x, y = batch(n=8)
    halves = (slice(0, 4), slice(4, 8))
    for loss in LOSSES:
        alone = relu_net()
        for half in halves:
            torch.manual_seed(0)  # the same start in both halves, as on both ranks
            loss(alone, x[half], y[half]).div(2).backward()
        model = DistributedDataParallel(relu_net())
        for _ in range(2):  # the reducer is ready for a second step
            model.zero_grad()
            torch.manual_seed(0)
            loss(model, x[halves[rank]], y[halves[rank]]).backward()
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


def test_two_ranks(tmp_path):
    context = mp.spawn(work, args=(str(tmp_path),), nprocs=2, join=False)
    deadline = time.monotonic() + 120
    while not context.join(timeout=5):  # True when all have ended; raises a rank's error
        assert time.monotonic() < deadline, "a rank hangs"
