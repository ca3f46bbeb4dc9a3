"""Two gloo processes on the CPU: the same training as one process, and its exact resume."""

import dataclasses
import itertools
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from soatfast.attacks import PGD, FrankWolfe
from soatfast.losses import SCORPIO, AdversarialTraining
from soatfast.memory.store import PerturbationMemory
from soatfast.train import TrainConfig, checkpoint, processes, train, trainer
from tests.train.conftest import make_data

CONFIG = TrainConfig(epochs=2, batch_size=10, seed=2)
ROOT = Path(__file__).parents[2]


def loss():
    return SCORPIO(eps=0.1, steps=2)


def noisy():
    return AdversarialTraining(attack=PGD(eps=0.1, steps=1))


def replay(rank=0, world=1):
    memory = PerturbationMemory(40, (1, 8, 8), torch.int8, rank=rank, world=world)
    return AdversarialTraining(FrankWolfe(eps=0.1, steps=1), memory=memory)


def plain_model(batch_norm=False):
    torch.manual_seed(0)
    middle = torch.nn.BatchNorm1d(16) if batch_norm else torch.nn.ReLU()
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), middle, torch.nn.Linear(16, 4))


def visit(memory: PerturbationMemory, samples: list[int], p: float, seed: int) -> None:
    x, g = torch.rand(2, len(samples), 7, generator=torch.Generator().manual_seed(seed))
    with memory.visit(torch.tensor(samples), x) as row:
        row.step(g - 0.5, x, p, 0.1, 0.5, (0.0, 1.0))


def memories_meet(rank: int, dtype: torch.dtype, p: float) -> None:
    """Each rank plays both for itself: a sample that both visited is rank 0's, and a second round starts alike."""
    memory, *alone = (PerturbationMemory(6, (7,), dtype) for _ in range(3))
    expected = alone[0]
    rounds = ([[0, 1, 2], [2, 3]], [[3], [2, 0]], [[], [1]])
    for number, samples in enumerate(rounds):
        for r in (0, 1):
            if samples[r]:
                visit(alone[r], samples[r], p, 10 * number + r)
        if samples[rank]:
            visit(memory, samples[rank], p, 10 * number + rank)
        memory.synchronize()
        for name in ("values", "scale") if dtype == torch.int8 else ("values",):
            rows = [i for i in samples[1] if i not in samples[0]]
            expected.state()[name][rows] = alone[1].state()[name][rows]
            assert torch.equal(memory.state()[name], expected.state()[name]), (name, number)
            alone[1].state()[name].copy_(expected.state()[name])
        visited = [i for both in rounds[: number + 1] for i in both[0] + both[1]]
        assert memory.visits.tolist() == memory.common.tolist() == [visited.count(i) for i in range(6)]
        assert memory.p == p
    assert memory.values[:4].any(1).all() and not memory.values[4:].any()


def balls_differ(rank: int) -> None:
    memory = PerturbationMemory(6, (7,))
    if rank:
        visit(memory, [1], 2, 0)
    memory.synchronize()
    assert memory.p == 2 and memory.values[1].any(), "also where nothing was visited"
    memory.reset()
    visit(memory, [rank], 1 + rank, 0)
    with pytest.raises(ValueError, match=r"of one ball, got p = 1\.0, 2\.0"):
        memory.synchronize()


def terminated_in_one(folder: Path) -> None:
    """SIGTERM to rank 1 alone: both stop after the same batch, and the resumed training is the uninterrupted one."""
    value, left = trainer._value, [6]

    def until(*args):
        left[0] -= 1
        if not left[0] and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return value(*args)

    with mock.patch.object(processes, "_PAUSE", 0.0):
        with mock.patch.object(trainer, "_value", until), pytest.raises(SystemExit):
            train(plain_model(True), loss(), make_data(), CONFIG, folder / "stopped")
        assert (folder / "stopped" / "checkpoint-0001-000001").is_dir()
        train(plain_model(True), loss(), make_data(), CONFIG, folder / "stopped")


def worker(folder: Path) -> None:
    torch.set_num_threads(1)
    result = train(plain_model(), loss(), make_data(), CONFIG, folder / "two")
    assert result.passes["forward"] == 5
    assert result.passes["forward_samples"] == 5 * 5, "each process has half of the batch"
    norm = plain_model(True)
    train(norm, loss(), make_data(), CONFIG, folder / "norm")
    first = [norm.state_dict()]
    torch.distributed.broadcast_object_list(first, 0)
    assert all(torch.equal(t, first[0][name]) for name, t in norm.state_dict().items()), "batch-norm statistics too"
    terminated_in_one(folder)
    train(plain_model(), noisy(), make_data(), CONFIG, folder / "noisy")
    save = checkpoint.save_checkpoint

    def save_then_stop(*args) -> None:
        save(*args)
        raise KeyboardInterrupt

    with mock.patch.object(checkpoint, "save_checkpoint", save_then_stop), pytest.raises(KeyboardInterrupt):
        train(plain_model(), noisy(), make_data(), CONFIG, folder / "cut")
    train(plain_model(), noisy(), make_data(), CONFIG, folder / "cut")
    rank, config = int(os.environ["RANK"]), dataclasses.replace(CONFIG, crop_padding=0)
    together = replay()  # a whole memory on each rank: samples change ranks from epoch to epoch
    train(plain_model(), together, make_data(), config, folder / "whole-memory")
    save_file(together.memory.state(), folder / f"whole-{rank}.safetensors")
    own = replay(rank, 2)
    train(plain_model(), own, make_data(), config, folder / "shards")
    assert own.memory.visits.tolist() == [2] * 20
    with mock.patch.object(checkpoint, "save_checkpoint", save_then_stop), pytest.raises(KeyboardInterrupt):
        train(plain_model(), replay(rank, 2), make_data(), config, folder / "shards-cut")
    again = replay(rank, 2)
    train(plain_model(), again, make_data(), config, folder / "shards-cut")
    assert all(torch.equal(t, again.memory.state()[name]) for name, t in own.memory.state().items())
    for dtype, p in itertools.product((torch.float32, torch.bfloat16, torch.int8), (2, math.inf)):
        memories_meet(rank, dtype, p)
        with mock.patch(
            "soatfast.memory.shards.reducible", lambda *_: torch.device("cpu", 0)
        ):  # a copy, as for a GPU's
            memories_meet(rank, dtype, p)
        with mock.patch("soatfast.memory.shards.FILE_BYTES", 20):  # several blocks
            memories_meet(rank, dtype, p)
    balls_differ(rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    # Not by the interpreter's own end: threads of torch that ask for its lock then are killed inside C++, which aborts
    # the process now and then ("terminate called without an active exception"). What is tested is over.
    sys.stdout.flush()
    os._exit(0)


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "ACCELERATE_USE_CPU": "true",
    }
    common["GLOO_SOCKET_IFNAME"] = "lo"
    code = f"import pathlib; from tests.train.test_ddp import worker; worker(pathlib.Path({str(tmp_path)!r}))"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for process in workers:
            process.kill()
    assert [process.returncode for process in workers] == [0, 0], "\n".join(outputs)
    one = plain_model()
    train(one, loss(), make_data(), CONFIG, tmp_path / "one")
    two = load_file(tmp_path / "two" / "model.safetensors")
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    noisy_weights, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("noisy", "cut"))
    assert all(torch.equal(noisy_weights[name], cut[name]) for name in cut)
    norm, stopped = (load_file(tmp_path / name / "model.safetensors") for name in ("norm", "stopped"))
    assert all(torch.equal(norm[name], stopped[name]) for name in norm)
    # A whole memory on each rank: the same training as in one process, and the same memory on both.
    one, alone = plain_model(), replay()
    train(one, alone, make_data(), CONFIG, tmp_path / "one-memory")
    two = load_file(tmp_path / "whole-memory" / "model.safetensors")
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    memories = [load_file(tmp_path / f"whole-{rank}.safetensors") for rank in (0, 1)]
    for name, value in alone.memory.state().items():
        assert torch.equal(memories[0][name], memories[1][name]), name
        if name == "values":  # rounding of the summed gradients may turn a sign here and there
            assert (memories[0][name] == value).float().mean() > 0.99 and value.any()
        elif name != "common":
            assert torch.equal(memories[0][name], value), name
    kept, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("shards", "shards-cut"))
    assert all(torch.equal(kept[name], cut[name]) for name in cut)
    assert {p.name for p in (tmp_path / "shards" / "checkpoint-0002").glob("memory-*")} == {
        "memory-rank0",
        "memory-rank1",
    }
    assert len(list((tmp_path / "noisy" / "checkpoint-0002").glob("random-rank*.json"))) == 2
