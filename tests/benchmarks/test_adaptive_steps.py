"""benchmarks.adaptive_steps: the rule against fixed numbers of steps, its budget, the gains, and one small run."""

import json
import math

import pytest
import torch

from benchmarks import adaptive_steps
from benchmarks.adaptive_steps import Clock, GapFrankWolfe, GapSCORPIO, PlannedSCORPIO, Rule, Study
from soatfast import ops
from soatfast.attacks import FrankWolfe
from soatfast.gradients import count_passes
from soatfast.losses import SCORPIO
from tests.nets import relu_net

COMMON = {"eps": 0.2, **adaptive_steps.SOLVER}


@pytest.fixture
def batch():
    return relu_net(torch.float32), torch.rand(6, 1, 4, 4), torch.randint(0, 4, (6,))


def by_rule(batch, **rule):
    """The rule's result and its passes a sample."""
    with count_passes(batch[0]) as passes:
        x_adv = GapFrankWolfe(steps=5, rule=Rule(**rule), **COMMON)(*batch)
    return x_adv, passes.backward_input_samples / len(batch[1])


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(("tau", "steps"), [(-1.0, 5), (math.inf, 1)])
def test_a_rule_that_never_or_at_once_stops_is_the_fixed_number(batch, tau, steps, each):
    x_adv, passes = by_rule(batch, tau=tau, each=each)
    assert passes == steps + 1
    torch.testing.assert_close(x_adv, FrankWolfe(steps=steps, **COMMON)(*batch), rtol=0, atol=1e-6)


def gradient(model, x, y):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(torch.nn.functional.cross_entropy(model(x), y, reduction="sum"), x)[0]


def gaps(batch):
    """<g(x + v_k), s_k - v_k> of each sample and step, in plain PyTorch."""
    model, x, y = batch

    def best(g):
        return (x + 0.2 * g.sign()).clamp(0, 1) - x

    v, found = best(gradient(model, x, y)), []
    for k in range(5):
        g = gradient(model, x + v, y)
        found.append((g * (best(g) - v)).flatten(1).sum(1))
        v = v + 2 / (k + 2) * (best(g) - v)
    return torch.stack(found)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("each", [False, True])
def test_a_step_whose_gap_is_below_tau_is_the_last(batch, share, each):
    found = gaps(batch)
    found = found if each else found.mean(1, keepdim=True).expand(5, 6)
    tau = 1.01 * ((found / found[0])[1:] if share else found).median().item()  # no gap is on the border
    below = found < (tau * found[0] if share else tau)
    steps = [[*column.nonzero().flatten().tolist(), 4][0] + 1 for column in below.T]
    assert len(set(steps)) > 1 or not each, "the samples must differ for this test to say anything"
    x_adv, passes = by_rule(batch, tau=tau, share=share, each=each)
    assert passes == pytest.approx(1 + sum(steps) / 6)
    for i, n in enumerate(steps):
        fixed = FrankWolfe(steps=n, **COMMON)(*batch)[i]
        torch.testing.assert_close(x_adv[i], fixed, rtol=0, atol=1e-5)


def test_fooled_samples_leave(batch):
    model, x = batch[0], torch.rand(20, 1, 4, 4)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    batch = model, x, y
    plain = [FrankWolfe(steps=n, **COMMON)(*batch) for n in range(1, 6)]
    probes = [x, (x + ops.lmo(gradient(model, x, y), math.inf, 0.2)).clamp(0, 1), *plain[:-1]]
    reached = torch.stack([model(probe).argmax(1) != y for probe in probes])
    assert 0 < reached[0].sum() < reached.any(0).sum() < 20, (
        "some must be fooled from the start, some later, some never"
    )
    x_adv, passes = by_rule(batch, tau=-math.inf, each=True, fooled=True)
    at = [[*column.nonzero().flatten().tolist(), 5][0] for column in reached.T]
    assert passes == pytest.approx(1 + sum(at) / 20)
    for i, k in enumerate(at):
        if k:  # what was wrong from the start may be anything
            torch.testing.assert_close(x_adv[i], [*probes, plain[-1]][k][i], rtol=0, atol=1e-5)


def test_chance_asks_no_gap(batch):
    _, passes = by_rule(batch, tau=0.0, each=True, chance=True)
    assert passes == 6
    _, passes = by_rule(batch, tau=1.0, each=True, chance=True)
    assert passes == 2


def test_an_unknown_training():
    with pytest.raises(SystemExit, match=r"trainings are fixed-1, .*; got fixed-7"):
        Study(only=("fixed-2", "fixed-7"))


def test_a_budget_steers_the_mean_number_of_steps(batch):
    model, x, y = batch
    rule = Rule(0.0, each=True, budget=2)
    attack = GapFrankWolfe(steps=5, rule=rule, **COMMON)
    rule.tau = 1e-6
    for i in range(150):
        torch.manual_seed(i)
        attack(model, torch.rand_like(x), y)
    assert len(rule.taken) == 150 and sum(rule.taken[-50:]) / 50 == pytest.approx(2, abs=0.2)


def test_the_losses_take_the_rule_and_the_plan(batch):
    options = {"eps": 0.2, "mode": "keep", **adaptive_steps.SOLVER}
    fixed = SCORPIO(steps=3, **options)(*batch)
    ruled = GapSCORPIO(steps=3, rule=Rule(-1.0), **options).with_eps(0.2)(*batch)
    torch.testing.assert_close(ruled, fixed)
    clock = Clock()
    planned = PlannedSCORPIO(plan=(1, 2, 3), epochs=6, clock=clock, **options)
    steps = []
    for epoch in range(6):
        steps.append(planned.attack.steps)
        clock.epoch({"epoch": epoch + 1})
    assert steps == [1, 1, 2, 2, 3, 3]


def test_gains_are_against_the_line_between_fixed_numbers_of_steps():
    fixed = [[{"passes": 2, "accuracy": 80}, {"passes": 3, "accuracy": 70}]] * 2
    rows = [{"passes": 2.5, "accuracy": 74}, {"passes": 3, "accuracy": 70}]
    assert adaptive_steps.gains(rows, fixed, "accuracy") == [-1, 0]


def test_a_small_study(tmp_path, monkeypatch):
    chosen = {name: adaptive_steps.TRAININGS[name] for name in ("fixed-2", "fixed-3", "each-2", "grow-123", "pgd10")}
    monkeypatch.setattr(adaptive_steps, "TRAININGS", chosen)
    monkeypatch.setattr(adaptive_steps, "FIXED", range(1, 3))
    monkeypatch.setattr(adaptive_steps, "RULES", {"gap of each sample": (("0.1", 3, Rule(0.1, each=True)),)})
    monkeypatch.setattr(adaptive_steps, "EPS", 0.1)
    study = Study(run_dir=tmp_path, epochs=3, seeds=1, train_samples=100, test_samples=10)
    adaptive_steps.run(study)
    page = (tmp_path / "adaptive-steps.md").read_text(encoding="utf-8")
    assert "| N = 2 " in page and "| gap of each sample, 0.1 " in page and "| N = 1, 2, 3 by thirds" in page
    assert (tmp_path / "adaptive-steps.png").stat().st_size > 5_000
    passes = {path.parts[-3]: json.loads(path.read_text())["passes"] for path in tmp_path.glob("*/*/figures.json")}
    assert passes["fixed-3"] == 5 and passes["grow-123"] == 4 and passes["pgd10"] == 11
    marked = tmp_path / "fixed-2" / "seed-0" / "figures.json"
    marked.write_text(marked.read_text().replace('"clean": ', '"clean": 1'))
    assert adaptive_steps.trained(study, "fixed-2", 0)["clean"] >= 10, "a finished training is not repeated"
