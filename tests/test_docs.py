"""The code in the documentation runs."""

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from soatfast.train import OverfittingGuard, OverfittingWarning, SmallCNN

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return [textwrap.dedent(code) for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)]


def test_the_scripts_of_the_replay_page(monkeypatch):
    script, guarded = blocks("replay.md")
    torch.manual_seed(0)
    model = SmallCNN(width=4, hidden=10)
    dataset = TensorDataset(torch.rand(200, 1, 28, 28), torch.randint(0, 10, (200,)))
    images, labels = dataset.tensors
    names = {
        "torch": torch,
        "dataset": dataset,
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
    }
    before = [p.clone() for p in model.parameters()]
    exec(script, names)
    assert names["memory"].visits.tolist() == [1] * 200 and names["memory"].values.any()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    monkeypatch.setattr(OverfittingGuard, "_measure", lambda *arguments: (0.0, 50, 0))  # a collapse
    names |= {"images": images, "labels": labels, "epoch": 0}
    with pytest.warns(OverfittingWarning):
        exec(guarded, names)
    assert names["criterion"].attack.steps == 5 and names["criterion"].memory is names["memory"]


def test_the_script_of_the_second_order_page(capsys):
    (script,) = blocks("second-order.md")
    torch.manual_seed(0)
    names = {"model": SmallCNN(width=4, hidden=10), "x": torch.rand(3, 1, 28, 28), "y": torch.tensor([1, 2, 3])}
    exec(script, names)
    assert names["solved"].x.shape == names["x_adv"].shape == (3, 1, 28, 28)
    assert names["soat"](names["model"], names["x"], names["y"]).isfinite()
    assert "torch.Size([3, 1, 28, 28])" in capsys.readouterr().out
