"""The highest and the lowest loss in a ball, and their roles."""

import pytest
import torch
from torch import nn

from soatfast.explain import ContrastivePair, roles
from soatfast.gradients import count_passes
from soatfast.gradients.objectives import cross_entropy
from tests.nets import batch, conv_net, linear_net, relu_net, smooth_net

PAIR = ContrastivePair(eps=0.5, steps=5)
FREE = (-100.0, 100.0)


def test_the_table_of_roles():
    assert roles(True) == ("negative", "positive")
    assert roles(False) == ("positive", "negative")


def deltas(found):
    """(delta_max, delta_min) from the roles."""
    correct = found.correct.view(-1, 1, 1, 1)
    negative, positive = found.negative.delta, found.positive.delta
    return torch.where(correct, negative, positive), torch.where(correct, positive, negative)


def test_a_linear_models_pair_is_along_its_weights():
    model, (x, y) = linear_net(), batch(n=20, classes=2)
    highest, lowest = deltas(ContrastivePair(eps=0.5, bounds=FREE)(model, x, y))
    weight = model[1].weight.detach()
    slope = (weight[1 - y] - weight[y]).view_as(x)
    expected = 0.5 * slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    assert torch.allclose(highest, expected) and torch.allclose(lowest, -expected)


@pytest.mark.parametrize("net", [relu_net, smooth_net])
def test_one_raises_and_the_other_lowers_the_loss(net):
    model, (x, y) = net(classes=2), batch(n=40, classes=2)
    found = PAIR(model, x, y)
    assert 0 < found.correct.sum() < 40
    highest, lowest = deltas(found)
    loss = cross_entropy(model(x), y)
    assert (cross_entropy(model(x + lowest), y) <= loss).all()
    assert (cross_entropy(model(x + highest), y) >= loss).all()
    for delta in (highest, lowest):
        assert (delta.flatten(1).norm(dim=1) <= 0.5 + 1e-9).all()
        assert (x + delta).min() >= 0 and (x + delta).max() <= 1


@pytest.mark.parametrize("net", [relu_net, smooth_net])
def test_the_roles_follow_the_prediction(net):
    model, (x, y) = net(), batch(n=60)
    found = ContrastivePair(eps=2.0)(model, x, y)
    clean = model(x).argmax(1)
    assert torch.equal(found.predictions, clean) and torch.equal(found.correct, clean == y)
    for one, kept in ((found.negative, False), (found.positive, True)):
        said = model(one.image)
        assert torch.equal(one.predictions, said.argmax(1)) and torch.equal(one.labels, y)
        assert torch.allclose(one.confidence, said.softmax(1).amax(1).float())
        assert torch.equal(one.success, (said.argmax(1) == clean) == kept)
        assert torch.equal(one.delta, one.image - x)
    assert found.negative.success.float().mean() > 0.5, "a ball so large holds other classes"
    wrong = ~found.correct & found.negative.success
    assert (found.negative.predictions[wrong] == y[wrong]).any(), "lowering a wrong prediction's loss mends it"


@pytest.mark.parametrize("best", [False, True])
def test_passes(best):
    model, (x, y) = relu_net(), batch()
    pair = ContrastivePair(eps=0.5, steps=4, best=best)
    with count_passes(model) as counted:
        found = pair(model, x, y)
    assert counted.total() == pair.passes(len(x)) == found.passes
    assert (counted.forward, counted.backward_input) == (8 + 3 + 2 * best, 8)


def test_samples_are_independent_and_nothing_is_drawn():
    model, (x, y) = relu_net(), batch()
    state, together = torch.random.get_rng_state(), PAIR(model, x, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    for i in range(len(x)):
        alone = PAIR(model, x[i : i + 1], y[i : i + 1])
        for role in ("negative", "positive"):
            assert torch.allclose(getattr(together, role).delta[i : i + 1], getattr(alone, role).delta)


def test_the_models_state_is_restored():
    model, (x, y) = conv_net().train(), batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    PAIR(model, x, y)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got 1\.\.7"):
        PAIR(model, x, torch.tensor([7, 1, 1, 1, 1, 1]))
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_input():
    model, (x, y) = relu_net(), batch()
    with pytest.raises(ValueError, match="without NaN"):
        PAIR(model, x * float("nan"), y)
    with pytest.raises(ValueError, match=r"y must have shape \(6,\)"):
        PAIR(model, x, y[:2])
    with pytest.raises(ValueError, match=r"logits of shape \(6, K\), got \(6, 1, 4, 4\)"):
        PAIR(nn.Identity(), x, y)
    with pytest.raises(ValueError, match="eps must be finite and >= 0, got -1"):
        ContrastivePair(eps=-1.0)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        ContrastivePair(steps=0)
    with pytest.raises(ValueError, match='mode must be "eval"'):
        ContrastivePair(mode="test")


def test_an_empty_batch():
    found = PAIR(relu_net(), torch.rand(0, 1, 4, 4, dtype=torch.float64), torch.zeros(0, dtype=torch.long))
    assert found.negative.delta.shape == (0, 1, 4, 4) and found.positive.success.shape == (0,)
