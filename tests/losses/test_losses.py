"""Losses against the same thing written out in plain PyTorch."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from soatfast.attacks import FGSM, PGD, SOAE, FrankWolfe
from soatfast.attacks.task import Task
from soatfast.gradients import count_passes
from soatfast.gradients.passes import Passes
from soatfast.losses import (
    CURE,
    ELLE,
    LLR,
    MART,
    NFGSM,
    SCORPIO,
    SOAR,
    SORA,
    STN,
    TRADES,
    AdversarialTraining,
    Free,
    GradAlign,
    InputGradientPenalty,
    catalogue,
)
from tests.nets import batch, conv_net, relu_net, slow_frank_wolfe, slow_gradient, smooth_net

TASK = Task(eps=0.1, samples=8, shape=(1, 4, 4), classes=4)


def every_pass(loss):
    """With every pass of its formula, where it otherwise stops early."""
    early = isinstance(loss, AdversarialTraining) and isinstance(loss.attack, SOAE)
    return dataclasses.replace(loss, attack=dataclasses.replace(loss.attack, rtol=0)) if early else loss


MADE = [every_pass(row.make(TASK)) for row in catalogue.LOSSES]
LOSSES = [
    *(loss for loss in MADE if getattr(loss, "memory", None) is None),
    # Settings that no row has.
    AdversarialTraining(attack=PGD(eps=0.1, steps=4)),
    AdversarialTraining(attack=FGSM(eps=0.1)),
    AdversarialTraining(attack=FrankWolfe(eps=0.1, scheme="cd", steps=2)),
    SCORPIO(eps=0.1),
    SCORPIO(eps=0.1, steps=1, strength=1.0),
    SCORPIO(eps=0.1, scheme="cd", strength=1.15, h=0.95),
    SCORPIO(eps=0.5, p=2, scheme="exact"),
    SCORPIO(eps=0.1, mode="keep"),
    SCORPIO(eps=0.1, mode="keep", in_box=True, init="lmo", h=1.0),
    SCORPIO(eps=0.1, mode="keep", scheme="cd", steps=2),
    SCORPIO(eps=0.1, mode="keep", scheme="exact"),
    SCORPIO(eps=0.1, mode="keep", strength=1.0),
    SCORPIO(eps=0.1, mode="keep", recycle=False),
    TRADES(eps=0.1),
    TRADES(eps=0.5, p=2, steps=2, mode="train"),
    TRADES(eps=0.1, steps=3, mode="keep"),
    MART(eps=0.1),
    MART(eps=0.5, p=2, steps=2, mode="keep"),
    SORA(eps=0.1),
    SORA(eps=0.5, p=2, mode="eval"),
    NFGSM(eps=0.1),
    NFGSM(eps=0.1, mode="eval", noise=0.0, step=1.25),
    GradAlign(eps=0.1),
    ELLE(eps=0.1),
    Free(eps=0.1),
    SOAR(eps=0.1),
    SOAR(eps=0.1, p=2, estimator="frob", samples=2, mode="keep"),
    SOAR(eps=0.1, start="x", mode="keep"),
    CURE(),
    CURE(h=1.5, power=2, mode="keep"),
    InputGradientPenalty(),
    InputGradientPenalty(variant="dual", p=math.inf, eps=0.1, mode="keep"),
    InputGradientPenalty(variant="squared", targets="uniform", mode="keep"),
    InputGradientPenalty(variant="difference"),
    InputGradientPenalty(variant="difference", p=math.inf, mode="keep"),
    LLR(eps=0.1, steps=3),
    LLR(eps=0.5, p=2, steps=2, mode="keep"),
    STN(),
    STN(noise="asod", eps=0.1, steps=2, samples=2),
]


def name(loss):
    fields = [f"{k}={v}" for k, v in dataclasses.asdict(loss).items() if k != "attack"]
    attack = repr(loss.attack) if isinstance(loss, AdversarialTraining) else ""
    return f"{type(loss).__name__}({attack}{','.join(fields)})"


def gradients(model, scalar):
    return torch.autograd.grad(scalar, list(model.parameters()))


def scorpio_written_out(model, x, y, loss: SCORPIO):
    rows = []
    for i in range(len(x)):

        def gradient(z, i=i):
            return slow_gradient(model, z.view(x[:1].shape), y[i : i + 1]).flatten()

        rows.append(slow_frank_wolfe(gradient, x[i].flatten(), loss.p, loss.eps, loss.steps, loss.h or 1.05))
    x_adv = (x + torch.stack(rows).view_as(x)).clamp(0, 1)
    clean, attacked = F.cross_entropy(model(x), y), F.cross_entropy(model(x_adv), y)
    return clean + loss.strength * (attacked - clean)


@pytest.mark.parametrize("p", [math.inf, 2])
@pytest.mark.parametrize("strength", [1.0, 1.05, 0.7])
@pytest.mark.parametrize("mode", ["eval", "keep"])
def test_scorpio_equals_its_formula_in_value_and_gradient(p, strength, mode):
    model, (x, y) = smooth_net(), batch()
    loss = SCORPIO(eps=0.3, p=p, strength=strength, mode=mode, in_box=False)
    expected = scorpio_written_out(model, x, y, loss)
    actual = loss(model, x, y)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(gradients(model, actual), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b)


def test_strength_one_is_adversarial_training_on_the_quadratic_attack():
    model, (x, y) = relu_net(), batch()
    scorpio = SCORPIO(eps=0.2, strength=1.0)
    assert torch.equal(scorpio(model, x, y), AdversarialTraining(attack=scorpio.attack)(model, x, y))


def test_recycling_changes_nothing_but_the_passes():
    model, (x, y) = relu_net(), batch()
    shared, plain = SCORPIO(eps=0.2, mode="keep"), SCORPIO(eps=0.2, mode="keep", recycle=False)
    values = [loss(model, x, y) for loss in (shared, plain)]
    torch.testing.assert_close(values[0], values[1])
    for a, b in zip(gradients(model, values[0]), gradients(model, values[1]), strict=True):
        torch.testing.assert_close(a, b)
    assert shared.passes() == Passes(5, 3, 2, 5, 3, 2) and plain.passes() == Passes(6, 4, 1, 6, 4, 2)


def test_recycling_updates_batch_norm_like_two_training_forwards():
    x, y = batch(n=8, shape=(3, 8, 8), classes=5, dtype=torch.float32)
    models = [conv_net().train() for _ in range(2)]
    for model, recycle in zip(models, (True, False), strict=True):
        torch.manual_seed(0)
        SCORPIO(eps=0.1, mode="keep", recycle=recycle)(model, x, y).backward()
        assert model[1].num_batches_tracked == 2
    assert all(m.training for m in models[0].modules())


@pytest.mark.parametrize("attack", [PGD(eps=0.2, steps=3, random_start=False), FGSM(eps=0.2)])
def test_adversarial_training_is_cross_entropy_on_the_attack(attack):
    model, (x, y) = relu_net(), batch()
    expected = F.cross_entropy(model(attack(model, x, y)), y)
    actual = AdversarialTraining(attack=attack)(model, x, y)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(gradients(model, actual), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_declared_passes_are_the_counted_ones(loss):
    model, (x, y) = relu_net(), batch(n=6)
    with count_passes(model) as passes:
        loss(model, x, y).backward()
    assert passes.total() == loss.passes(6)


def test_pass_formulas_of_the_paper():
    for n in (1, 3):
        fe, cd = SCORPIO(steps=n).passes(), SCORPIO(steps=n, scheme="cd").passes()
        assert (fe.forward, fe.backward_input) == (n + 1 + 2, n + 1)
        assert (cd.forward_samples, cd.backward_input_samples) == (2 * n + 1 + 2, 2 * n + 1)
    assert AdversarialTraining(attack=PGD(steps=10)).passes() == Passes(11, 10, 1, 11, 10, 1)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_model_keeps_its_mode_and_empty_batches_give_zero(loss):
    model, (x, y) = conv_net().train(), batch(n=4, shape=(3, 8, 8), dtype=torch.float32)
    loss(model, x, y).backward()
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())
    empty = loss(relu_net(), *batch(n=0))
    assert empty.item() == 0
    empty.backward()


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_with_eps(loss):
    smaller = loss.with_eps(0.01)
    assert type(smaller) is type(loss)
    if isinstance(loss, AdversarialTraining):
        assert smaller.attack.eps == 0.01 and smaller.with_eps(loss.attack.eps) == loss
    elif getattr(loss, "eps", None) is not None:
        assert smaller.eps == 0.01 and dataclasses.replace(smaller, eps=loss.eps) == loss
    else:
        assert smaller is loss


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_with_h(loss):
    if not hasattr(loss, "h"):
        with pytest.raises(NotImplementedError, match=f"{type(loss).__name__} has no finite-difference step"):
            loss.with_h(0.5)
    elif isinstance(loss, InputGradientPenalty) and loss.variant != "difference":
        with pytest.raises(ValueError, match='h belongs to variant "difference"'):
            loss.with_h(0.5)
    else:
        assert loss.with_h(0.5).h == 0.5 and loss.with_h(0.5).with_h(loss.h) == loss


def test_one_nan_sample_spoils_only_itself():
    """The loss is NaN, as it must be, but the perturbations of the other samples are not."""
    model, (x, y) = relu_net(), batch()
    attack = SCORPIO(eps=0.1).attack
    clean = attack(model, x, y)

    def spoiled(z):
        return torch.cat([model(z)[:2], model(z)[2:3] * math.nan, model(z)[3:]])

    others = [0, 1, 3, 4, 5]
    assert torch.equal(attack(spoiled, x, y)[others], clean[others])


def test_bad_fields():
    with pytest.raises(ValueError, match="strength must be finite and > 0, got 0"):
        SCORPIO(strength=0)
    with pytest.raises(TypeError, match="strength must be a number"):
        SCORPIO(strength="1")
    with pytest.raises(ValueError, match="eps must be finite"):
        SCORPIO(eps=-1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        SCORPIO(steps=0)
    with pytest.raises(TypeError, match=r"attack must be one of .*, got function"):
        AdversarialTraining(attack=lambda m, x, y: x)
