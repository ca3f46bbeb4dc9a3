"""A state comes back as it was saved: types, keys, bits, infinities; what cannot be saved is refused."""

import math
import random

import numpy as np
import pytest
import torch

from soatfast.runs.errors import RunFolderError
from soatfast.runs.state import load_state, random_state, save_state, set_random_state


def test_what_is_saved_comes_back(tmp_path):
    state = {
        0: (1, 2.5, -math.inf, True, None, "text"),
        "nested": [{"a": torch.arange(3), 1.5: torch.tensor(0.1, dtype=torch.float64)}, []],
        "bf16": torch.randn(2, 3).to(torch.bfloat16).t(),
    }
    save_state(tmp_path / "s", state)
    found = load_state(tmp_path / "s")
    assert found[0] == state[0] and [type(v) for v in found[0]] == [type(v) for v in state[0]]
    assert list(found["nested"][0]) == ["a", 1.5] and found["nested"][1] == []
    assert torch.equal(found["nested"][0]["a"], torch.arange(3)) and torch.equal(found["bf16"], state["bf16"])
    save_state(tmp_path / "n", {"x": math.nan})
    assert math.isnan(load_state(tmp_path / "n")["x"])


def test_all_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(()))

    draw()
    save_state(tmp_path / "r", random_state())
    expected = draw()
    draw()
    set_random_state(load_state(tmp_path / "r"))
    assert draw() == expected


def test_bad_states(tmp_path):
    with pytest.raises(TypeError, match="got object"):
        save_state(tmp_path / "s", {"x": object()})
    with pytest.raises(RunFolderError, match="missing or damaged"):
        load_state(tmp_path / "none")
