"""Warnings about models whose figures mislead, and none about others."""

import warnings

import pytest
import torch
from torch import nn

from soatfast.attacks import FGSM
from soatfast.evaluate import EvaluationWarning, RandomisedWarning, SoftmaxWarning, suite
from soatfast.evaluate.checks import check_model, looks_like_softmax
from tests.nets import batch, conv_net, relu_net

DATA = [batch(8, dtype=torch.float32)]


class Noisy(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.net, self.scale = relu_net(torch.float32), scale

    def forward(self, x):
        z = self.net(x)
        return z + self.scale * torch.randn_like(z)


def test_softmax_outputs():
    model = nn.Sequential(relu_net(torch.float32), nn.Softmax(1))
    with pytest.warns(SoftmaxWarning, match="returns probabilities, not logits"):
        suite(model, DATA, {"fgsm": FGSM()})
    assert looks_like_softmax(torch.randn(5, 7).softmax(1).bfloat16())
    assert not looks_like_softmax(torch.randn(5, 7).sigmoid())
    assert not looks_like_softmax(torch.randn(5, 7).log_softmax(1)), "as good as logits"


def test_a_randomised_model():
    state = torch.get_rng_state()
    with pytest.warns(RandomisedWarning, match="two different outputs"):
        suite(Noisy(0.1), DATA, {"fgsm": FGSM()})
    assert not torch.equal(torch.get_rng_state(), state), "the model's layers were drawn here"
    state = torch.get_rng_state()
    model = Noisy.__new__(Noisy)
    nn.Module.__init__(model)
    model.net, model.scale = nn.Flatten(), 0.1
    with pytest.warns(RandomisedWarning):
        check_model(model, *DATA[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_infinite_logits():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    nn.init.constant_(model[1].bias, float("inf"))
    with pytest.warns(EvaluationWarning, match="not finite"):
        check_model(model, *DATA[0])


@pytest.mark.parametrize("model", [relu_net(torch.float32), conv_net(channels=1, classes=4), Noisy(0.0)])
def test_no_warning_without_reason(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        suite(model, DATA, {"fgsm": FGSM()})  # dropout is off in eval mode
        with torch.no_grad():
            zero = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
            for p in zero.parameters():
                p.zero_()
        check_model(zero, *DATA[0])
