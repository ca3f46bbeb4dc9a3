"""What is kept of one model: read where it fits, made again where it does not."""

import pytest
import torch
from safetensors.torch import save_file

from soatfast.attacks import PGD
from soatfast.runs.parts import kept


class Maker:
    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        rows = torch.arange(6).float().view(2, 3)
        return {"x": rows.requires_grad_(), "turned": rows.T, "flag": torch.tensor([True]), "same": rows}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "parts" / "one.safetensors"


def test_it_is_made_once(path):
    make = Maker()
    first = kept(path, {"attack": PGD(eps=0.1), "seed": 0}, make)
    again = kept(path, {"seed": 0, "attack": PGD(eps=0.1)}, make)
    assert make.calls == 1 and first.keys() == again.keys() == {"x", "turned", "flag", "same"}
    for name, value in first.items():
        assert torch.equal(again[name], value) and again[name].dtype == value.dtype and not value.requires_grad
    assert [file.name for file in path.parent.iterdir()] == ["one.safetensors"]


def test_other_options_and_fresh_make_it_again(path):
    make = Maker()
    kept(path, {"attack": PGD(eps=0.1)}, make)
    kept(path, {"attack": PGD(eps=0.2)}, make)
    assert make.calls == 2
    kept(path, {"attack": PGD(eps=0.2)}, make, fresh=True)
    assert make.calls == 3


@pytest.mark.parametrize("damage", [b"", b"PK", None])
def test_a_damaged_file_is_made_again(path, damage):
    make = Maker()
    kept(path, 1, make)
    path.write_bytes(path.read_bytes()[:-3] if damage is None else damage)
    assert torch.equal(kept(path, 1, make)["flag"], torch.tensor([True])) and make.calls == 2
    save_file({"flag": torch.zeros(1)}, path)  # says nothing of what was asked
    kept(path, 1, make)
    assert make.calls == 3
