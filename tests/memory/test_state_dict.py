"""state_dict and load_state_dict: through torch.save, Accelerate and a mapped file, and what they refuse."""

import io
import math
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from soatfast.memory import CropFlip, PerturbationMemory
from tests.memory.test_store import DTYPES, SHAPE, visited

INDEX = torch.tensor([17, 3, 0, 19, 8, 11])


def used(dtype=torch.float32, p=2, **fields):
    memory = PerturbationMemory(20, SHAPE, dtype, **fields)
    visited(memory, INDEX, p)
    return memory


def same(a, b):
    return a.p == b.p and all(torch.equal(t, b.state()[name]) for name, t in a.state().items())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mapped", [False, True])
def test_it_goes_through_a_file_that_holds_tensors_only_and_on_bit_for_bit(dtype, mapped, tmp_path):
    memory = used(dtype, device=tmp_path / "a.bin" if mapped else "cpu")
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    other = PerturbationMemory(20, SHAPE, dtype, "cpu" if mapped else tmp_path / "b.bin")
    values = other.values
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(memory, other) and other.values is values, "into the rows where they lie"
    assert torch.equal(visited(memory, INDEX, 2, seed=4), visited(other, INDEX, 2, seed=4)) and same(memory, other)


def test_an_empty_one_and_one_that_was_used_change_places():
    memory, empty = used(p=math.inf), PerturbationMemory(20, SHAPE)
    state = empty.state_dict()
    memory.load_state_dict(state)
    assert same(memory, empty) and memory.p is None and not memory.values.any()


def test_accelerate_checkpoints_it(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    memory = used(torch.int8, math.inf)
    accelerator.register_for_checkpointing(memory)
    accelerator.save_state(str(tmp_path))
    kept = PerturbationMemory(20, SHAPE, torch.int8)
    kept.load_state_dict({name: t.clone() if hasattr(t, "clone") else t for name, t in memory.state_dict().items()})
    visited(memory, INDEX, seed=9)
    assert not same(memory, kept)
    accelerator.load_state(str(tmp_path))
    assert same(memory, kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: 3, "expected the state_dict.. of a PerturbationMemory, got int"),
        (lambda s: {}, r"expected the state_dict\(\) of a PerturbationMemory, got \[\]"),
        (lambda s: {"weight": torch.ones(2)}, r"of a PerturbationMemory, got \['weight'\]"),
        (lambda s: {**s, "kind": {**s["kind"], "samples": 21}}, "the state is of another memory: expected .*21"),
        (lambda s: used(torch.int8).state_dict(), "the state is of another memory: .*'int8'"),
        (lambda s: PerturbationMemory(20, SHAPE, augment=CropFlip()).state_dict(), "of another memory: .*CropFlip"),
        (lambda s: {k: t for k, t in s.items() if k != "visits"}, "the state is damaged: expected tensors of"),
        (lambda s: {**s, "more": torch.ones(1)}, "the state is damaged"),
        (lambda s: {**s, "visits": s["visits"][1:]}, "the state is damaged"),
        (lambda s: {**s, "values": s["values"].double()}, "the state is damaged"),
        (lambda s: {**s, "values": [1.0]}, "the state is damaged"),
        (lambda s: {**s, "p": "inf"}, "p must be None or a number >= 1, got 'inf'"),
        (lambda s: {**s, "p": math.nan}, "p must be None or a number >= 1, got nan"),
    ],
)
def test_a_wrong_state_changes_nothing(change, message):
    memory, before = used(), used()
    with pytest.raises(ValueError, match=message) as raised:
        memory.load_state_dict(change(used(p=math.inf).state_dict()))
    assert same(memory, before) and "\n" not in str(raised.value)


def test_a_shard_says_where_its_rows_go():
    shard = PerturbationMemory(20, SHAPE, rank=1, world=3)
    with pytest.raises(ValueError, match=r"rank 1's part .* of 3 ranks.*memory\.save\(folder\) on every rank"):
        shard.state_dict()
    with pytest.raises(ValueError, match=r"expected .*, rank 1 of 3, got"):
        shard.load_state_dict(used().state_dict())


def ranks(rank, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29741", "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo")
    memory = PerturbationMemory(20, SHAPE)
    memory.state_dict()  # nobody has visited anything
    visited(memory, torch.tensor([3 + rank, 8 + rank]), seed=rank)
    message = f"rank {rank} has visited 2 samples since the last synchronize.*call memory.synchronize.. on every rank"
    for checkpoint in (memory.state_dict, lambda: memory.save(folder / f"early{rank}")):
        with pytest.raises(ValueError, match=message):
            checkpoint()
    assert not (folder / f"early{rank}").exists()
    memory.synchronize()
    torch.save(memory.state_dict(), folder / f"rank{rank}.pt")
    memory.save(folder / f"saved{rank}")
    PerturbationMemory(20, SHAPE, rank=rank, world=2).save(folder / f"shard{rank}")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
def test_a_forgotten_synchronize_is_found_at_the_checkpoint(tmp_path):
    mp.spawn(ranks, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    assert torch.equal(first["values"], second["values"])
    assert first["visits"].nonzero().flatten().tolist() == [3, 4, 8, 9]


def test_lightning_fabric_checkpoints_it(tmp_path):
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    memory = used(torch.int8, math.inf)
    fabric.save(tmp_path / "run.ckpt", {"memory": memory, "epoch": 3})
    other = PerturbationMemory(20, SHAPE, torch.int8)
    rest = fabric.load(tmp_path / "run.ckpt", {"memory": other})
    assert same(memory, other) and rest == {"epoch": 3}
