"""early_stop and stop_after: against loops that take one sample at a time, and against a twin of fast_adversarial's."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soatfast.attacks import MIFGSM, PGD, FrankWolfe, NearPGD, TargetedPGD
from soatfast.evaluate import accuracy
from soatfast.evaluate.watch import can_watch
from soatfast.gradients import count_passes
from soatfast.gradients import engine as engine_module
from soatfast.gradients.parts import mixes_samples
from soatfast.losses import AdversarialTraining
from soatfast.memory import PerturbationMemory
from tests.nets import batch, conv_net, relu_net

EPS, ALPHA, STEPS = 0.3, 0.03, 8


def problem(n=24, dtype=torch.float64):
    """Some samples are wrong at once, some fall on the way, some never; labels are the predictions of a nearby net."""
    torch.manual_seed(0)
    model = relu_net(dtype)
    x, _ = batch(n, dtype=dtype)
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    return model, x, y


def gradient(model, x, y, sign):
    leaf = x.clone().requires_grad_()
    return sign * torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)[0]


def unit(g, p):
    return g.sign() if p == math.inf else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


def project(delta, x, p, eps, bounds):
    if p == math.inf:
        delta = delta.clamp(-eps, eps)
    else:
        delta = delta * (eps / delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).clamp_max(1)
    return (x + delta).clamp(*bounds)


def alone(attack, model, x, y, sign=1.0):
    """(x_adv, passes) of one sample, step by step as the docstrings have it, from x."""
    left, passes = attack.stop_after, 0
    momentum, v, x_adv = torch.zeros_like(x), None, x
    for k in range(attack.steps + isinstance(attack, FrankWolfe)):
        passes += 1
        g = gradient(model, x_adv, y, sign)
        reached = bool((model(x_adv).argmax(1) == y).item())
        if reached == (sign < 0):
            if left == 0:
                break
            left -= 1
        if isinstance(attack, FrankWolfe):
            s = attack.eps * unit(g, attack.p)
            v = s if v is None else v + 2 / (k + 1) * (s - v)
            x_adv = (x + v).clamp(*attack.bounds)
        else:
            if isinstance(attack, MIFGSM):
                momentum = attack.decay * momentum + g / g.abs().sum()
                g = momentum
            x_adv = project(x_adv + attack.step_size * unit(g, attack.p) - x, x, attack.p, attack.eps, attack.bounds)
    return x_adv, passes


LINF = {"eps": EPS, "steps": STEPS, "step_size": ALPHA, "early_stop": True}
L2 = {"eps": 1.0, "p": 2, "steps": STEPS, "step_size": 0.15, "early_stop": True}
ATTACKS = [
    PGD(**LINF, random_start=False),
    PGD(**L2, random_start=False),
    PGD(**LINF, random_start=False, stop_after=1),
    PGD(**LINF, random_start=False, stop_after=3),
    PGD(**LINF, random_start=False, targeted=True),
    PGD(**LINF, random_start=False, mode="keep"),
    MIFGSM(**LINF),
    MIFGSM(**L2, stop_after=2, bounds=(-9.0, 9.0)),  # the box is far: the step is that of the ball
    FrankWolfe(eps=0.06, steps=5, early_stop=True, init="lmo"),
    FrankWolfe(eps=0.4, p=2, steps=5, early_stop=True, stop_after=1, in_box=False),
    FrankWolfe(eps=0.06, steps=5, early_stop=True, init="lmo", targeted=True),
]


def name(attack):
    return f"{type(attack).__name__}-{attack.p}-tau{attack.stop_after}-{attack.targeted}-{attack.mode}"


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_each_sample_is_the_one_attacked_alone_at_its_passes(attack):
    model, x, y = problem()
    if attack.targeted:
        y = (y + 1) % 4
    sign = -1.0 if attack.targeted else 1.0
    pairs = [alone(attack, model, x[i : i + 1], y[i : i + 1], sign) for i in range(len(x))]
    expected, passes = torch.cat([x_adv for x_adv, _ in pairs]), [n for _, n in pairs]
    most = attack.passes(1).forward
    assert min(passes) < most and len(set(passes)) > 1, "a case with something in it"
    with count_passes(model) as counted:
        x_adv = attack(model, x, y)
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-9)
    total = counted.total()
    assert total.forward == max(passes) and total.forward_samples == sum(passes) == total.backward_input_samples
    assert total.forward_samples < attack.passes(len(x)).forward_samples


def attack_pgd(model, X, y, epsilon, alpha, attack_iters):
    """One restart of the MNIST script, from its description: the samples still right take the step, the others stay."""
    delta = torch.empty_like(X).uniform_(-1, 1) * epsilon
    delta = (X + delta).clamp(0, 1) - X
    for _ in range(attack_iters):
        leaf = (X + delta).requires_grad_()
        output = model(leaf)
        index = output.argmax(1) == y
        if not index.any():
            break
        (grad,) = torch.autograd.grad(F.cross_entropy(output, y), leaf)
        d = (delta + alpha * grad.sign()).clamp(-epsilon, epsilon)
        d = (X + d).clamp(0, 1) - X
        delta[index] = d[index]
    return X + delta


@pytest.mark.parametrize("training", [False, True])
def test_fast_adversarials_attack_step_for_step(training):
    """Also in train mode with batch norm, where all samples are in every pass, and one may turn right again."""
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 20), nn.BatchNorm1d(20) if training else nn.Identity(), nn.ReLU(), nn.Linear(20, 4)
    ).double()
    model.train(training)
    x, _ = batch(32)
    y = model(x).argmax(1)
    attack = PGD(eps=0.2, steps=12, step_size=0.02, early_stop=True, mode="keep")
    with count_passes(model) as counted:
        torch.manual_seed(7)
        x_adv = attack(model, x, y)
    torch.manual_seed(7)
    torch.testing.assert_close(x_adv, attack_pgd(model, x, y, 0.2, 0.02, 12), rtol=0, atol=1e-12)
    total = counted.total()
    assert (total.forward_samples < 32 * total.forward) == (not training)
    full = dataclasses.replace(attack, early_stop=False)
    torch.manual_seed(7)
    assert (x_adv - x).abs().mean() < (full(model, x, y) - x).abs().mean()


def test_what_one_restart_has_fooled_takes_no_part_in_the_next():
    model, x, y = problem(64)
    attack = PGD(eps=0.12, steps=4, step_size=0.04, restarts=3, early_stop=True)
    torch.manual_seed(1)
    with count_passes(model) as counted:
        x_adv = attack(model, x, y)
    torch.manual_seed(1)
    expected, done, asked = x.clone(), torch.zeros(64, dtype=torch.bool), 0
    best = torch.full((64,), -math.inf, dtype=x.dtype)
    for _ in range(3):
        start = (x + 0.12 * torch.empty_like(x).uniform_(-1, 1)).clamp(0, 1)
        for i in (~done).nonzero().flatten().tolist():
            point, label = start[i : i + 1], y[i : i + 1]
            for _ in range(4):
                asked += 1
                if model(point).argmax(1) != label:
                    break
                g = gradient(model, point, label, 1.0)
                point = project(point + 0.04 * g.sign() - x[i : i + 1], x[i : i + 1], math.inf, 0.12, (0, 1))
            else:
                asked += 1  # the last point is scored
            z = model(point)
            done[i], loss = bool(z.argmax(1) != label), F.cross_entropy(z, label).item()
            if done[i] or loss > best[i]:
                expected[i], best[i] = point[0], loss
    assert 3 < done.sum() < 64
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)
    assert counted.total().forward_samples == asked < attack.passes(64).forward_samples
    assert counted.total().forward <= attack.passes(64).forward


@pytest.mark.parametrize("restarts", [1, 2])
@pytest.mark.parametrize("stop_after", [0, 2])
def test_best_keeps_the_strongest_point_of_the_path(restarts, stop_after):
    model, x, y = problem(40)
    settings = {"eps": 0.15, "steps": 6, "step_size": 0.03, "random_start": False, "restarts": restarts}
    attack = PGD(**settings, best=True, early_stop=True, stop_after=stop_after)
    x_adv = attack(model, x, y)
    full = PGD(**settings, best=True)(model, x, y)
    assert torch.equal(model(x_adv).argmax(1) != y, model(full).argmax(1) != y)
    last = PGD(**settings, early_stop=True, stop_after=stop_after)(model, x, y)
    a, b = (F.cross_entropy(model(t), y, reduction="none") for t in (x_adv, last))
    assert (a >= b - 1e-12).all()


def test_a_targeted_sample_leaves_at_its_target_and_not_before():
    model, x, y = problem()
    attack = TargetedPGD(eps=EPS, steps=20, step_size=0.02, rule="least-likely", early_stop=True, random_start=False)
    r = model(x).scatter(1, y[:, None], math.inf).argmin(1)
    x_adv = attack(model, x, y)
    full = dataclasses.replace(attack, early_stop=False)(model, x, y)
    reached = model(x_adv).argmax(1) == r
    assert 0 < reached.sum() < len(x)
    assert (x_adv - x)[reached].abs().sum() < (full - x)[reached].abs().sum()
    assert torch.equal(x_adv[~reached], full[~reached])


@pytest.mark.parametrize("noise", [0.001, 0.5])
def test_a_start_that_fools_is_in_ball_and_box(noise):
    model, x, y = problem()
    x_adv = NearPGD(eps=0.1, steps=3, noise=noise, early_stop=True)(model, x.round(), y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and (x_adv - x.round()).abs().max() <= 0.1 + 1e-9


def test_with_a_radius_for_each_sample_or_entry_and_a_mask():
    model, x, y = problem()
    attack = PGD(**LINF, random_start=False)
    expected = attack(model, x, y)
    each = dataclasses.replace(attack, eps=torch.full((24,), EPS, dtype=x.dtype))
    torch.testing.assert_close(each(model, x, y), expected, rtol=0, atol=1e-12)
    entries = dataclasses.replace(attack, eps=torch.full((1, 1, 1), EPS, dtype=x.dtype))
    torch.testing.assert_close(entries(model, x, y), expected, rtol=0, atol=1e-9)
    torch.manual_seed(4)
    mask = torch.rand(24, 1, 4, 4) < 0.7
    masked = dataclasses.replace(attack, mask=mask)
    with count_passes(model) as counted:
        x_adv = masked(model, x, y)
    assert not (x_adv != x)[~mask].any() and (x_adv != x)[mask].any()
    assert counted.total().forward_samples == 24 * counted.total().forward, "a mask for each sample: whole batches"
    ones = [dataclasses.replace(attack, mask=mask[i : i + 1])(model, x[i : i + 1], y[i : i + 1]) for i in range(24)]
    torch.testing.assert_close(x_adv, torch.cat(ones), rtol=0, atol=1e-12)


def test_frank_wolfe_stops_by_its_gap_or_once_fooled():
    model, x, y = problem(60)
    settings = {"eps": 0.05, "steps": 6, "init": "lmo", "in_box": True, "h": 1.0}
    passes = []
    for fields in ({"tol": 0.05}, {"early_stop": True}, {"tol": 0.05, "early_stop": True}):
        with count_passes(model) as counted:
            x_adv = FrankWolfe(**settings, **fields)(model, x, y)
        passes.append(counted.total().forward_samples)
        assert (model(x_adv).argmax(1) != y).sum() > 3
    assert passes[2] < passes[0] and passes[2] < passes[1]


class Statistics(nn.Module):
    """Batch statistics that no class of torch keeps."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        return x - (x.mean(0) if self.training else self.mean)


def test_which_modules_mix_samples():
    bare = nn.BatchNorm1d(4, track_running_stats=False).eval()
    assert mixes_samples([bare]) and mixes_samples([nn.SyncBatchNorm(4)]) and mixes_samples([Statistics()])
    plain = [nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Dropout(), nn.InstanceNorm2d(3), Statistics().eval(), relu_net()]
    assert not mixes_samples(plain)


@pytest.mark.parametrize("mode", ["train", "keep", "eval"])
def test_statistics_of_ones_own_are_found(mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Statistics(), nn.Linear(16, 4)).double().train()
    x, y = batch(12)
    with count_passes(model) as counted:
        PGD(**LINF, mode=mode)(model, x, y)
    total = counted.total()
    assert (total.forward_samples == 12 * total.forward) == (mode != "eval")


def test_the_model_is_left_as_it_was():
    model = conv_net().train()
    x, y = batch(8, (3, 8, 8), 5, torch.float32)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    for mode in ("eval", "train", "keep"):
        PGD(eps=0.1, steps=4, early_stop=True, mode=mode)(model, x, y)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_compiled_or_exported_model_is_asked_about_whole_batches(monkeypatch):
    model, x, y = problem()
    expected = PGD(**LINF, random_start=False)(model, x, y)
    compiled = torch.compile(model, backend="eager")
    exported = torch.export.export(model, (x,)).module()
    for each in (compiled, exported):
        torch.testing.assert_close(PGD(**LINF, random_start=False)(each, x, y), expected, rtol=0, atol=1e-9)
    monkeypatch.setattr(engine_module, "_compiled", lambda forward: torch.compile(forward, backend="eager"))
    with count_passes(model) as counted:
        by_engine = PGD(**LINF, random_start=False, engine="compile")(model, x, y)
    torch.testing.assert_close(by_engine, expected, rtol=0, atol=1e-9)
    assert counted.total().forward_samples == 24 * counted.total().forward


def test_half_precision_and_channels_last():
    model, x, y = problem(dtype=torch.float32)
    x_adv = PGD(**LINF)(model.to(torch.bfloat16), x.to(torch.bfloat16), y)
    assert x_adv.dtype == torch.bfloat16 and (x_adv.float() - x.bfloat16().float()).abs().max() <= EPS * (1 + 1e-6)
    net = conv_net().eval()
    images, labels = batch(8, (3, 8, 8), 5, torch.float32)
    a = PGD(**LINF, random_start=False)(net, images, labels)
    b = PGD(**LINF, random_start=False, engine="channels_last")(net, images, labels)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_in_training_and_in_evaluation():
    model, x, y = problem()
    attack = PGD(**LINF, mode="keep")
    loss = AdversarialTraining(attack)
    with count_passes(model) as counted:
        loss(model, x, y).backward()
    total, most = counted.total(), loss.passes(24)
    assert total.backward_input_samples < most.backward_input_samples and total.backward_parameters == 1
    assert not can_watch(attack, x) and can_watch(dataclasses.replace(attack, early_stop=False), x)
    assert can_watch(FrankWolfe(), x) and not can_watch(FrankWolfe(early_stop=True), x)
    assert 0 < accuracy(model, [(x, y)], attack).accuracy < 1
    assert loss.with_eps(0.1).attack.early_stop


def test_an_empty_batch_and_one_that_is_wrong_from_the_start():
    model, x, y = problem()
    assert PGD(**LINF)(model, x[:0], y[:0]).shape == (0, 1, 4, 4)
    wrong = (model(x).argmax(1) + 1) % 4
    with count_passes(model) as counted:
        x_adv = PGD(**LINF, random_start=False)(model, x, wrong)
    assert torch.equal(x_adv, x) and counted.total().forward == 1


@pytest.mark.parametrize("cls", [PGD, MIFGSM, FrankWolfe, NearPGD, TargetedPGD])
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"early_stop": "yes"}, TypeError, "early_stop must be True or False, got 'yes'"),
        ({"early_stop": True, "stop_after": 1.0}, TypeError, "stop_after must be a whole number, got 1.0"),
        ({"early_stop": True, "stop_after": math.nan}, TypeError, "stop_after must be a whole number, got nan"),
        ({"early_stop": True, "stop_after": True}, TypeError, "stop_after must be a whole number, got True"),
        ({"early_stop": True, "stop_after": "2"}, TypeError, "stop_after must be a whole number, got '2'"),
        ({"early_stop": True, "stop_after": -1}, ValueError, "stop_after must be at least 0, got -1"),
        ({"stop_after": 2}, ValueError, "stop_after needs early_stop=True, got stop_after=2"),
        ({"early_stop": True, "engine": "bf16+graph"}, ValueError, "takes no engine with \"graph\".*'bf16.graph'"),
        ({"early_stop": True, "stop_afer": 2}, TypeError, "stop_afer"),
    ],
)
def test_bad_fields(cls, fields, error, message):
    with pytest.raises(error, match=message) as raised:
        cls(**fields)
    assert "\n" not in str(raised.value)


def test_bad_combinations():
    model, x, y = problem()
    memory = PerturbationMemory(24, (1, 4, 4))
    for attack in (PGD(early_stop=True), FrankWolfe(early_stop=True)):
        with pytest.raises(ValueError, match=r"with a memory .* takes early_stop=False"):
            AdversarialTraining(attack, memory=memory)
    for fields in ({"scheme": "cd"}, {"scheme": "exact"}, {"h": 1.05}, {"init": "raw"}):
        with pytest.raises(
            ValueError, match=r'early_stop takes scheme="fe", h=1 \(or None\) and init="scaled" or "lmo"'
        ):
            FrankWolfe(early_stop=True, **fields)
    soft = torch.full((24, 4), 0.25)
    attack = PGD(**LINF, objective=lambda z, t: -(t * z.log_softmax(1)).sum(1))
    with pytest.raises(ValueError, match=r"early_stop needs labels y \(B,\), got torch.float32 of shape \(24, 4\)"):
        attack(model, x, soft)
    with pytest.raises(ValueError, match=r"early_stop needs logits \(B, K\), got a model's output of shape \(24, 4, 4"):
        PGD(**LINF, objective=lambda z, t: z.flatten(1).sum(1))(nn.Conv2d(1, 4, 1).double(), x, y)
