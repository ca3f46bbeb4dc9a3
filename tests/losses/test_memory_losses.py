"""TRADES and MART with a memory, against a plain loop that keeps a dictionary of perturbations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from soatfast.gradients import count_passes
from soatfast.losses import MART, TRADES
from soatfast.memory import CropFlip, PerturbationMemory
from tests.nets import batch, conv_net, smooth_net

SHAPE, EPS = (1, 4, 4), 0.1
VISITS = ([0, 1, 2, 3], [3, 9, 0, 5], [1, 3, 9, 11], [0, 1, 2, 3])
LOSSES = [
    TRADES(eps=EPS, steps=1),
    TRADES(eps=EPS, steps=2, mode="keep", noise=0.01),
    TRADES(eps=0.4, p=2, steps=2),
    TRADES(eps=EPS, steps=1, step_size=0.02),
    MART(eps=EPS, steps=1),
    MART(eps=0.4, p=2, steps=2),
]


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return F.kl_div(q.log_softmax(1), p.softmax(1), reduction="none").sum(1)


def value_of(loss, model, x, x_adv, y):
    clean, adversarial = model(x), model(x_adv)
    if isinstance(loss, TRADES):
        return F.cross_entropy(clean, y) + loss.beta * divergence(clean, adversarial).mean()
    q = adversarial.softmax(1)
    rival = q.scatter(1, y[:, None], 0).amax(1)
    boosted = F.cross_entropy(adversarial, y, reduction="none") - (1 - rival).log()
    weight = 1 - clean.softmax(1).gather(1, y[:, None]).squeeze(1)
    return (boosted + loss.beta * weight * divergence(clean, adversarial)).mean()


def by_hand(loss, model, x, y, v):
    """x' of one visit: a noisy start at the remembered point, then the steps of ATTA."""
    target = model(x).detach()
    x_adv = (x + v).clamp(0, 1) + loss.noise * torch.empty_like(x).normal_()
    alpha = loss.eps / (loss.steps + 1) if loss.step_size is None else loss.step_size
    for _ in range(loss.steps):
        leaf = x_adv.detach().requires_grad_()
        z = model(leaf)
        objective = divergence(target, z) if isinstance(loss, TRADES) else F.cross_entropy(z, y, reduction="none")
        (g,) = torch.autograd.grad(objective.sum(), leaf)
        if loss.p == math.inf:
            delta = (leaf.detach() + alpha * g.sign() - x).clamp(-loss.eps, loss.eps)
        else:
            norm = g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            delta = leaf.detach() + alpha * g / norm - x
            delta = delta * (loss.eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp_max(1)
        x_adv = (x + delta).clamp(0, 1)
    return x_adv


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__}-{loss.p}-{loss.steps}-{loss.mode}")
def test_several_visits_are_the_plain_loop(loss):
    torch.manual_seed(5)
    model, (images, labels) = smooth_net(), batch(12)
    memory = PerturbationMemory(12, SHAPE)
    remembering = type(loss)(
        **{name: getattr(loss, name) for name in ("eps", "p", "steps", "mode", "noise", "step_size", "beta")},
        memory=memory,
    )
    kept = torch.zeros_like(images)
    for visit, index in enumerate(map(torch.tensor, VISITS)):
        x, y = images[index], labels[index]
        torch.manual_seed(visit)
        value = remembering(model, x, y, index)
        torch.manual_seed(visit)
        x_adv = by_hand(loss, model, x, y, kept[index])
        expected = value_of(loss, model, x, x_adv, y)
        kept[index] = x_adv - x
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
        slopes = [torch.autograd.grad(v, list(model.parameters())) for v in (value, expected)]
        for a, b in zip(*slopes, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(memory.read(index).to(x), kept[index] / loss.eps, rtol=0, atol=1e-5)
    assert memory.visits.sum() == 16 and memory.visits[3] == 4


@pytest.mark.parametrize("loss", [TRADES, MART])
@pytest.mark.parametrize("mode", ["eval", "keep"])
def test_passes_are_counted_and_moves_are_followed(loss, mode):
    x, y = batch(4, (3, 8, 8), 5, torch.float32)
    augment = CropFlip(padding=1)
    criterion = loss(steps=2, mode=mode, memory=PerturbationMemory(4, (3, 8, 8), torch.int8, augment=augment))
    model, moves = conv_net(), augment.draw(4)
    with count_passes(model) as passes:
        criterion(model, augment.apply(x, moves), y, torch.arange(4), moves).backward()
    assert passes.total() == criterion.passes(4) and criterion.memory.values.any()
    assert criterion.with_eps(0.2).memory is criterion.memory and criterion.with_steps(3).memory is criterion.memory


@pytest.mark.parametrize("loss", [TRADES, MART])
def test_bad_input(loss):
    x, y = batch()
    memory = PerturbationMemory(6, SHAPE)
    with pytest.raises(TypeError, match="memory must be a PerturbationMemory or None, got dict"):
        loss(memory={})
    criterion = loss(memory=memory)
    with pytest.raises(ValueError, match=r"the index of each sample is needed: loss\(model, x, y, index\)"):
        criterion(smooth_net(), x, y)
    with pytest.raises(ValueError, match=r"index must have shape \(6,\)"):
        criterion(smooth_net(), x, y, torch.arange(5))
    with pytest.raises(TypeError, match=r"index must be an int64 tensor, got torch\.float32"):
        criterion(smooth_net(), x, y, torch.arange(6.0))
    assert not memory.visits.any()
