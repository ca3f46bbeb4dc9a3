"""Regularisers whose forwards are computed again in the backward, or whose buffers change before it."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from soatfast.attacks import PGD
from soatfast.gradients import count_passes
from soatfast.gradients.passes import Passes
from soatfast.losses import CURE, LLR, SCORPIO, SOAR, TRADES, AdversarialTraining, InputGradientPenalty
from tests.nets import batch

REGULARISERS = [
    CURE(),
    CURE(mode="train"),
    SOAR(eps=0.1),
    LLR(eps=0.1, steps=2),
    InputGradientPenalty(),
    InputGradientPenalty(variant="difference"),
]
NAMES = [f"{type(loss).__name__}-{loss.mode}-{getattr(loss, 'variant', '')}" for loss in REGULARISERS]


class Net(nn.Module):
    def __init__(self, kind, checkpoints=False, momentum=0.1):
        super().__init__()
        torch.manual_seed(0)
        middle = nn.BatchNorm2d(4, momentum=momentum) if kind == "batch norm" else nn.Dropout(0.5)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), middle, nn.Softplus())
        self.head, self.checkpoints = nn.Linear(256, 5), checkpoints
        if kind == "batch norm":
            middle.running_mean.uniform_(-1, 1)
            middle.running_var.uniform_(0.5, 2)

    def forward(self, x):
        x = checkpoint(self.body, x, use_reentrant=False) if self.checkpoints else self.body(x)
        return self.head(x.flatten(1))


def gradients(loss, model):
    x, y = batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    torch.manual_seed(1)
    value = loss(model, x, y)
    (3 * value).backward()
    return [value.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("kind", ["batch norm", "dropout"])
@pytest.mark.parametrize("loss", REGULARISERS, ids=NAMES)
def test_a_checkpointed_model_has_the_gradient_of_the_plain_one(loss, kind):
    for a, b in zip(gradients(loss, Net(kind, True)), gradients(loss, Net(kind)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", REGULARISERS, ids=NAMES)
def test_a_checkpointed_model_costs_one_backward_more_where_modes_are_changed(loss):
    x, y = batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    for trained in (True, False):
        changed = trained != (loss.mode == "train")
        model = Net("batch norm", True).train(trained)
        with count_passes(model) as passes:
            loss(model, x, y).backward()
        assert passes.total() == loss.passes(6) + Passes(backward_parameters=int(changed))


@pytest.mark.parametrize("loss", [CURE(mode="keep"), SCORPIO(eps=0.1), SCORPIO(eps=0.1, mode="keep"), TRADES(steps=2)])
def test_losses_that_need_nothing_more_with_checkpoints(loss):
    x, y = batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    model = Net("dropout", True)
    with count_passes(model) as passes:
        loss(model, x, y).backward()
    assert passes.total() == loss.passes(6)
    for a, b in zip(gradients(loss, Net("batch norm", True)), gradients(loss, Net("batch norm")), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", REGULARISERS, ids=NAMES)
def test_the_training_forward_does_not_change_what_the_regularisers_backward_uses(loss):
    """Batch norm saves its running statistics for the backward of eval mode, and training updates them in place."""
    still = gradients(loss, Net("batch norm", momentum=0.0))
    for a, b in zip(gradients(loss, Net("batch norm")), still, strict=True):
        assert torch.equal(a, b)


def test_going_back_twice_is_refused_in_one_line():
    x, y = batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    value = CURE()(Net("dropout", True), x, y)
    value.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"needs recycle=False, or a model without torch.utils.checkpoint"):
        value.backward()


def test_a_reentrant_checkpoint_is_refused_by_torch_with_the_way_out():
    class Reentrant(Net):
        def forward(self, x):
            return self.head(checkpoint(self.body, x, use_reentrant=True).flatten(1))

    x, y = batch(shape=(3, 8, 8), classes=5, dtype=torch.float32)
    model = Reentrant("dropout")
    for run in (PGD(steps=2), AdversarialTraining(PGD(steps=2)), CURE()):
        with pytest.raises(RuntimeError, match="set use_reentrant=False"):
            run(model, x, y)
    assert model.training and all(p.requires_grad for p in model.parameters())
