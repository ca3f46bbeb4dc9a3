"""PerturbationMemory on disk: saved, loaded, and mapped into memory."""

import contextlib
import math
import subprocess
import sys
from collections import Counter

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from soatfast.memory.store import PerturbationMemory
from tests.disk import full_disk
from tests.memory.test_store import DTYPES, SHAPE, visited


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mapped", [False, True])
def test_save_and_load_bit_for_bit(tmp_path, dtype, mapped, monkeypatch):
    monkeypatch.setattr("soatfast.memory.shards.FILE_BYTES", 100)  # several files
    memory = PerturbationMemory(20, SHAPE, dtype, tmp_path / "memory.bin" if mapped else "cpu")
    visited(memory, torch.tensor([17, 3, 0, 19, 8, 11]), p=2)
    memory.save(tmp_path / "saved")
    assert len(list((tmp_path / "saved").iterdir())) > 1
    other = PerturbationMemory(20, SHAPE, dtype)
    other.load(tmp_path / "saved")
    for name, value in memory.state().items():
        assert torch.equal(value, other.state()[name]), name
    steps = [visited(m, torch.arange(6), p=2, seed=5) for m in (memory, other)]
    assert torch.equal(*steps), "and it goes on alike"
    with pytest.raises(ValueError, match="p = 2, got p = inf"):
        visited(other, torch.arange(6))
    PerturbationMemory(20, SHAPE, dtype).save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    assert other.p is None


def test_a_file_holds_the_rows(tmp_path):
    memory = PerturbationMemory(20, SHAPE, torch.int8, str(tmp_path / "memory.bin"))
    visited(memory, torch.tensor([17]))
    raw = torch.frombuffer(bytearray((tmp_path / "memory.bin").read_bytes()), dtype=torch.int8)
    assert torch.equal(raw.view(20, *SHAPE), memory.values) and raw.any()


def test_a_file_is_held_by_one_memory(tmp_path):
    path = tmp_path / "memory.bin"
    memory = PerturbationMemory(20, SHAPE, torch.int8, path)
    visited(memory, torch.arange(20))
    for dtype, shape in ((torch.int8, SHAPE), (torch.float32, (5,))):  # of the same size
        with pytest.raises(ValueError, match=r"memory\.bin is held by another memory"):
            PerturbationMemory(20, shape, dtype, path)
    assert memory.values.any()
    values = memory.values
    before = values.clone()
    del memory
    link = tmp_path / "link.bin"
    link.symlink_to(path)
    again = PerturbationMemory(20, SHAPE, torch.int8, link)
    assert not again.values.any() and not any(path.read_bytes()), "made anew"
    assert torch.equal(values, before), "what still maps the old file keeps it"
    with pytest.raises(ValueError, match="is held by another memory"):
        PerturbationMemory(20, SHAPE, torch.int8, path)


def test_a_file_is_held_against_other_processes(tmp_path):
    code = (
        "import pathlib, sys; from soatfast.memory import PerturbationMemory as M;"
        "memory = M(20, (1, 4, 5), device=pathlib.Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    path = tmp_path / "memory.bin"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match="is held by another memory, in this process or another"):
            PerturbationMemory(20, SHAPE, device=path)
        holder.kill()
    assert not PerturbationMemory(20, SHAPE, device=path).values.any(), "a killed process holds nothing"


def test_a_file_replaced_while_it_is_opened_is_held(tmp_path, monkeypatch):
    """Its holder puts another in its place between the opening and the lock."""
    path = tmp_path / "memory.bin"
    path.write_bytes(bytes(400))

    def replaced(lock, how):
        monkeypatch.undo()
        path.unlink()
        path.write_bytes(bytes(range(200)) * 2)

    monkeypatch.setattr("fcntl.flock", replaced)
    with pytest.raises(ValueError, match="is held by another memory"):
        PerturbationMemory(20, SHAPE, torch.int8, path)
    assert path.read_bytes() == bytes(range(200)) * 2


def test_shards_have_files_of_their_own(tmp_path):
    shards = [PerturbationMemory(10, SHAPE, torch.int8, tmp_path / "m.bin", rank=r, world=2) for r in (0, 1)]
    visited(shards[1], torch.tensor([7]))
    assert not shards[0].values.any()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.bin.rank0of2", "m.bin.rank1of2"]
    assert "file=m.bin.rank1of2" in repr(shards[1])


def test_loading_refuses_another_kind(tmp_path):
    PerturbationMemory(20, SHAPE, torch.int8).save(tmp_path)
    with pytest.raises(ValueError, match=r"holds another memory.*float32.*int8"):
        PerturbationMemory(20, SHAPE).load(tmp_path)
    with pytest.raises(ValueError, match=r"holds another memory.*'samples': '21'"):
        PerturbationMemory(21, SHAPE, torch.int8).load(tmp_path)
    with pytest.raises(ValueError, match="missing or damaged"):
        PerturbationMemory(20, SHAPE).load(tmp_path / "nothing")
    (tmp_path / "rows-00000.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(ValueError, match="missing or damaged"):
        PerturbationMemory(20, SHAPE, torch.int8).load(tmp_path)


def test_a_bad_part_leaves_the_memory_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr("soatfast.memory.shards.FILE_BYTES", 100)  # 4 files of 5 rows
    saved, other = PerturbationMemory(20, SHAPE, torch.int8), PerturbationMemory(20, SHAPE, torch.int8)
    visited(saved, torch.arange(20), p=2)
    saved.save(tmp_path)
    visited(other, torch.arange(3, 9))
    before = {name: t.clone() for name, t in other.state().items()}
    path, kept = tmp_path / "rows-00003.safetensors", (tmp_path / "rows-00003.safetensors").read_bytes()
    part = {name: t[15:] for name, t in saved.state().items()}
    label = {**saved.label(), "p": "2.0"}
    for content, message in (
        (kept[:-1], "rows-00003.safetensors is missing or damaged"),
        (save(part, saved.label()), "rows-00003.safetensors holds another memory: expected .* and a p"),
        (save(part, {**label, "p": "inf"}), "parts of several memories, for p = 2.0 and inf"),
        (save({"values": part["values"]}, label), "rows-00003.safetensors is damaged: expected tensors of"),
        (save({**part, "values": part["values"][:4]}, label), r"expected tensors of .* \(4, 1, 4, 5\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            other.load(tmp_path)
        assert all(torch.equal(t, before[name]) for name, t in other.state().items())
        assert other.p == math.inf
    path.write_bytes(kept)
    other.load(tmp_path)
    assert all(torch.equal(t, other.state()[name]) for name, t in saved.state().items()) and other.p == 2


@pytest.mark.parametrize("name", ["values", "scale", "common", "visits"])
def test_a_part_that_fails_while_it_is_read_leaves_an_empty_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr("soatfast.memory.shards.FILE_BYTES", 100)
    saved, memory = PerturbationMemory(20, SHAPE, torch.int8), PerturbationMemory(20, SHAPE, torch.int8)
    visited(saved, torch.arange(11, 20), p=2)
    saved.save(tmp_path)
    visited(memory, torch.arange(5, 13), p=2)

    class Failing:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, attribute):
            return getattr(self.file, attribute)

        def get_tensor(self, wanted):
            if wanted == name:
                raise OSError("the disk is gone")
            return self.file.get_tensor(wanted)

    opened = Counter()

    @contextlib.contextmanager
    def safe_opened(path, framework):
        opened[path] += 1
        with safe_open(path, framework) as file:
            yield Failing(file) if "00002" in path and opened[path] == 2 else file

    monkeypatch.setattr("safetensors.safe_open", safe_opened)
    with pytest.raises(ValueError, match="damaged: the disk is gone"):
        memory.load(tmp_path)
    empty = PerturbationMemory(20, SHAPE, torch.int8)
    assert all(torch.equal(t, empty.state()[name]) for name, t in memory.state().items()) and memory.p is None


def test_a_mapped_file_has_its_space_from_the_start(tmp_path):
    memory = PerturbationMemory(1000, (3, 64, 64), torch.float32, tmp_path / "memory.bin")
    visited(memory, torch.tensor([700, 3]))
    memory.reset()
    assert not memory.values.any() and not memory.visits.any()
    assert (tmp_path / "memory.bin").stat().st_blocks * 512 >= memory.values.nbytes


@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_is_said_and_nothing_is_left(tmp_path, before):
    """A write beyond the disk into a mapped file would end the process by SIGBUS."""
    path = tmp_path / "memory.bin"
    if before:
        path.touch()
    with full_disk(2**20), pytest.raises(OSError, match=r"a memory of 49\.2 MB does not fit at .*memory\.bin, where"):
        PerturbationMemory(1000, (3, 64, 64), torch.float32, path)
    assert not list(tmp_path.iterdir())
    assert PerturbationMemory(10, (3, 8, 8), torch.float32, path).values.shape == (10, 3, 8, 8)


def test_a_mapped_file_is_never_written_over_something_else(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.txt exists and is no memory of 400 bytes"):
        PerturbationMemory(20, SHAPE, torch.int8, tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ValueError, match="exists and is no memory"):
        PerturbationMemory(20, SHAPE, torch.int8, tmp_path)
