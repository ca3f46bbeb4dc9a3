"""The code in the documentation runs."""

import re
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

from soatfast.train import SmallCNN

DOCS = Path(__file__).parents[1] / "docs"


def test_the_script_of_the_replay_page():
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "replay.md").read_text(encoding="utf-8"), re.DOTALL)
    torch.manual_seed(0)
    model = SmallCNN(width=4, hidden=10)
    names = {
        "torch": torch,
        "dataset": TensorDataset(torch.rand(200, 1, 28, 28), torch.randint(0, 10, (200,))),
        "model": model,
        "optimizer": torch.optim.Adam(model.parameters()),
    }
    before = [p.clone() for p in model.parameters()]
    exec(code, names)
    assert names["memory"].visits.tolist() == [1] * 200 and names["memory"].values.any()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
