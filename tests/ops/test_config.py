"""describe() and show_config(): complete, plain, and honest about what is missing."""

from __future__ import annotations

import json

import pytest

import soatfast
from soatfast.ops import config, load
from soatfast.ops.contract import SCHEMAS


def test_describe_names_a_kernel_for_every_op_and_is_plain_data() -> None:
    facts = config.describe()
    assert set(facts["kernels"]) == set(SCHEMAS)
    assert facts["versions"]["soatfast"] == soatfast.__version__
    assert json.loads(json.dumps(facts)) == facts


def test_show_config_has_a_line_for_every_op() -> None:
    text = soatfast.show_config()
    for op in SCHEMAS:
        assert any(line.startswith(op) for line in text.splitlines())


@pytest.mark.native
def test_the_instruction_set_is_one_that_was_built() -> None:
    assert config.cpu_isa() in load.build_info()["ops_cpu"]["isa"]
    assert {kernels["CPU"] for kernels in config.describe()["kernels"].values()} == {"C++"}


def test_missing_parts_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load.parts, "ops_cpu", load.Part(False, "not built: no C++ compiler was found"))
    monkeypatch.setattr(load, "served_by", {})
    monkeypatch.setattr(
        load, "build_info", lambda: {"ops_cpu": {"built": False, "reason": "no C++ compiler was found"}}
    )
    text = config.show_config()
    assert "Reference on CPU because: C++ for the CPU: not built: no C++ compiler was found" in text
    assert "Build: ops_cpu: not built, no C++ compiler was found" in text
    assert config.cpu_isa() is None


def test_a_broken_library_stands_out(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = load.Part(False, "_ops_cpu.so does not load: undefined symbol", broken=True)
    monkeypatch.setitem(load.parts, "ops_cpu", broken)
    assert "BROKEN: ops_cpu: _ops_cpu.so does not load: undefined symbol" in config.show_config()


def test_a_tree_that_was_never_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "build_info", dict)
    assert "runs from sources that were not installed" in config.show_config()
