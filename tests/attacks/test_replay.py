"""Attacks and losses with a memory, against a plain-PyTorch loop that keeps a dictionary of perturbations."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soatfast.attacks import FGSM, PGD, FrankWolfe
from soatfast.gradients import count_passes
from soatfast.losses import SCORPIO, AdversarialTraining, CrossEntropy
from soatfast.memory.crops import CropFlip
from soatfast.memory.store import PerturbationMemory
from tests.nets import batch, conv_net, relu_net

SHAPE = (1, 4, 4)
EPS = 0.1
VISITS = ([0, 1, 2, 3], [3, 9, 0, 5], [1, 3, 9, 11], [0, 1, 2, 3])


def lmo(g: Tensor, p: float) -> Tensor:
    flat = g.flatten(1)
    if p == math.inf:
        return EPS * g.sign()
    if p == 2:
        return (EPS * flat / flat.norm(dim=1, keepdim=True)).view_as(g)
    top = F.one_hot(flat.abs().argmax(1), flat.shape[1])
    return (EPS * top * flat.sign()).view_as(g)


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    F.cross_entropy(model(x), y, reduction="sum").backward()
    assert x.grad is not None
    return x.grad


def oracle_step(model, x, y, v, attack, in_box=False):
    """One visit by hand: v -> v'."""
    for _ in range(attack.steps):
        g = gradient(model, x + v, y)
        if isinstance(attack, FrankWolfe):
            gamma = 0.5 if attack.gamma is None else attack.gamma
            s = lmo(g, attack.p)
            s = torch.maximum(torch.minimum(s, 1 - x), -x) if in_box else s
            v = (1 - gamma) * v + gamma * s
        else:
            alpha = EPS / (attack.steps + 1) if attack.step_size is None else attack.step_size
            v = v + alpha / EPS * lmo(g, attack.p)
            if attack.p == math.inf:
                v = v.clamp(-EPS, EPS)
            else:
                norm = v.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
                v = v * (EPS / norm).clamp_max(1)
        v = (x + v).clamp(0, 1) - x
    return v


def data() -> tuple[Tensor, Tensor]:
    x, y = batch(12, SHAPE)
    return x.round(decimals=1).clamp(0, 1), y  # some pixels at the bounds


ATTACKS = [
    FrankWolfe(eps=EPS, steps=1),
    FrankWolfe(eps=EPS, steps=2, gamma=0.3),
    FrankWolfe(eps=EPS, steps=2, p=2, h=1, in_box=False),
    FrankWolfe(eps=EPS, steps=1, p=1, in_box=False),
    FrankWolfe(eps=EPS, steps=2, in_box=True),
    PGD(eps=EPS, steps=1),
    PGD(eps=EPS, steps=2, step_size=0.07),
    PGD(eps=EPS, steps=2, p=2),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_visits_go_on_where_the_last_one_ended(attack):
    model, (x, y) = relu_net(), data()
    memory = PerturbationMemory(12, SHAPE)
    kept: dict[int, Tensor] = {i: torch.zeros(SHAPE, dtype=torch.float64) for i in range(12)}
    for visit in VISITS:
        index = torch.tensor(visit)
        x_adv = attack.replay(model, x[index], y[index], memory, index)
        v = torch.stack([kept[i] for i in visit])
        v = oracle_step(model, x[index], y[index], v, attack, getattr(attack, "in_box", False))
        # the memory is in float32: a gradient may differ by its rounding, a sign does not at these points
        torch.testing.assert_close(x_adv, x[index] + v, atol=2e-6, rtol=0)
        kept.update(zip(visit, v, strict=True))
    torch.testing.assert_close(
        EPS * memory.read(torch.arange(12)).double(), torch.stack([kept[i] for i in range(12)]), atol=2e-6, rtol=0
    )


@pytest.mark.parametrize("loss", [AdversarialTraining, SCORPIO])
def test_the_loss_is_that_of_the_replayed_point(loss):
    model, (x, y) = relu_net(), data()
    index = torch.tensor([4, 7, 1])
    x, y = x[index], y[index]
    memory = PerturbationMemory(12, SHAPE)
    if loss is SCORPIO:
        criterion = SCORPIO(eps=EPS, steps=1, strength=1.5, memory=memory)
    else:
        criterion = AdversarialTraining(FrankWolfe(eps=EPS, steps=1), memory=memory)
    v = torch.zeros_like(x)
    for _ in range(3):
        got = criterion(model, x, y, index)
        v = oracle_step(model, x, y, v, FrankWolfe(eps=EPS, steps=1))
        adversarial, clean = F.cross_entropy(model(x + v), y), F.cross_entropy(model(x), y)
        expected = adversarial if loss is AdversarialTraining else clean + 1.5 * (adversarial - clean)
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)
    parameter = next(model.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(got, parameter)[0], torch.autograd.grad(expected, parameter)[0], atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (AdversarialTraining(FrankWolfe(eps=EPS, steps=1), memory=PerturbationMemory(12, SHAPE)), (2, 1, 1)),
        (AdversarialTraining(FrankWolfe(eps=EPS, steps=2), memory=PerturbationMemory(12, SHAPE)), (3, 2, 1)),
        (AdversarialTraining(PGD(eps=EPS, steps=3), memory=PerturbationMemory(12, SHAPE)), (4, 3, 1)),
        (SCORPIO(eps=EPS, steps=1, memory=PerturbationMemory(12, SHAPE)), (3, 1, 1)),
        (SCORPIO(eps=EPS, steps=1, mode="keep", memory=PerturbationMemory(12, SHAPE)), (3, 1, 1)),
        (SCORPIO(eps=EPS, steps=2, strength=1, memory=PerturbationMemory(12, SHAPE)), (3, 2, 1)),
    ],
    ids=str,
)
def test_counted_passes_are_the_declared(criterion, expected):
    model, (x, y) = relu_net(), data()
    with count_passes(model) as passes:
        criterion(model, x[:5], y[:5], torch.arange(5)).backward()
    assert passes.total() == criterion.passes(5)
    assert (passes.forward, passes.backward_input, passes.backward_parameters) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_a_small_memory_changes_the_points_little(dtype):
    model, (x, y) = relu_net(), data()
    index = torch.arange(12)
    exact, small = PerturbationMemory(12, SHAPE), PerturbationMemory(12, SHAPE, dtype)
    attack = FrankWolfe(eps=EPS, steps=1, gamma=0.3)
    for _ in range(4):
        a, b = (attack.replay(model, x, y, memory, index) for memory in (exact, small))
    # half a step of rounding a visit, of which 0.7 is left at the next: at most 0.7/0.3 halves
    assert 0 < (a - b).abs().max() <= 0.7 / 0.3 * 0.5 / 127 * EPS + 1e-7


def test_augmented_visits_meet_the_same_image():
    """Shifted by one pixel and back: with nothing cut away, the perturbation is that of the still image."""
    torch.manual_seed(0)
    pooled = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    x, y = batch(4, (1, 6, 6), classes=3)
    x = F.pad(x[..., 1:5, 1:5], (1, 1, 1, 1))  # a rim of zeros: shifts cut nothing off
    augment = CropFlip(padding=1)
    moved, still = PerturbationMemory(4, (1, 6, 6), augment=augment), PerturbationMemory(4, (1, 6, 6))
    attack, index = FrankWolfe(eps=EPS, steps=1), torch.arange(4)
    for moves in ([[-1, -1, 0], [1, 1, 1], [0, -1, 1], [0, 1, 0]], [[1, 0, 1], [-1, -1, 0], [0, 0, 1], [-1, 1, 0]]):
        where = torch.tensor(moves)
        a = attack.replay(pooled, augment.apply(x, where), y, moved, index, where)
        b = attack.replay(pooled, x, y, still, index)
        # Every pixel inside has the same gradient, wherever the picture lies. The rim that left the frame is not told.
        inside = (..., slice(2, 4), slice(2, 4))
        back, _ = augment.undo(a, where)
        torch.testing.assert_close(back[inside], b[inside], atol=1e-6, rtol=0)


def test_half_batches_are_attacked_in_float32_and_stay_in_the_ball():
    model, (x, y) = relu_net(torch.float32), data()
    x = x.to(torch.bfloat16)
    memory = PerturbationMemory(12, SHAPE, torch.int8)
    x_adv = FrankWolfe(eps=EPS, steps=2).replay(model.to(torch.bfloat16), x, y, memory, torch.arange(12))
    assert x_adv.dtype == torch.bfloat16
    assert 0 < (x_adv.float() - x.float()).abs().max() <= EPS * (1 + 1e-6)


def test_model_state_is_restored_also_when_the_model_fails():
    model = conv_net()
    x, y = batch(4, (3, 8, 8), 5, torch.float32)
    before = copy.deepcopy(model.state_dict())
    memory = PerturbationMemory(4, (3, 8, 8))
    model.train()
    FrankWolfe(eps=EPS, steps=1).replay(model, x, y, memory, torch.arange(4))
    assert model.training and all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match="labels"):
        FrankWolfe(eps=EPS, steps=1).replay(model, x, y + 5, memory, torch.arange(4))
    assert model.training and all(torch.equal(a, before[name]) for name, a in model.state_dict().items())


def test_an_empty_batch():
    memory = PerturbationMemory(12, SHAPE)
    x, y = data()
    criterion = AdversarialTraining(FrankWolfe(steps=1), memory=memory)
    assert criterion(relu_net(), x[:0], y[:0], torch.zeros(0, dtype=torch.int64)) == 0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: AdversarialTraining(FGSM(), memory=m), TypeError, "FGSM cannot go on from a memory"),
        (lambda m: AdversarialTraining(FrankWolfe(scheme="cd"), memory=m), ValueError, 'scheme="fe"'),
        (lambda m: AdversarialTraining(FrankWolfe(h=1.05), memory=m), ValueError, "h=1"),
        (lambda m: AdversarialTraining(PGD(restarts=2), memory=m), ValueError, "restarts=1"),
        (lambda m: AdversarialTraining(PGD(best=True), memory=m), ValueError, "best=False"),
        (lambda m: SCORPIO(h=0.5, memory=m), ValueError, "h=1"),
        (lambda m: AdversarialTraining(PGD(), memory="yes"), TypeError, "PerturbationMemory"),
        (lambda m: SCORPIO(memory={}), TypeError, "PerturbationMemory"),
        (lambda m: FrankWolfe(gamma=1.5), ValueError, "gamma"),
        (lambda m: FrankWolfe(gamma="half"), TypeError, "gamma"),
    ],
)
def test_bad_combinations(make, error, message):
    with pytest.raises(error, match=message):
        make(PerturbationMemory(12, SHAPE))


def test_the_index_is_needed_with_a_memory_alone():
    model, (x, y) = relu_net(), data()
    criterion = AdversarialTraining(FrankWolfe(steps=1), memory=PerturbationMemory(12, SHAPE))
    with pytest.raises(ValueError, match=r"loss\(model, x, y, index\)"):
        criterion(model, x, y)
    for plain in (AdversarialTraining(FGSM()), SCORPIO()):
        torch.testing.assert_close(plain(model, x, y), plain(model, x, y, torch.arange(12)))


def test_constant_gamma_without_a_memory():
    """gamma = 1 at the first step of N = 1 is 2/(0+2): the same attack."""
    model, (x, y) = relu_net(), data()
    a, b = FrankWolfe(eps=EPS, steps=1), FrankWolfe(eps=EPS, steps=1, gamma=1)
    assert torch.equal(a(model, x, y), b(model, x, y))
    c = FrankWolfe(eps=EPS, steps=2, gamma=0.25)
    assert not torch.equal(c(model, x, y), FrankWolfe(eps=EPS, steps=2)(model, x, y))


def test_with_steps():
    memory = PerturbationMemory(12, SHAPE)
    criterion = AdversarialTraining(FrankWolfe(steps=1), memory=memory).with_steps(3)
    assert criterion.attack.steps == 3 and criterion.memory is memory
    assert PGD(steps=1, step_size=0.3).with_steps(4) == PGD(steps=4)
    assert SCORPIO(steps=1, memory=memory).with_steps(2).attack.steps == 2
    with pytest.raises(TypeError, match="FGSM has no steps"):
        AdversarialTraining(FGSM()).with_steps(2)
    with pytest.raises(NotImplementedError, match="CrossEntropy"):
        CrossEntropy().with_steps(2)
