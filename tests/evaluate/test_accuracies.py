"""Accuracy against a plain evaluation of every sample, passes, and the state it leaves behind."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from soatfast.attacks import FGSM, PGD
from soatfast.evaluate import accuracy
from tests.nets import batch, conv_net, relu_net


@pytest.fixture
def net():
    return relu_net(torch.float32)


@pytest.fixture
def samples(net):
    """Labels that the net gets right for about two thirds."""
    x, y = batch(n=60, dtype=torch.float32)
    with torch.no_grad():
        predicted = net(x).argmax(1)
    return x, torch.where(torch.arange(60) % 3 == 0, y, predicted)


def plain(model, x, y, attack):
    """Attack everything; right means right before and after (rule G11)."""
    model.eval()
    before = model(x).argmax(1) == y
    return before if attack is None else before & (model(attack(model, x, y)).argmax(1) == y)


@pytest.mark.parametrize("attack", [None, FGSM(eps=0.05), PGD(eps=0.05, steps=3, random_start=False), FGSM(eps=0.0)])
@pytest.mark.parametrize("batch_size", [7, 60, 1000])
def test_active_set_gives_the_plain_figure(net, samples, attack, batch_size):
    result = accuracy(net, samples, attack, batch_size)
    expected = plain(net, *samples, attack)
    assert torch.equal(result.correct, expected)
    assert result.accuracy == pytest.approx(expected.float().mean().item())
    clean = int(plain(net, *samples, None).sum())
    assert result.attacked == (0 if attack is None else clean)
    assert 0 < clean < 60


def test_attack_changes_something(net, samples):
    assert accuracy(net, samples, FGSM(eps=0.1)).accuracy < accuracy(net, samples).accuracy


def test_passes(net, samples):
    clean = int(plain(net, *samples, None).sum())
    passes = accuracy(net, samples, PGD(eps=0.05, steps=3), batch_size=20).passes
    attacked = -(-clean // 20)
    assert passes["forward"] == 3 + attacked * (3 + 1)
    assert passes["backward_input"] == attacked * 3
    assert passes["backward_input_samples"] == clean * 3
    assert passes["backward_parameters"] == 0


def test_one_who_is_always_wrong_is_not_attacked(net, samples):
    x, _ = samples
    wrong = (net(x).argmax(1) + 1) % 4
    result = accuracy(net, (x, wrong), FGSM(eps=0.1))
    assert (result.accuracy, result.attacked, result.passes["backward_input"]) == (0.0, 0, 0)


def test_kinds_of_data(net, samples):
    class Plain(Dataset):
        def __len__(self):
            return 60

        def __getitem__(self, i):
            return samples[0][i], int(samples[1][i])

    expected = accuracy(net, samples).correct
    for data in (TensorDataset(*samples), DataLoader(TensorDataset(*samples), 11), Plain(), [samples]):
        assert torch.equal(accuracy(net, data).correct, expected)


def test_state_is_left_alone(samples):
    model = conv_net(channels=1, classes=4).train()
    model[1].eval()
    flags = [m.training for m in model.modules()]
    buffers = [b.clone() for b in model.buffers()]
    labels = samples[1].clone()
    torch.manual_seed(3)
    state = torch.get_rng_state()
    accuracy(model, samples, PGD(eps=0.05, steps=2))
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(labels, samples[1])
    assert all(p.grad is None for p in model.parameters())


def test_random_starts_come_from_the_seed(net, samples):
    attack = PGD(eps=0.05, steps=1)
    results = [accuracy(net, samples, attack, seed=seed).correct for seed in (0, 0)]
    assert torch.equal(*results)


def test_progress(net, samples):
    calls = []
    result = accuracy(
        net, samples, FGSM(eps=0.01), batch_size=25, progress=lambda done, total: calls.append((done, total))
    )
    assert [total for _, total in calls] == [60] * len(calls) and calls[-1][0] == 60
    assert sorted(calls) == calls and len(calls) >= result.attacked / 25


def test_modes_are_restored_after_an_error():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("broken")

    model = Broken().train()
    with pytest.raises(RuntimeError, match="broken"):
        accuracy(model, (torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))
    assert model.training


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"attack": FGSM(targeted=True)}, "untargeted"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"data": (torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long))}, "no samples"),
        ({"data": []}, "no samples"),
        ({"data": (torch.zeros(2, 1, 4, 4), torch.zeros(3, dtype=torch.long))}, "2 images and 3 labels"),
    ],
)
def test_wrong_arguments(net, samples, arguments, text):
    with pytest.raises(ValueError, match=text):
        accuracy(net, **{"data": samples, **arguments})
