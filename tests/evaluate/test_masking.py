"""The scatter's counts against loops, and the checklist on a model that masks its gradients and one that does not."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from soatfast.attacks import FGSM, PGD, FrankWolfe
from soatfast.evaluate import compare_margins, final_margins, masking_signs, signs_table
from soatfast.evaluate.masking import Noise
from soatfast.gradients.passes import Passes
from tests.nets import batch, linear_net, relu_net

stats = pytest.importorskip("scipy.stats")


class Steps(nn.Module):
    """Rounds its input to tenths: gradients are zero, the decision is hardly another."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((10 * x).round() / 10)


def labelled(net, n=40):
    x, _ = batch(n)
    with torch.no_grad():
        return x, net(x).argmax(1)


def test_final_margins():
    net = relu_net().train()
    x, y = batch(30)
    attack = PGD(eps=0.4, p=2, steps=3, random_start=False)
    found = final_margins(net, (x, y), attack, batch_size=7)
    x_adv = attack(net, x, y)
    z = net(x_adv).detach()
    for i in range(30):
        rivals = torch.cat([z[i, : y[i]], z[i, y[i] + 1 :]])
        assert found.margin[i] == pytest.approx(float(z[i, y[i]] - rivals.max()), rel=1e-6, abs=1e-9)
        assert found.norm[i] == pytest.approx(float((x_adv[i] - x[i]).norm()), rel=1e-6)
    assert net.training, "wrong ones are attacked too, and to the end"
    clean = final_margins(net, (x, y), None)
    assert (clean.norm == 0).all() and (found.margin < clean.margin).all()
    random = PGD(eps=0.4, steps=1)
    one, two, three = (final_margins(net, (x, y), random, seed=seed).margin for seed in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, three)


@pytest.mark.parametrize("ties", [False, True])
def test_compare_margins(ties):
    random = np.random.default_rng(0)
    white = random.normal(size=200)
    black = 0.6 * white + random.normal(size=200) * 0.5
    if ties:
        white, black = white.round(0), black.round(1)
    found = compare_margins(torch.from_numpy(white), black, (0.0, 0.1, 1.0))
    for tolerance, count in found.below.items():
        assert count == sum(b < w - tolerance for w, b in zip(white, black, strict=True))
    loops = {"both": 0, "white only": 0, "black only": 0, "neither": 0}
    names = {(True, True): "both", (True, False): "white only", (False, True): "black only"}
    for w, b in zip(white, black, strict=True):
        loops[names.get((bool(w <= 0), bool(b <= 0)), "neither")] += 1
    assert found.quadrants == loops and found.flips == loops["black only"]
    assert found.pearson == pytest.approx(stats.pearsonr(white, black)[0])
    assert found.spearman == pytest.approx(stats.spearmanr(white, black)[0])


def test_margins_that_do_not_vary():
    found = compare_margins(np.ones(3), np.arange(3.0))
    assert math.isnan(found.pearson) and math.isnan(found.spearman)


@pytest.mark.parametrize(
    ("white", "black", "text"),
    [
        (np.zeros(3), np.zeros(4), r"shapes \(3,\) and \(4,\)"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "two arrays"),
        (np.zeros(0), np.zeros(0), "two arrays"),
        (np.array([np.nan]), np.zeros(1), "NaN"),
    ],
)
def test_wrong_margins(white, black, text):
    with pytest.raises(ValueError, match=text):
        compare_margins(white, black)
    with pytest.raises(ValueError, match="tolerances"):
        compare_margins(np.zeros(1), np.zeros(1), [-1.0])


def test_a_linear_model_has_no_flips_and_a_masked_one_has():
    net = linear_net()
    data = labelled(net)
    white = final_margins(net, data, PGD(eps=0.1, steps=10, random_start=False)).margin
    black = final_margins(net, data, Noise(eps=0.1, steps=50)).margin
    assert compare_margins(white, black).flips == 0 and compare_margins(white, black).below[0.0] == 0
    masked = Steps(relu_net())
    data = labelled(masked)
    white = final_margins(masked, data, PGD(eps=0.15, steps=10, random_start=False)).margin
    black = final_margins(masked, data, Noise(eps=0.15, steps=50)).margin
    assert compare_margins(white, black).flips > 0


def test_the_signs_of_a_masked_model():
    net = Steps(relu_net())
    data = labelled(net)
    attack = PGD(eps=0.15, steps=5, random_start=False)
    signs = {s.name: s for s in masking_signs(net, data, attack, black_box=Noise(eps=0.15, steps=200), draws=50)}
    present = {name for name, sign in signs.items() if sign.present}
    assert present == {
        "black box beats white box",
        "random noise finds what PGD misses",
        "unbounded attack does not reach 0",
        "larger ball does not help",
        "gradients vanish",
    }
    assert signs["gradients vanish"].figures == {"share of samples with a zero gradient": 1.0}
    assert signs["black box beats white box"].figures["samples that only the black box fools"] > 0


def test_the_signs_of_a_plain_model():
    net = relu_net()
    data = labelled(net)
    signs = masking_signs(net, data, PGD(eps=0.1, steps=20), black_box=FrankWolfe(eps=0.05), draws=20)
    assert not [sign.name for sign in signs if sign.present]
    figures = {name: value for sign in signs for name, value in sign.figures.items()}
    assert figures["eps"] == 1.0 and figures["accuracy at twice eps"] < figures["PGD-20 accuracy"]
    text = signs_table(signs).to_markdown()
    assert "| gradients vanish" in text and "PGD-80 accuracy" in text
    assert len(masking_signs(net, data, PGD(eps=0.5, p=2, steps=5), draws=2)) == len(signs) - 1


def test_a_single_step_that_beats_many():
    """Far along the first gradient lies the boundary; a wall of steep loss on the way turns the small steps back."""

    class Wall(nn.Module):
        def forward(self, x):
            t = x.flatten(1).sum(1, keepdim=True)
            hump = 4 * torch.exp(-((t - 0.15) ** 2) / 0.001)
            z = 1 - 4 * t + hump
            return torch.cat([z, -z], 1)

    x, y = torch.zeros(20, 1), torch.zeros(20, dtype=torch.int64)
    signs = {s.name: s for s in masking_signs(Wall(), (x, y), PGD(eps=0.4, steps=40, random_start=False), draws=2)}
    assert signs["single step beats many"].present
    assert signs["single step beats many"].figures == {"FGSM accuracy": 0.0, "PGD-40 accuracy": 1.0}


def test_noise():
    net = relu_net()
    x, y = labelled(net)
    attack = Noise(eps=0.1, steps=7)
    torch.manual_seed(0)
    x_adv = attack(net, x, y)
    assert (x_adv - x).abs().max() <= 0.1 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert attack.passes(3) == Passes(forward=7, forward_samples=21)
    torch.manual_seed(0)
    points = [attack._start(x) for _ in range(7)]
    losses = torch.stack([nn.functional.cross_entropy(net(p), y, reduction="none") for p in points])
    assert torch.equal(x_adv, torch.stack(points)[losses.argmax(0), torch.arange(len(x))])


@pytest.mark.parametrize("eps", [0.0, torch.tensor([0.1])])
def test_wrong_attack(eps):
    net = relu_net()
    with pytest.raises(ValueError, match="one eps > 0"):
        masking_signs(net, labelled(net), PGD(eps=eps))
    assert FGSM(eps=0.1)
