"""Explanations of models that are called and read in a way of their own: those of the plain model."""

import dataclasses

import pytest
import torch
from torch import nn

from soatfast.attacks import PGD, targets
from soatfast.explain import (
    ContrastivePair,
    IntegratedGradients,
    PertinentNegative,
    PertinentPositive,
    Saliency,
    SmoothGrad,
)
from soatfast.explain.gallery import attacked, predictions
from tests.nets import batch, smooth_net


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.dropout = smooth_net(), nn.Dropout()

    def forward(self, *, pixels):
        z = self.dropout(self.net(pixels))
        return {"none": z[:, :3], "scores": z}


def call(model, x):
    return model(pixels=x)


READ = {"output": "scores", "forward": call}
EXPLAIN = [
    Saliency(kind="input"),
    SmoothGrad(samples=2),
    IntegratedGradients(steps=3),
    PertinentNegative(steps=10, searches=2),
    PertinentPositive(steps=10, searches=2),
    ContrastivePair(eps=0.5, steps=3),
]


@pytest.mark.parametrize("explain", EXPLAIN, ids=lambda e: type(e).__name__)
def test_explanations(explain):
    x, y = batch()
    model = Named().train()
    found = []
    for net, fields in ((smooth_net(), {}), (model, READ)):
        torch.manual_seed(3)
        one = dataclasses.replace(explain, **fields)(net, x, y)
        found.append([one] if isinstance(one, torch.Tensor) else tensors(one))
    assert len(found[0]) == len(found[1]) and all(map(torch.equal, *found))
    assert model.dropout.training, "left as it was"


def tensors(value):
    parts = (getattr(value, f.name) for f in dataclasses.fields(value))
    return [
        t for part in parts for t in (tensors(part) if dataclasses.is_dataclass(part) else [part]) if torch.is_tensor(t)
    ]


def test_targets_and_galleries():
    (x, y), net, model = batch(), smooth_net(), Named()
    for rule in ("least-likely", "second-likely"):
        assert torch.equal(targets.choose(net, x, y, rule), targets.choose(model, x, y, rule, **READ))
    attack = PGD(steps=2, random_start=False)
    plain, found = attacked(net, attack, x, y), attacked(model, dataclasses.replace(attack, **READ), x, y)
    assert torch.equal(plain.image, found.image) and all(map(torch.equal, plain.after, found.after))
    assert all(map(torch.equal, predictions(net, x), predictions(model, x, dataclasses.replace(attack, **READ))))


@pytest.mark.parametrize("explain", EXPLAIN, ids=lambda e: type(e).__name__)
def test_bad_input(explain):
    for fields, text in (({"output": 1.5}, "output must be a name"), ({"forward": "f"}, "forward must be a callable")):
        with pytest.raises(TypeError, match=text):
            dataclasses.replace(explain, **fields)
    with pytest.raises(ValueError, match="output='no' is not in what the model returned: dict with none"):
        dataclasses.replace(explain, output="no", forward=call)(Named(), *batch())
