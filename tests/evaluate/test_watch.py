"""What is noted while an attack runs: against a plain replay of its points; and what leaving the passes changes."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from soatfast.attacks import ASOD, FGSM, HAAT, MIFGSM, PGD, PIFGSM, SOAE, FrankWolfe, Jitter, NearPGD
from soatfast.attacks.named import TL, TM, UL, UM
from soatfast.evaluate.batch import attack_batch, clean_batch, seeded
from soatfast.evaluate.masking import Noise
from soatfast.evaluate.watch import can_watch
from tests.nets import batch, conv_net, relu_net, smooth_net

EPS = 0.12
ATTACKS = {
    "fgsm": FGSM(eps=EPS),
    "pgd": PGD(eps=EPS, steps=6),
    "pgd-best": PGD(eps=EPS, steps=5, best=True),
    "pgd-restarts": PGD(eps=EPS, steps=3, restarts=3),
    "pgd-l2": PGD(eps=0.4, p=2, steps=5),
    "pgd-l1": PGD(eps=1.0, p=1, steps=5),
    "pgd-margin": PGD(eps=EPS, steps=5, objective="margin"),
    "near": NearPGD(eps=EPS, steps=4, noise=0.3),
    "noise": Noise(eps=EPS, steps=9),
    "fe": FrankWolfe(eps=EPS, steps=4),
    "fe-true": FrankWolfe(eps=EPS, steps=4, h=1.0),
    "cd": FrankWolfe(eps=EPS, steps=4, scheme="cd", h=0.5),
    "exact": FrankWolfe(eps=EPS, steps=4, scheme="exact"),
    "newton": SOAE(eps=EPS, steps=3, max_dim=4),
    "newton-cd": SOAE(eps=EPS, steps=3, max_dim=4, scheme="cd"),
    "newton-exact": SOAE(eps=EPS, steps=3, max_dim=4, scheme="exact"),
    "newton-gn": SOAE(eps=EPS, steps=3, scheme="gn"),
    "tr": SOAE(eps=EPS, steps=3, max_dim=3, variant="tr"),
    "haat": HAAT(eps=EPS, steps=3, power=2),
    "mifgsm": MIFGSM(eps=EPS, steps=5),
    "sinifgsm": MIFGSM(eps=EPS, steps=4, nesterov=True, scales=2),
    "vmifgsm": MIFGSM(eps=EPS, steps=4, neighbours=2),
    "pifgsm": PIFGSM(eps=EPS, steps=4),
    "jitter": Jitter(eps=EPS, steps=4),
    "asod": ASOD(eps=EPS, steps=3, samples=2, sigma=0.1),
    "ul": UL(eps=EPS, steps=4),
    "tl": TL(eps=EPS, steps=4, classes=4),
    "um": UM(eps=EPS, steps=4),
    "tm": TM(eps=EPS, steps=4, classes=4),
}


def samples(net, n=40, wrong=4):
    x, y = batch(n, dtype=torch.float64)
    with torch.no_grad():
        predicted = net(x).argmax(1)
    return x, torch.where(torch.arange(n) % wrong == 0, y, predicted)


def run(net, attack, x, y, compact, seed=7):
    net.eval()
    before, _ = clean_batch(net, x, y)
    return attack_batch(net, attack, x, y, before, seed, compact, quality=True)[1]


class Spy(nn.Module):
    """Keeps every point that it is asked about."""

    def __init__(self, net):
        super().__init__()
        self.net, self.points = net, []

    def forward(self, x):
        self.points.append(x.detach().clone())
        return self.net(x)


def replay(net, attack, x, y, seed=7):
    """Sample by sample: (correct, first, norm, margin, PSNR) from the points of a run that nobody watches."""
    spy = Spy(net).eval()
    with seeded(attack, seed):
        final = attack(spy, x, y)
    calls = [points.split(len(x)) for points in spy.points] + [(final,)]
    found = []
    for i in range(len(x)):
        answer = None
        if net(x[i : i + 1]).argmax(1) != y[i]:
            answer = (False, 0, x[i])
        for number, copies in enumerate(calls, 1):
            for points in copies:
                point, last = points[i], number == len(calls)
                inside = float((point - x[i]).norm(p=attack.p)) <= attack.eps * (1 + 1e-5)
                inside = inside and float(point.min()) >= -1e-5 and float(point.max()) <= 1 + 1e-5
                fools = net(point[None]).argmax(1) != y[i]
                if answer is None and fools and (inside or last):
                    answer = (False, number, point)
        correct, first, point = answer or (True, 0, final[i])
        z = net(point[None])[0]
        margin = z[y[i]] - torch.cat([z[: y[i]], z[y[i] + 1 :]]).max()
        delta = point - x[i]
        psnr = -10 * math.log10(float((delta**2).mean())) if delta.any() else math.inf
        found.append((correct, first, float(delta.norm(p=attack.p)), float(margin), psnr))
    return (np.array(column) for column in zip(*found, strict=True))


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_the_records_are_those_of_a_replay(name, compact):
    attack = ATTACKS[name]
    net = smooth_net() if name == "exact" else relu_net()
    x, y = samples(net)
    with torch.no_grad():
        correct, first, norm, margin, psnr = replay(net, attack, x, y)
    cell = run(net, attack, x, y, compact).records
    assert np.array_equal(cell["correct"], correct)
    assert 0 < correct.sum() < len(x) - 10, "the attack fools some"
    assert np.array_equal(cell["first"], first)
    np.testing.assert_allclose(cell["norm"], norm, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cell["margin"], margin, rtol=1e-4, atol=1e-5)
    assert np.array_equal(cell["margin"] > 0, correct)
    np.testing.assert_allclose(cell["psnr"], psnr, rtol=1e-5)
    assert np.isinf(psnr).any() and np.isnan(cell["ssim"]).all(), "a 4 x 4 image has no window of 11 x 11"


@pytest.mark.parametrize("name", ATTACKS)
def test_passes_of_the_samples_add_up_and_plain_is_what_is_asked(name):
    attack = ATTACKS[name]
    net = smooth_net()
    x, y = samples(net)
    active, plain = (run(net, attack, x, y, compact) for compact in (True, False))
    for cell in (active, plain):
        assert cell.records["forward"].sum() == cell.passes.forward_samples
        assert cell.records["backward"].sum() == cell.passes.backward_input_samples
        assert cell.passes.backward_parameters == 0
    assert plain.asked == (plain.passes.forward_samples, plain.passes.backward_input_samples)
    assert all(a <= b for a, b in zip(active.asked, plain.asked, strict=True))
    assert active.passes.forward_samples < plain.passes.forward_samples
    if not isinstance(attack, SOAE):  # which stops once all samples are solved
        assert active.asked == plain.asked


def test_a_sample_leaves_with_the_pass_that_fools_it():
    net = relu_net()
    x, y = samples(net)
    cell = run(net, PGD(eps=EPS, steps=6), x, y, True).records
    clean = (net(x).argmax(1) == y).numpy()
    expected = np.where(cell["first"] > 0, cell["first"], 7) * clean
    assert np.array_equal(cell["forward"], expected)
    assert np.array_equal(cell["backward"], np.minimum(expected, 6))
    assert np.array_equal(cell["attacked"], clean)
    assert (cell["norm"][~clean] == 0).all()


def test_when_all_are_fooled_the_model_is_asked_no_more():
    net = relu_net()
    x, y = samples(net)
    cell = run(net, PGD(eps=1.0, steps=50), x, y, True)
    assert not cell.records["correct"].any()
    assert cell.passes.forward < 20 and cell.asked == (51 * 40, 50 * 40)
    nothing = run(net, PGD(eps=0.1), x, (net(x).argmax(1) + 1) % 4, True)
    assert nothing.passes.forward == 0 and not nothing.records["attacked"].any()


def test_what_cannot_be_watched():
    x = torch.rand(2, 3)
    assert can_watch(PGD(), x) and can_watch(SOAE(mode="keep"), x)
    assert not can_watch(PGD(mode="train"), x), "its passes predict otherwise"
    assert not can_watch(PGD(engine="bf16"), x) and not can_watch(PGD(engine="fp16+compile"), x)
    assert can_watch(PGD(engine="channels_last+compile"), x) and can_watch(PGD(mask=x[0] > 0), x)
    assert not can_watch(PGD(), x.half())
    assert not can_watch(SOAE(compact=True), x), "asks about parts of the batch"
    assert not can_watch(lambda model, x, y: x, x)


@pytest.mark.parametrize("compact", [True, False])
def test_an_attack_that_is_not_watched_is_judged_by_its_final_example(compact):
    net = relu_net()
    x, y = samples(net)
    inner = PGD(eps=EPS, steps=3, random_start=False)
    asked = []

    def attack(model, x, y):
        asked.append(len(x))
        return inner(model, x, y)

    cell = run(net, attack, x, y, compact)
    clean = net(x).argmax(1) == y
    final = inner(net, x, y)
    expected = clean & (net(final).argmax(1) == y)
    assert np.array_equal(cell.records["correct"], expected.numpy())
    assert asked == [int(clean.sum()) if compact else 40]
    assert cell.records["forward"].sum() == pytest.approx(4 * asked[0]) == cell.passes.forward_samples
    assert cell.asked == (4 * 40, 3 * 40)
    norm = (final - x).flatten(1).norm(p=math.inf, dim=1)
    np.testing.assert_allclose(cell.records["norm"], torch.where(clean, norm, 0.0).numpy(), rtol=1e-6)


def test_the_model_and_random_numbers_are_left_alone():
    net = conv_net(channels=1, classes=4).eval()
    net[0].weight.requires_grad_(False)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    x, y = batch(6, dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    attack = PGD(eps=EPS, steps=3, generator=generator)
    mine, global_state = generator.get_state(), torch.get_rng_state()
    one, two = (run(net, attack, x, y, compact=False).records for _ in range(2))
    assert all(np.array_equal(one[key], two[key], equal_nan=True) for key in one), "its own generator is seeded too"
    assert torch.equal(generator.get_state(), mine) and torch.equal(torch.get_rng_state(), global_state)
    assert [p.requires_grad for p in net.parameters()] == [False, *[True] * 5]
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert not net._forward_hooks


@pytest.mark.parametrize(
    ("name", "engine"),
    [("pgd", "channels_last"), ("asod", "channels_last"), ("pgd", "channels_last+compile"), ("fe-true", "graph")],
)
def test_samples_leave_with_every_exact_engine(name, engine):
    """The model is compiled behind the watch, with any number of rows; what "graph" would record runs eagerly."""
    net = conv_net(channels=1, classes=4).eval()
    x, y = batch(24, (1, 8, 8), dtype=torch.float32)
    y = torch.where(torch.arange(24) % 4 == 0, y, net(x).argmax(1))
    attack = dataclasses.replace(ATTACKS[name], eps=0.2)
    plain = run(net, attack, x, y, True)
    found = run(net, dataclasses.replace(attack, engine=engine), x, y, True)
    for key in ("correct", "first", "forward", "backward"):
        assert np.array_equal(found.records[key], plain.records[key]), key
    assert found.passes == plain.passes and plain.records["first"].astype(bool).sum() > 0
    assert found.passes.forward_samples < found.asked[0]
    assert "forward" not in vars(net) and net[0].weight.is_contiguous()


def test_a_batch_with_parts_is_refused():
    from soatfast.evaluate.watch import Watch

    net = relu_net().eval()
    x, y = samples(net)
    watch = Watch(net, x, clean_batch(net, x, y)[0], PGD())
    with pytest.raises(ValueError, match="asks about batches of 40, got 7 rows"):
        watch(x[:7])
