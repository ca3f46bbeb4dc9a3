"""Radii and bounds a channel, inputs normalised outside the model, masks; attacks as values."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle

import pytest
import torch
from torch import nn

import soatfast as sf
from soatfast.attacks import region

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
NORM = sf.Normalized(MEAN, STD)
ATTACKS = {
    "FGSM": sf.FGSM(),
    "PGD": sf.PGD(step_size=2 / 255),
    "PGD from x": sf.PGD(random_start=False),
    "best": sf.PGD(steps=3, restarts=2, best=True),
    "MIFGSM": sf.MIFGSM(steps=4),
    "FrankWolfe": sf.FrankWolfe(),
    "central": sf.FrankWolfe(scheme="cd"),
    "exact": sf.FrankWolfe(scheme="exact"),
    "in_box": sf.FrankWolfe(in_box=True),
    "tol": sf.FrankWolfe(tol=1e-3),
    "SOAE": sf.SOAE(steps=2, max_dim=4),
    "tr": sf.SOAE(variant="tr", steps=2, max_dim=4),
    "gn": sf.SOAE(scheme="gn", steps=2),
    "HAAT": sf.HAAT(steps=2),
    "HAAT random": sf.HAAT(steps=2, random_start=True),
    "ASOD": sf.ASOD(steps=2, samples=2, sigma=0.1),
    "NearPGD": sf.NearPGD(steps=3),
    "SimBA": sf.SimBA(eps=8 / 255, step_size=4 / 255, steps=20),
    "dct": sf.SimBA(eps=8 / 255, step_size=4 / 255, steps=20, basis="dct"),
    "TargetedPGD": sf.TargetedPGD(steps=3),
}


@pytest.fixture
def problem():
    """(network of normalised inputs, the same of pixels, pixels, labels) in float64."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Softplus(), nn.Flatten(), nn.Linear(8 * 16, 5)).double()

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return self.model(NORM.inputs(x))

    pixels = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    pixels[0, :, :2], pixels[1, :, :2] = 0, 1
    return model, Inside(), pixels, torch.arange(6) % 5


@pytest.mark.parametrize("name", ATTACKS)
def test_normalised_outside_is_normalised_inside(name, problem):
    model, inside, pixels, y = problem
    attack = ATTACKS[name]
    torch.manual_seed(1)
    want = attack(inside, pixels, y)
    torch.manual_seed(1)
    x = NORM.inputs(pixels)
    got = NORM(attack)(model, x, y)
    moved = NORM.pixels(got)
    assert (moved - want).abs().max() < 1e-5 and (want != pixels).any()
    assert (moved - pixels).abs().max() <= attack.eps * (1 + 1e-6)
    assert (got - x).abs().amax((0, 2, 3)).le(NORM.eps(attack.eps).flatten() * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_a_mask_is_kept_exactly(name, problem):
    model, inside, pixels, y = problem
    each, shared = torch.rand(6, 3, 8, 8) > 0.5, torch.rand(8, 8) > 0.3
    for mask in (each, shared):
        whole = {"compact": False} if name in ("SimBA", "dct") else {"tol": None} if name == "tol" else {}
        attack = dataclasses.replace(ATTACKS[name], mask=mask, **whole)
        fixed = ~mask.expand_as(pixels)
        for one, m, x in ((attack, inside, pixels), (NORM(attack), model, NORM.inputs(pixels))):
            x_adv = one(m, x, y)
            assert torch.equal(x_adv[fixed], x[fixed]) and (x_adv != x).any()


def test_the_model_never_sees_a_change_outside_the_mask(problem):
    _, inside, pixels, y = problem
    mask = torch.zeros(3, 8, 8, dtype=torch.bool)
    mask[:, 2:5, 2:5] = True
    seen = []

    def watch(x):
        seen.append((x.detach() - pixels.repeat(len(x) // 6, 1, 1, 1))[..., ~mask].abs().max())
        return inside(x)

    for name, attack in ATTACKS.items():
        if name not in ("SimBA", "dct", "tol"):
            dataclasses.replace(attack, mask=mask)(watch, pixels, y)
            assert max(seen) == 0, name
    for p in (1, 2):
        sf.PGD(p=p, eps=1.0, mask=mask)(watch, pixels, y)
    assert max(seen) == 0


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_random_start_in_a_mask_is_uniform_in_its_ball(p):
    """||v||^n / eps^n is uniform, n the entries that may change: its mean is 1/2."""
    x, mask = torch.full((4000, 20), 0.5), torch.zeros(20, dtype=torch.bool)
    mask[:3] = True
    attack = dataclasses.replace(sf.PGD(p=p, eps=0.1), mask=mask.unsqueeze(0))
    delta = attack._start(x) - x
    assert not delta[:, 3:].any()
    size = torch.linalg.vector_norm(delta, p, dim=1) / 0.1
    assert size.max() <= 1 + 1e-4 and abs(size.pow(3).mean() - 0.5) < 0.03


@pytest.mark.parametrize("attack", [sf.FGSM, sf.PGD, sf.FrankWolfe, sf.MIFGSM, sf.HAAT])
def test_eps_a_channel_with_numbers_as_bounds(attack, problem):
    model, _, pixels, y = problem
    eps = torch.tensor([0.01, 0.0, 0.04]).view(3, 1, 1)
    x_adv = attack(eps=eps)(model, pixels, y)
    moved = (x_adv - pixels).abs().amax((0, 2, 3))
    torch.testing.assert_close(moved, eps.flatten().double(), atol=1e-6, rtol=0)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert torch.equal(x_adv[:, 1], pixels[:, 1])


def test_pgd_with_a_radius_for_each_entry_is_the_plain_loop(problem):
    model, _, pixels, y = problem
    eps = torch.rand(3, 8, 8, dtype=torch.float64) * 0.1
    lower, upper = (
        torch.full((3, 1, 1), -0.02, dtype=torch.float64),
        torch.tensor([1.0, 1.01, 1.1]).view(3, 1, 1).double(),
    )
    got = sf.PGD(eps=eps, bounds=(lower, upper), random_start=False, steps=4)(model, pixels, y)
    x_adv = pixels
    for _ in range(4):
        leaf = x_adv.clone().requires_grad_()
        (g,) = torch.autograd.grad(nn.functional.cross_entropy(model(leaf), y, reduction="sum"), leaf)
        x_adv = x_adv + 2.5 / 4 * eps * g.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, pixels - eps), pixels + eps)
        x_adv = torch.minimum(torch.maximum(x_adv, lower), upper)
    torch.testing.assert_close(got, x_adv, atol=1e-12, rtol=0)


def test_bounds_a_channel_and_one_eps(problem):
    model, _, pixels, y = problem
    x = NORM.inputs(pixels)
    for attack in (sf.PGD(eps=0.3, bounds=NORM.bounds), sf.FrankWolfe(eps=torch.full((6,), 0.3), bounds=NORM.bounds)):
        x_adv = attack(model, x, y)
        back = NORM.pixels(x_adv)
        assert back.min() >= -1e-6 and back.max() <= 1 + 1e-6 and 0.29 < (x_adv - x).abs().max() <= 0.3 + 1e-7


@pytest.mark.parametrize("attack", [sf.PGD(eps=8 / 255, steps=2), sf.FrankWolfe(eps=8 / 255, steps=2)])
@pytest.mark.parametrize("own", [True, False])
def test_memories(attack, own, problem):
    """own: eps alone has channels, so that the box is no pair of numbers in units of eps."""
    model, inside, pixels, y = problem
    a, b = (sf.PerturbationMemory(10, (3, 8, 8), torch.float32) for _ in range(2))
    index, x = torch.arange(6), NORM.inputs(pixels)
    if own:
        scaled, target, start, back = (
            dataclasses.replace(attack, eps=torch.full((3, 1, 1), 8 / 255)),
            inside,
            pixels,
            lambda t: t,
        )
        scaled = dataclasses.replace(scaled, bounds=(torch.zeros(3, 1, 1), torch.ones(3, 1, 1)))
    else:
        scaled, target, start, back = NORM(attack), model, x, NORM.pixels
    for _ in range(3):
        want = attack.replay(inside, pixels, y, a, index)
        got = back(scaled.replay(target, start, y, b, index))
        assert (got - want).abs().max() < 1e-5


def test_losses_of_normalised_inputs(problem):
    model, inside, pixels, y = problem
    for loss in (
        sf.AdversarialTraining(sf.PGD(steps=2)),
        sf.TRADES(steps=2),
        sf.MART(steps=2),
        sf.SCORPIO(mode="keep"),
    ):
        torch.manual_seed(2)
        want = loss(inside, pixels, y)
        torch.manual_seed(2)
        torch.testing.assert_close(NORM(loss)(model, NORM.inputs(pixels), y), want, atol=1e-5, rtol=0)


def test_a_pre_hook_keeps_the_keys(problem):
    model, inside, pixels, y = problem
    keys, want = list(model.state_dict()), sf.PGD(random_start=False)(inside, pixels, y)
    handle = model.register_forward_pre_hook(NORM.pre_hook)
    assert list(model.state_dict()) == keys
    assert torch.equal(sf.PGD(random_start=False)(model, pixels, y), want)
    handle.remove()


def test_half_precision_with_channels(problem):
    model, _, pixels, y = problem
    x = NORM.inputs(pixels).bfloat16()
    x_adv = NORM(sf.PGD())(model.bfloat16(), x, y)
    assert x_adv.dtype == torch.bfloat16
    moved = (x_adv.float() - x.float()).abs().amax((0, 2, 3))
    assert moved.le(NORM.eps(8 / 255).flatten() * (1 + 1e-6)).all() and moved.gt(0).all()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"eps": torch.rand(3, 1, 1), "p": 2}, ValueError, r"a channel need p = math\.inf, got p = 2"),
        ({"eps": -torch.rand(3, 1, 1)}, ValueError, "eps must be finite and >= 0"),
        ({"eps": torch.full((3, 1, 1), math.nan)}, ValueError, "eps must be finite and >= 0"),
        ({"eps": torch.ones(3, 1, 1, dtype=torch.int64)}, TypeError, "eps must be a floating tensor"),
        ({"eps": torch.rand(4, 1, 1)}, ValueError, r"eps must broadcast to one sample \(3, 8, 8\), got \(4, 1, 1\)"),
        ({"eps": torch.rand(6, 3, 1, 1)}, ValueError, r"eps must broadcast to one sample"),
        ({"bounds": (torch.ones(3, 1, 1), torch.zeros(3, 1, 1))}, ValueError, r"bounds must be .* with lower < upper"),
        ({"bounds": (0.0, math.nan)}, ValueError, "bounds must be"),
        ({"bounds": torch.tensor([0.0, 1.0])}, ValueError, "bounds must be"),
        ({"bounds": "01"}, ValueError, "bounds must be"),
        ({"bounds": (torch.zeros(2, 1, 1), 1.0)}, ValueError, "bounds must broadcast to one sample"),
        ({"step_size": torch.rand(3, 1, 1)}, ValueError, "step_size a channel needs eps a channel"),
        (
            {"eps": torch.tensor([0.1, 0.2, 0.1]).view(3, 1, 1), "step_size": 0.1},
            ValueError,
            "step_size must have one ratio",
        ),
        (
            {"mask": torch.ones(3, 8, 8)},
            TypeError,
            "mask must be a bool tensor, .* got torch.float32",
        ),
        ({"mask": "all"}, TypeError, "mask must be a bool tensor, True where x may change, got str"),
        (
            {"mask": torch.ones(2, 8, 8, dtype=torch.bool)},
            ValueError,
            r"mask must broadcast to one sample \(3, 8, 8\), or",
        ),
        ({"mask": torch.ones(5, 3, 8, 8, dtype=torch.bool)}, ValueError, "mask must broadcast"),
        ({"mask": torch.ones(8, 8, dtype=torch.bool), "engine": "graph"}, ValueError, "takes neither a mask"),
    ],
)
def test_bad_fields(fields, error, message, problem):
    model, _, pixels, y = problem
    with pytest.raises(error, match=message):
        sf.PGD(**fields)(model, pixels, y)


PARTS = {
    **{name: attack for name, attack in ATTACKS.items() if name in ("SimBA", "dct", "tol")},
    **{f"{name}, compact": dataclasses.replace(ATTACKS[name], compact=True) for name in ("SOAE", "tr", "gn")},
}


def test_the_attacks_that_ask_about_parts_are_all_here():
    fields = {
        type(attack).__name__: name
        for attack in ATTACKS.values()
        for name in ("compact", "tol")
        if name in {f.name for f in dataclasses.fields(attack)}
    }
    assert fields == {"SimBA": "compact", "SOAE": "compact", "FrankWolfe": "tol"}
    assert {type(attack).__name__ for attack in PARTS.values()} == set(fields)


@pytest.mark.parametrize("name", PARTS)
def test_what_asks_about_parts_of_a_batch_takes_one_mask_for_all(name, problem):
    """Refused before any pass, whatever the samples; one mask for all is kept (above), as is a batch of one sample."""
    _, inside, pixels, y = problem
    each, asked = torch.ones(6, 3, 8, 8, dtype=torch.bool), []

    def model(x):
        asked.append(len(x))
        return inside(x)

    with pytest.raises(ValueError, match=r"a mask for each sample needs .* compact=False, tol=None") as error:
        dataclasses.replace(PARTS[name], mask=each)(model, pixels, y)
    assert not asked and "\n" not in str(error.value)
    mask = torch.rand(3, 8, 8) > 0.5
    for one, x, labels in ((mask, pixels, y), (mask[None], pixels[:1], y[:1])):
        x_adv = dataclasses.replace(PARTS[name], mask=one)(inside, x, labels)
        assert torch.equal(x_adv[:, ~mask], x[:, ~mask])


@pytest.mark.parametrize("make", [sf.SORA, sf.LLR, sf.SOAR])
def test_losses_whose_formula_has_one_radius_refuse_channels(make):
    for fields in ({"eps": torch.rand(3, 1, 1)}, {"bounds": NORM.bounds}):
        with pytest.raises(ValueError, match=f"{make.__name__} takes one eps a sample"):
            make(**fields)


@pytest.mark.parametrize(
    ("given", "error"),
    [(([0.5], [0.0]), ValueError), (([0.5], [0.2, 0.2]), ValueError), (("a", "b"), TypeError), ((0.5, 0.2), TypeError)],
)
def test_bad_normalisation(given, error):
    with pytest.raises(error, match=r"mean|std"):
        sf.Normalized(*given)
    with pytest.raises(ValueError, match="must be finite"):
        sf.Normalized([math.nan], [0.2])
    for attack in (sf.PGD(p=2), sf.PGD(bounds=(-1, 1))):
        with pytest.raises(ValueError, match=r"p = math\.inf|bounds must be the pixels'"):
            NORM(attack)
    with pytest.raises(TypeError, match="CURE has no eps"):
        NORM(sf.CURE())


def test_attacks_are_values():
    assert sf.PGD(bounds=[0, 1]).bounds == (0, 1) and sf.TRADES(bounds=[0, 1]).bounds == (0, 1)
    assert hash(sf.PGD(bounds=[0, 1])) == hash(sf.PGD(bounds=(0, 1)))
    eps = torch.tensor([0.1, 0.2])
    mask = torch.rand(3, 4) > 0.5
    for make in (sf.PGD, sf.FrankWolfe, sf.SOAE, sf.SimBA):
        for fields in ({"eps": eps}, {"mask": mask}, {"eps": torch.rand(3, 1, 1), "bounds": NORM.bounds}):
            one, other = make(**fields), make(**copy.deepcopy(fields))
            same = [one, other, copy.deepcopy(one), pickle.loads(pickle.dumps(one)), dataclasses.replace(one)]
            assert all(a == one and hash(a) == hash(one) for a in same) and len(set(same)) == 1
            assert one != make() and one != dataclasses.replace(one, targeted=True)
    assert sf.PGD(eps=eps) != sf.PGD(eps=eps.flip(0)) != sf.PGD(eps=eps.double())
    assert sf.PGD() != sf.NearPGD() and sf.PGD() != "PGD"
    loss = sf.AdversarialTraining(sf.PGD(eps=eps))
    assert loss == copy.deepcopy(loss) and hash(loss) == hash(pickle.loads(pickle.dumps(loss)))
    assert sf.TRADES(eps=eps) == sf.TRADES(eps=eps.clone()) != sf.TRADES()


def test_the_usual_attack_has_no_region():
    assert not region.is_needed(sf.PGD(eps=torch.rand(5)))
