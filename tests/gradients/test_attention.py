"""Second derivatives through attention, for which no fused kernel has any; recurrent networks on CUDA."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

import soatfast as sf
from soatfast.gradients import count_passes

X, Y = torch.rand(4, 6, 8), torch.tensor([0, 1, 2, 1])
TWICE = {
    "CURE": sf.CURE(),
    "SOAR": sf.SOAR(),
    "LLR": sf.LLR(steps=2),
    "squared": sf.InputGradientPenalty(),
    "dual": sf.InputGradientPenalty(variant="dual", eps=0.1, mode="keep"),
    "difference": sf.InputGradientPenalty(variant="difference"),
}


class Attending(nn.Module):
    def __init__(self, plain=False):
        super().__init__()
        torch.manual_seed(0)
        self.mixed, self.head, self.plain = nn.Linear(8, 24), nn.Linear(48, 3), plain

    def forward(self, x):
        q, k, v = (t.view(len(x), 6, 2, 4).transpose(1, 2) for t in self.mixed(x).chunk(3, 2))
        if self.plain:
            z = (q @ k.transpose(2, 3) / 2).softmax(3) @ v
        else:
            z = scaled_dot_product_attention(q, k, v)
        return self.head(z.transpose(1, 2).flatten(1))


def layer():
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
    return nn.Sequential(block, nn.Flatten(), nn.Linear(48, 3))


@pytest.mark.parametrize("name", TWICE)
def test_losses_with_double_backward(name):
    values, gradients = [], []
    for model in (Attending(), Attending(plain=True)):
        torch.manual_seed(1)
        with count_passes(model) as passes:
            value = TWICE[name](model, X, Y)
            value.backward()
        assert passes.total() == TWICE[name].passes(4)
        values.append(value.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999
    TWICE[name](layer(), X, Y).backward()


def test_exact_hessian_products():
    for attack in (sf.FrankWolfe(scheme="exact"), sf.SOAE(scheme="exact", steps=1, max_dim=3)):
        results = [attack(model, X, Y) for model in (Attending(), Attending(plain=True))]
        assert (results[0] != results[1]).float().mean() < 0.05
        assert attack(layer(), X, Y).isfinite().all()


def test_only_passes_that_need_it_leave_the_fused_kernels():
    seen = []

    class Watched(Attending):
        def forward(self, x):
            seen.append(torch.backends.cuda.flash_sdp_enabled())
            return super().forward(x)

    model = Watched()
    for use in (sf.PGD(steps=1), sf.AdversarialTraining(sf.FGSM()), TWICE["difference"]):
        use(model, X, Y)
    assert all(seen) and seen
    seen.clear()
    sf.CURE(mode="keep")(model, X, Y)
    assert not any(seen) and torch.backends.cuda.flash_sdp_enabled()


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.LSTM(8, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.cell(x)[0][:, -1])


def test_recurrent_networks_leave_cudnn_in_eval_mode_alone():
    """cuDNN has no backward of a recurrent layer in eval mode: the layer's forward must run without it."""
    seen = []
    model = Recurrent().train()
    model.cell.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    sf.PGD(steps=2)(model, X, Y)
    assert seen == [False, False] and torch.backends.cudnn.enabled
    seen.clear()
    sf.PGD(steps=2, mode="keep")(model, X, Y)
    assert seen == [True, True]
    model.eval()
    seen.clear()
    for attack in (sf.FrankWolfe(mode="keep"), sf.FrankWolfe(scheme="exact"), sf.SOAE(scheme="gn", steps=1)):
        attack(model, X, Y)
    assert not any(seen) and torch.backends.cudnn.enabled
    model.train()
    for loss in (sf.CURE(), sf.TRADES(steps=1), sf.SCORPIO(mode="keep"), sf.SORA(mode="eval")):
        loss(model, X, Y).backward()


@pytest.mark.cuda
def test_recurrent_networks_on_cuda():
    torch.manual_seed(0)
    model = Recurrent()
    for attack in (sf.PGD(steps=2, random_start=False), sf.FrankWolfe(scheme="exact"), sf.SOAE(scheme="gn", steps=1)):
        want = attack(model.cpu(), X, Y)
        got = attack(model.cuda(), X.cuda(), Y.cuda()).cpu()
        assert ((got - want).abs() > 1e-4).float().mean() < 0.05
