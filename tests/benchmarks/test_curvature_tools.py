"""benchmarks.curvature_tools: that a measurement runs, with and without the peer."""

import importlib.util

import torch

from benchmarks import curvature_tools
from soatfast.train.models import SmallCNN


def test_a_small_measurement():
    table = curvature_tools.measure(curvature_tools.Options(rounds=1, samples=2, side=5))
    assert len(table.rows) == 8 and all(row["own"] > 0 for row in table.rows)
    compared = [row["tool"] for row in table.rows if "ratio" in row]
    there = importlib.util.find_spec("curvlinops") is not None
    assert compared == (["Hutchinson trace", "Hutch++ trace", "Frobenius norm"] if there else [])


def test_the_peer_sees_the_same_model():
    torch.manual_seed(0)
    model, x = SmallCNN(size=8).eval(), torch.rand(1, 1, 8, 8)
    at = curvature_tools.AtInput(model, x)
    assert [p.shape for p in at.parameters()] == [x.shape] and torch.equal(at(x), model(x))
