"""``return_output``: the logits of the training forward at x', of no pass more."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soatfast.attacks import PGD, FrankWolfe
from soatfast.gradients import count_passes
from soatfast.losses import FGSMPGI, MART, SCORPIO, TRADES, AdversarialTraining, CrossEntropy, Free, FreeState
from soatfast.memory import PerturbationMemory
from tests.losses.test_losses import LOSSES, name
from tests.nets import batch, conv_net, relu_net, smooth_net


def with_memory(loss):
    return dataclasses.replace(loss, memory=PerturbationMemory(9, (1, 4, 4)))


INDEX = torch.tensor([3, 8, 0, 5, 1, 7])
REMEMBERING = [
    AdversarialTraining(FrankWolfe(eps=0.1, steps=1)),
    AdversarialTraining(PGD(eps=0.1, steps=2)),
    SCORPIO(eps=0.1, steps=1, mode="keep"),
    TRADES(eps=0.1, steps=1),
    MART(eps=0.1, steps=2),
    FGSMPGI(PerturbationMemory(9, (1, 4, 4)), eps=0.1),
]


def seen_by(model):
    """(inputs, outputs) of every call of the model from now on."""
    calls = []
    model.register_forward_hook(lambda _, given, output: calls.append((given[0].detach(), output.detach())))
    return calls


def once(loss, model, *batch):
    """(value, output or None, parameter gradients) of a step of the seeded loss."""
    if isinstance(loss, Free):
        loss = dataclasses.replace(loss, state=FreeState())
    torch.manual_seed(3)
    answer = loss(model, *batch)
    value, output = answer if loss.return_output else (answer, None)
    return value, output, torch.autograd.grad(value, list(model.parameters()), allow_unused=True)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_the_loss_and_its_passes_stay_and_the_logits_are_those_of_a_training_forward(loss):
    x, y = batch()
    value, _, slopes = once(loss, smooth_net(), x, y)
    model = smooth_net()
    calls = seen_by(model)
    loud = dataclasses.replace(loss, return_output=True)
    with count_passes(model) as passes:
        again, output, same = once(loud, model, x, y)
    assert torch.equal(value, again) and all(torch.equal(a, b) for a, b in zip(slopes, same, strict=True))
    assert passes.total() == loud.passes(6) == loss.passes(6)
    assert output.shape == (6, 4) and not output.requires_grad
    assert any(torch.equal(output, z) for _, z in calls if z.shape == output.shape)


def original(loss, model, x, y):
    """The x' of the loss, made by its attack as a script makes it, and the logits there in the caller's mode."""
    torch.manual_seed(3)
    x_adv = loss.perturb(model, x, y) if isinstance(loss, TRADES) else loss.attack(model, x, y)
    return model(x_adv).detach()


@pytest.mark.parametrize(
    "loss",
    [
        AdversarialTraining(PGD(eps=0.1, steps=3)),
        SCORPIO(eps=0.1),
        SCORPIO(eps=0.1, mode="keep"),
        SCORPIO(eps=0.1, strength=1.0),
        TRADES(eps=0.1),
        TRADES(eps=0.1, mode="keep"),
        MART(eps=0.1),
    ],
    ids=name,
)
def test_it_is_what_a_script_asks_the_model_for_a_second_time(loss):
    """Also with batch norm, where the mode of the forward shows, and under the shared clean pass."""
    x, y = batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    model = conv_net().train()
    model[3].p = 0.0
    expected = original(loss, copy.deepcopy(model), x, y)
    value, output, _ = once(dataclasses.replace(loss, return_output=True), model, x, y)
    torch.testing.assert_close(output, expected)
    assert value.isfinite()


@pytest.mark.parametrize("loss", REMEMBERING, ids=lambda loss: type(loss).__name__)
def test_with_a_memory(loss):
    x, y = batch()
    value, _, slopes = once(with_memory(loss), smooth_net(), x, y, INDEX)
    model, loud = smooth_net(), dataclasses.replace(with_memory(loss), return_output=True)
    with count_passes(model) as passes:
        again, output, same = once(loud, model, x, y, INDEX)
    assert torch.equal(value, again) and all(torch.equal(a, b) for a, b in zip(slopes, same, strict=True))
    assert passes.total() == loud.passes(6)
    x_adv = x + 0.1 * loud.memory.read(INDEX).to(x)
    torch.testing.assert_close(output, model(x_adv.clamp(0, 1)).detach(), rtol=1e-5, atol=1e-5)


def test_it_is_float32_of_a_half_precision_model_and_two_logits_of_one_sigmoid_unit():
    x, y = batch(dtype=torch.float32)
    half = CrossEntropy(return_output=True)(relu_net(torch.bfloat16), x.bfloat16(), y)
    assert half[1].dtype == torch.float32
    one = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    value, output = AdversarialTraining(PGD(eps=0.1, steps=1), return_output=True)(one, x, y % 2)
    torch.testing.assert_close(F.cross_entropy(output, y % 2), value.detach())


def test_soft_labels_have_the_models_output_as_it_is():
    x, y = batch()

    def mixed(z, targets):
        return -(targets * z.log_softmax(1)).sum(1)

    soft = torch.nn.functional.one_hot(y, 4).double() * 0.9 + 0.025
    loss = AdversarialTraining(PGD(eps=0.1, steps=1), objective=mixed, return_output=True)
    value, output = loss(relu_net(), x, soft)
    torch.testing.assert_close(mixed(output, soft).mean(), value.detach())


@pytest.mark.parametrize("loss", [*LOSSES[:4], SCORPIO(eps=0.1), TRADES(eps=0.1), MART(eps=0.1)], ids=name)
def test_an_empty_batch_has_no_rows(loss):
    x, y = batch()
    value, output = dataclasses.replace(loss, return_output=True)(relu_net(), x[:0], y[:0])
    assert value == 0 and output.shape == (0, 4)


def test_under_inference_mode():
    x, y = batch()
    with torch.inference_mode():
        value, output = TRADES(eps=0.1, return_output=True)(relu_net(), x, y)
    assert value.isfinite() and output.shape == (6, 4)
