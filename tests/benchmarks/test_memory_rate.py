"""benchmarks.memory_rate: the sizes on paper, and that a measurement runs."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import memory_rate
from soatfast.memory.store import PerturbationMemory

DOCS = Path(__file__).parents[2] / "docs"


def test_sizes_by_hand():
    head, rule, *rows = memory_rate.sizes().splitlines()
    assert [cell.strip() for cell in head.split("|")[2:-1]] == ["float32", "bfloat16", "int8"]
    assert rule.count("|") == head.count("|")
    assert len(rows) == len(memory_rate.DATA)
    for row, (samples, shape) in zip(rows, memory_rate.DATA.values(), strict=True):
        entries = shape[0] * shape[1] * shape[2]
        for cell, a_sample in zip(row.split("|")[2:-1], (4 * entries + 8, 2 * entries + 8, entries + 12), strict=True):
            number, unit = cell.split()
            assert float(number) == round(samples * a_sample / {"MB": 1e6, "GB": 1e9}[unit]), row


def test_sizes_are_those_of_a_memory(monkeypatch):
    monkeypatch.setattr(memory_rate, "DATA", {"small": (30_000, (1, 10, 10))})
    cells = re.findall(r"(\d+) MB", memory_rate.sizes())
    made = [PerturbationMemory(30_000, (1, 10, 10), dtype) for dtype in (torch.float32, torch.bfloat16, torch.int8)]
    assert [int(cell) for cell in cells] == [round(memory.nbytes / 1e6) for memory in made]


def test_the_documentation_has_this_table():
    assert memory_rate.sizes() in (DOCS / "memory.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("cold", [False, True])
def test_a_measurement(tmp_path, cold):
    memory = PerturbationMemory(300, (1, 4, 4), torch.int8, tmp_path / "memory.bin")
    memory_rate.fill(memory)
    before = memory.values.clone()
    milliseconds, speed = memory_rate.rate(memory, 3, cold)
    assert milliseconds > 0 and speed == pytest.approx(2 * memory_rate.BATCH * 16 / (1e-3 * milliseconds))
    assert memory.visits.sum() == 2 * memory_rate.BATCH, "of the third batch 44 samples are left: not measured"
    changed = (memory.values != before).flatten(1).any(1)
    assert torch.equal(changed, memory.visits > 0)
