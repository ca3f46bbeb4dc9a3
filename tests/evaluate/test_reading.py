"""Models that are called and read in a way of their own, batches of one size, masks and radii an entry."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

import soatfast as sf
from soatfast.attacks.named import TL
from soatfast.evaluate import (
    accuracy,
    accuracy_against_eps,
    final_margins,
    masking_signs,
    standard_attacks,
    steps_plateau,
    suite,
)
from soatfast.evaluate.batch import FIELDS, attack_batch, clean_batch, seeded
from soatfast.evaluate.watch import can_watch
from soatfast.gradients.fixed_batch import FixedBatch, any_batch, fixed_size
from soatfast.gradients.objectives import cross_entropy
from tests.evaluate.test_watch import Spy
from tests.nets import batch, conv_net, relu_net

EPS = 0.1
ATTACKS = {
    "pgd": sf.PGD(eps=EPS, steps=4),
    "restarts": sf.PGD(eps=EPS, steps=2, restarts=2, best=True),
    "fe": sf.FrankWolfe(eps=EPS, steps=3),
    "cd": sf.FrankWolfe(eps=EPS, steps=3, scheme="cd"),
    "gn": sf.SOAE(eps=EPS, steps=2, scheme="gn"),
    "asod": sf.ASOD(eps=EPS, steps=2, samples=2, sigma=0.1),
    "tl": TL(eps=EPS, steps=3),
    "simba": sf.SimBA(eps=EPS, steps=10),
    "train": sf.PGD(eps=EPS, steps=2, mode="train"),
    "function": lambda model, x, y: sf.FGSM(eps=EPS)(model, x, y),
}


class Named(nn.Module):
    """Takes its input by keyword; its logits are beside others of another number of classes, and twice them."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, *, pixels):
        z = self.net(pixels)
        return {"twice": 2 * z, "scores": z, "coarse": z[:, :2]}


def call(model, x):
    return model(pixels=x)


READ = {"output": "scores", "forward": call}


def same(a, b, at=slice(None)):
    """Equal up to what a batch of another size rounds."""
    for key in FIELDS:
        np.testing.assert_allclose(getattr(a, key)[at], getattr(b, key)[at], rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("worst_case", [False, True])
def test_the_records_are_those_of_the_plain_model(net, samples, own, worst_case):
    loader = [(t[:20], u[:20]) for t, u in [samples]] + [(t[20:], u[20:]) for t, u in [samples]]
    attacks = dict(ATTACKS)
    if own:
        attacks = {n: dataclasses.replace(a, **READ) if isinstance(a, sf.Attack) else a for n, a in ATTACKS.items()}
    plain = suite(net, loader, ATTACKS, worst_case=worst_case)
    found = suite(Named(net), loader, attacks, worst_case=worst_case, **READ)
    assert list(plain.results) == list(found.results) and found.worst_case == plain.worst_case < plain["clean"].accuracy
    for name, result in plain.results.items():
        same(found[name], result)
        assert found[name].passes == result.passes and found[name].saved == result.saved
    assert (plain["pgd"].first.any() or worst_case) and not plain["train"].first.any()


@pytest.mark.parametrize("compact", [True, False])
def test_an_attack_that_follows_another_part_is_watched_by_the_evaluations(net, samples, compact):
    attacks = {"two": sf.PGD(eps=EPS, steps=4, output="twice"), "own": sf.PGD(eps=EPS, steps=4, objective=half)}
    found = suite(Named(net), [samples], attacks, compact=compact, **READ)
    plain = suite(net, [samples], {"two": sf.PGD(eps=EPS, steps=4, objective=twice), "own": attacks["own"]})
    for name in attacks:
        assert np.array_equal(found[name].correct, plain[name].correct) and found[name].first.any()
        assert np.array_equal(found[name].first, plain[name].first)


def twice(z, y):
    return cross_entropy(2 * z, y)


def half(z, y):
    assert z.shape[1] == 4
    return cross_entropy(z / 2, y)


def test_one_sigmoid_unit_reaches_an_objective_as_it_is():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).double()
    x, _ = batch(n=20)
    y = (net(x)[:, 0] > 0).long()
    shapes = []

    def objective(z, y):
        shapes.append(z.shape[1:])
        return nn.functional.binary_cross_entropy_with_logits(z[:, 0], y.to(z), reduction="none")

    found = suite(net, [(x, y)], {"own": sf.PGD(eps=EPS, steps=3, objective=objective), "ce": sf.PGD(eps=EPS, steps=3)})
    assert set(shapes) == {(1,)} and 0 < found["own"].accuracy < 1 and found["ce"].first.any()


def test_accuracy_curves_and_signs(net, samples):
    model, attack = Named(net), sf.PGD(eps=EPS, steps=4)
    for one in (None, attack, dataclasses.replace(attack, **READ), ATTACKS["simba"]):
        plain = accuracy(net, samples, None if one is None else dataclasses.replace(one, output=None, forward=None), 20)
        found = accuracy(model, samples, one, 20, **READ)
        assert torch.equal(plain.correct, found.correct) and plain.passes == found.passes
    radii = (0.05, 0.1)
    assert (
        accuracy_against_eps(net, samples, attack, radii).accuracy
        == accuracy_against_eps(model, samples, attack, radii, **READ).accuracy
    )
    for step in (None, 0.02):
        a, b = (
            steps_plateau(m, samples, (1, 4), dataclasses.replace(attack, step_size=step), **read)
            for m, read in ((net, {}), (model, READ))
        )
        assert a == b
    a, b = (final_margins(m, samples, attack, 20, **read) for m, read in ((net, {}), (model, READ)))
    assert np.array_equal(a.margin, b.margin) and a.passes == b.passes and a.passes.forward_samples == 50 * 5
    a, b = (
        masking_signs(m, samples, attack, black_box=ATTACKS["simba"], draws=5, **r)
        for m, r in ((net, {}), (model, READ))
    )
    assert a == b


def test_the_standard_attacks_take_them(net, samples):
    attacks = standard_attacks(eps=EPS, steps=2, **READ)
    assert all(attack.output == "scores" and attack.forward is call for attack in attacks.values())
    chosen = {name: attacks[name] for name in ("fgsm", "pgd2", "tl")}
    plain = {name: dataclasses.replace(attack, output=None, forward=None) for name, attack in chosen.items()}
    found = suite(Named(net), [samples], chosen, **READ)
    for name, result in suite(net, [samples], plain).results.items():
        same(found[name], result)


# ------------------------------------------------------------------------------------------ masks and radii an entry

MASK = torch.arange(16).view(1, 4, 4) % 3 > 0
EACH = torch.linspace(0, 0.3, 16).view(1, 4, 4).double()
LOW, HIGH = torch.full((1, 1, 1), -0.05).double(), torch.full((1, 1, 1), 1.1).double()
REGIONS = {
    "mask": {"mask": MASK},
    "mask of each": {"mask": torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.4},
    "mask L2": {"mask": MASK, "p": 2, "eps": 0.5},
    "eps an entry": {"eps": EACH},
    "eps and mask": {"eps": EACH, "mask": MASK},
    "bounds": {"bounds": (LOW, HIGH)},
    "all": {"eps": EACH, "mask": MASK, "bounds": (LOW, HIGH)},
}


def limits(attack, x):
    eps = torch.as_tensor(attack.eps, dtype=x.dtype).expand_as(x) if attack.p == math.inf else torch.full_like(x, 9)
    mask = torch.ones_like(x, dtype=torch.bool) if attack.mask is None else attack.mask.expand_as(x)
    return eps * mask, *(torch.as_tensor(b, dtype=x.dtype).expand_as(x) for b in attack.bounds)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("name", ["pgd", "restarts", "fe", "cd", "gn", "asod"])
@pytest.mark.parametrize("region", REGIONS)
def test_every_point_in_the_region_counts(name, region, compact):
    """Against a replay, sample by sample, of every point that the attack asks about."""
    attack = dataclasses.replace(ATTACKS[name], **{"eps": 0.15, **REGIONS[region]})
    net, (x, y) = relu_net().eval(), batch(n=40)
    predicted = net(x).argmax(1)
    y = torch.where(torch.arange(40) % 5 == 0, y, predicted)
    spy = Spy(net).eval()
    with seeded(attack, 7):
        final = attack(spy, x, y)
    each, low, high = limits(attack, x)
    calls = [points.split(40) for points in spy.points] + [(final,)]
    first = torch.zeros(40, dtype=torch.int32)
    for i in (predicted == y).nonzero().flatten().tolist():
        for number, copies in enumerate(calls, 1):
            for point in (points[i] for points in copies):
                inside = bool(((point - x[i]).abs() <= each[i] + 1e-5 * each.max()).all())
                inside &= bool((point >= low[i] - 1e-5).all() and (point <= high[i] + 1e-5).all())
                inside &= attack.p == math.inf or float((point - x[i]).norm()) <= attack.eps * (1 + 1e-5)
                if not first[i] and inside and net(point[None]).argmax(1) != y[i]:
                    first[i] = number
    assert can_watch(attack, x)
    cell = attack_batch(net, attack, x, y, clean_batch(net, x, y)[0], 7, compact)[1].records
    assert np.array_equal(cell["first"], first.numpy()) and (first > 0).any()
    assert np.array_equal(cell["correct"], ((predicted == y) & (first == 0)).numpy())


def test_points_out_of_the_region_do_not_count():
    """A point that fools and lies in the ball, but not in the mask, or beyond the radius of one entry."""
    net, (x, y) = relu_net().eval(), batch(n=40)
    y = net(x).argmax(1)

    class Outside(sf.PGD):
        def _perturb(self, oracle, x, y, g0):
            chart, oracle.chart = oracle.chart, None
            oracle.loss(target, y)
            oracle.chart = chart
            return x.clone()

    target = sf.PGD(eps=0.15, steps=5, random_start=False)(net, x, y)
    before = clean_batch(net, x, y)[0]
    for region, fooled in (({}, True), ({"mask": MASK}, False), ({"eps": EACH / 4}, False)):
        attack = Outside(**{"eps": 0.15, **region})
        assert attack_batch(net, attack, x, y, before, 0, True)[1].records["correct"].all() == (not fooled)


def test_normalised_inputs(net, samples):
    """The watched records in the script's units are those of a model that normalises inside."""
    norm = sf.Normalized([0.4], [0.25])
    x, y = samples
    inside = nn.Sequential(net)
    inside.register_forward_pre_hook(norm.pre_hook)
    y = inside(x).argmax(1)
    for make in (sf.PGD, sf.FrankWolfe):
        attack = make(eps=EPS / 4, steps=3)
        found = suite(net, [(norm.inputs(x), y)], {"a": norm(attack)}, quality=False)["a"]
        plain = suite(inside, [(x, y)], {"a": attack}, quality=False)["a"]
        assert np.array_equal(found.first, plain.first) and found.first.any()
        np.testing.assert_allclose(found.margin, plain.margin, atol=1e-4)


# ------------------------------------------------------------------------------------------ batches of one size


@pytest.fixture(scope="module")
def exported():
    net = conv_net(channels=1, classes=4).eval()
    x, y = batch(n=26, dtype=torch.float32)
    y = torch.where(torch.arange(26) % 4 == 0, y, net(x).argmax(1))
    return net, torch.export.export(net, (x[:8],)).module(), x, y


def test_an_exported_model_of_one_batch_size_runs_the_suite(exported):
    """Batches of 8, 8, 8 and 2 rows, stacked batches, parts of batches: as the plain model, every sample to its end."""
    net, fixed, x, y = exported
    loader = list(zip(x.split(8), y.split(8), strict=True))
    attacks = {name: attack for name, attack in ATTACKS.items() if name not in ("train", "function")}
    plain = suite(net, loader, attacks, compact=False)
    found = suite(fixed, loader, attacks)
    for name, result in plain.results.items():
        for key in ("correct", "prediction", "first", "attacked"):
            assert np.array_equal(getattr(found[name], key), getattr(result, key)), (name, key)
        passes = found[name].passes
        assert passes.forward_samples == 8 * passes.forward and found[name].share == 1
    assert found.worst_case < found["clean"].accuracy and found["cd"].first.any()
    for size in (5, 8, 30):
        a, b = (accuracy(m, (x, y), sf.FGSM(eps=EPS), size) for m in (net, fixed))
        assert torch.equal(a.correct, b.correct) and a.attacked == b.attacked


def test_what_a_fixed_batch_is(exported):
    net, fixed, x, _ = exported
    dynamic = torch.export.export(net, (x[:8],), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert (fixed_size(fixed), fixed_size(nn.Sequential(fixed)), fixed_size(dynamic), fixed_size(net)) == (
        8,
        8,
        None,
        None,
    )
    assert any_batch(net) is net and any_batch(dynamic) is dynamic
    model = FixedBatch(fixed, 8)
    for rows in (1, 8, 9, 24, 26):
        torch.testing.assert_close(model(x[:rows]), net(x[:rows]))

    class Parts(nn.Module):
        def forward(self, *, pixels, scale, name):
            assert len(pixels) == 8 and scale.shape == (2,) and name == "n"
            return {"z": pixels * scale[0], "all": (pixels.sum((1, 2, 3)), scale, None)}

    found = FixedBatch(Parts(), 8)(pixels=x, scale=torch.tensor([2.0, 3.0]), name="n")
    torch.testing.assert_close(found["z"], 2 * x)
    torch.testing.assert_close(found["all"][0], x.sum((1, 2, 3)))
    assert found["all"][1].shape in ((2,), (8,)) and found["all"][2] is None


# ------------------------------------------------------------------------------------------ bad input


def other(model, x):
    return model(pixels=x)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda m, s: suite(m, [s], {"a": sf.PGD()}, output=1.5), TypeError, "output must be a name, an index"),
        (lambda m, s: suite(m, [s], {"a": sf.PGD()}, forward="f"), TypeError, "forward must be a callable .* got str"),
        (lambda m, s: suite(m, [s], {}, output="none", forward=call), ValueError, "output='none' is not in what"),
        (lambda m, s: suite(m, [s], {}, forward=call), ValueError, "logits of shape .* got dict with .* output="),
        (lambda m, s: suite(m, [s], {"a": sf.PGD(forward=other)}, **READ), ValueError, "a: .*not the evaluation's"),
        (lambda m, s: accuracy(m, s, sf.PGD(forward=other), **READ), ValueError, "PGD: .*give the evaluation the same"),
        (lambda m, s: final_margins(m, s, sf.PGD(forward=other)), ValueError, "not the evaluation's"),
        (lambda m, s: accuracy(m, s, output=[1]), TypeError, "output must be"),
        (lambda m, s: accuracy(m, s, output="scores", forward=3), TypeError, "forward must be"),
        (lambda m, s: accuracy(lambda x: x, s), TypeError, "accuracy needs a module, got function"),
        (lambda m, s: standard_attacks(output=1.5), TypeError, "output must be"),
        (lambda m, s: sf.targets.choose(m, *s, forward="f"), TypeError, "forward must be"),
        (
            lambda m, s: suite(m, [s, s], {"a": sf.PGD(mask=torch.ones(50, 1, 4, 4, dtype=torch.bool))}, **READ),
            ValueError,
            "a: a mask for each sample is of one batch",
        ),
        (
            lambda m, s: suite(m, iter([s]), {"a": sf.PGD(mask=torch.ones(50, 1, 4, 4, dtype=torch.bool))}, **READ),
            ValueError,
            "a: a mask for each sample is of one batch",
        ),
        (
            lambda m, s: suite(m, [s], {"a": sf.SimBA(mask=torch.ones(50, 1, 4, 4, dtype=torch.bool))}, **READ),
            ValueError,
            r"a: with a mask for each sample this attack needs suite\(compact=False\)",
        ),
        (
            lambda m, s: accuracy_against_eps(m, s, sf.PGD(eps=EACH), [0.1], **READ),
            ValueError,
            "the attack's eps is one a channel or sample",
        ),
        (
            lambda m, s: masking_signs(m, s, sf.PGD(bounds=(LOW, HIGH)), **READ),
            ValueError,
            "masking_signs needs bounds that are numbers",
        ),
        (
            lambda m, s: steps_plateau(m, s, attack=sf.FGSM(), **READ),
            TypeError,
            "needs an attack that has steps, got FGSM",
        ),
    ],
)
def test_bad_input(net, samples, make, error, text):
    with pytest.raises(error, match=text) as found:
        make(Named(net), samples)
    assert "\n" not in str(found.value)
