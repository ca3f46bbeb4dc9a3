"""TRADES against its formula, written out with autograd and a loop of its own."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from soatfast.attacks import NearPGD
from soatfast.gradients import count_passes
from soatfast.gradients.objectives import kl_divergence
from soatfast.losses import TRADES
from tests.nets import batch, relu_net, smooth_net


def norm_net():
    """Batch norm, but nothing random."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).double()


def kl(p, q):
    return (p * (p / q).log()).sum(1)


def attack_written_out(model, x, start, p, eps, steps, alpha):
    """x' of the paper's Algorithm 1 from a given start, a sample at a time."""
    rows = []
    for i in range(len(x)):
        clean = model(x[i : i + 1]).softmax(1).detach()
        x_adv = start[i : i + 1]
        for _ in range(steps):
            leaf = x_adv.detach().requires_grad_()
            (g,) = torch.autograd.grad(kl(clean, model(leaf).softmax(1)).sum(), leaf)
            if p == math.inf:
                x_adv = (x_adv + alpha * g.sign()).clamp(x[i] - eps, x[i] + eps)
            else:
                delta = x_adv + alpha * g / g.norm() - x[i]
                x_adv = x[i] + delta * min(1.0, eps / delta.norm().item())
            x_adv = x_adv.clamp(0, 1)
        rows.append(x_adv.detach())
    return torch.cat(rows)


def written_out(model, x, y, x_adv, beta):
    clean, adversarial = model(x).softmax(1), model(x_adv).softmax(1)
    return (-clean.gather(1, y[:, None]).log().squeeze(1) + beta * kl(clean, adversarial)).sum() / len(x)


def start_of(x, seed):
    torch.manual_seed(seed)
    return x + 0.001 * torch.empty_like(x).normal_()


def gradients(model, scalar):
    return torch.autograd.grad(scalar, list(model.parameters()))


def same(model, actual, expected):
    torch.testing.assert_close(actual, expected)
    for a, b in zip(gradients(model, actual), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("p", [math.inf, 2])
@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize(("beta", "step_size"), [(6.0, None), (1.0, 0.05), (0.0, 0.05)])
def test_equals_its_formula_in_value_and_gradient(p, mode, beta, step_size):
    model, (x, y) = smooth_net(), batch()
    loss = TRADES(eps=0.3, p=p, steps=4, step_size=step_size, beta=beta, mode=mode)
    alpha = step_size or (0.007 / 0.031 * 10 if p == math.inf else 2) * 0.3 / 4
    x_adv = attack_written_out(model, x, start_of(x, 7), p, 0.3, 4, alpha)
    torch.manual_seed(7)
    same(model, loss(model, x, y), written_out(model, x, y, x_adv, beta))


def test_default_step_is_the_papers():
    assert TRADES()._attack("ce")._alpha() == pytest.approx(0.007)
    assert TRADES(p=2, eps=0.5, steps=20)._attack("ce")._alpha() == pytest.approx(0.05)


def test_attack_in_eval_mode_and_loss_in_train_mode():
    model, twin = norm_net().train(), norm_net()
    x, y = batch(n=8)
    for net in (model, twin):
        net[2].running_mean += 0.1
    x_adv = attack_written_out(twin.eval(), x, start_of(x, 3), math.inf, 0.2, 3, 0.1)
    expected = written_out(twin.train(), x, y, x_adv, 6.0)
    torch.manual_seed(3)
    actual = TRADES(eps=0.2, steps=3, step_size=0.1)(model, x, y)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(gradients(model, actual), gradients(twin, expected), strict=True):
        torch.testing.assert_close(a, b)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert model[2].num_batches_tracked == 2 and all(m.training for m in model.modules())


def test_thirteen_forwards_of_ten_steps():
    model, (x, y) = norm_net().train(), batch()
    for mode, forwards in (("eval", 13), ("train", 13), ("keep", 12)):
        loss = TRADES(eps=0.1, mode=mode)
        with count_passes(model) as passes:
            loss(model, x, y).backward()
        assert passes.total() == loss.passes(6)
        assert (passes.forward, passes.backward_input, passes.backward_parameters) == (forwards, 10, 1)


def test_the_shared_forward_changes_nothing_but_the_passes():
    """In keep mode with batch norm in train mode too: statistics of the batch, updated twice."""
    models = [norm_net().train() for _ in range(2)]
    x, y = batch(n=8)
    values = []
    for model, mode in zip(models, ("train", "keep"), strict=True):
        torch.manual_seed(0)
        values.append(TRADES(eps=0.2, steps=3, mode=mode)(model, x, y))
        values[-1].backward()
    assert torch.equal(*values)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    assert all(torch.equal(a, b) for a, b in zip(models[0].buffers(), models[1].buffers(), strict=True))


def test_samples_do_not_see_each_other(monkeypatch):
    monkeypatch.setattr(NearPGD, "_start", lambda self, x: x + 0.001 * (1e4 * x).sin())
    model, (x, y) = smooth_net(), batch()
    loss = TRADES(eps=0.2, steps=3)
    alone = [loss(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(loss(model, x, y), torch.stack(alone).mean())


@given(
    st.floats(0, 0.6),
    st.sampled_from([math.inf, 2]),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 4),
    st.integers(0, 10**6),
)
def test_result_is_in_ball_and_box_and_diverges(eps, p, dtype, steps, seed):
    torch.manual_seed(seed)
    model, (x, y) = relu_net(dtype), batch(n=5, dtype=dtype, seed=seed)
    x_adv = TRADES(eps=eps, p=p, steps=steps).perturb(model, x, y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1 and not x_adv.requires_grad
    assert ((x_adv - x).double().flatten(1).norm(p=p, dim=1) <= eps * (1 + 1e-5) + 1e-6).all()
    divergence = kl_divergence(model(x), model(x_adv))
    assert (divergence >= -1e-6).all()


def test_the_attack_raises_the_divergence():
    model, (x, y) = smooth_net(), batch(n=30)
    start = kl_divergence(model(x), model(start_of(x, 0)))
    assert (kl_divergence(model(x), model(TRADES(eps=0.2).perturb(model, x, y))) > start).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_batches(dtype):
    model, (x, y) = relu_net(dtype), batch(n=8, dtype=dtype)
    loss = TRADES(eps=0.1, steps=3)
    x_adv = loss.perturb(model, x, y)
    assert x_adv.dtype == dtype and ((x_adv.double() - x.double()).abs() <= 0.1).all()
    value = loss(model, x, y)
    assert value.dtype == torch.float32 and value.isfinite()


def test_logits_given_to_perturb_save_a_forward():
    model, (x, y) = relu_net(), batch()
    loss = TRADES(eps=0.1, steps=2)
    torch.manual_seed(0)
    expected = loss.perturb(model, x, y)
    torch.manual_seed(0)
    with count_passes(model) as passes:
        assert torch.equal(loss.perturb(lambda z: model(z), x, y, model(x)), expected)
    assert passes.forward == 1 + 2


def test_per_sample_radius_ramp_and_steps():
    model, (x, y) = relu_net(), batch(n=3)
    loss = TRADES(eps=0.2, steps=4, step_size=0.1)
    x_adv = loss.with_eps(torch.tensor([0.0, 0.1, 0.2])).perturb(model, x, y)
    assert torch.equal(x_adv[0], x[0])
    assert loss.with_eps(0.1) == dataclasses.replace(loss, eps=0.1)
    assert loss.with_steps(7) == TRADES(eps=0.2, steps=7)


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize("call", [1, 3, 5])
def test_an_exception_leaves_the_model_as_it_was(mode, call):
    model, (x, y) = norm_net().train(), batch()
    model[2].eval()
    flags = [m.training for m in model.modules()]
    calls = []

    def fail(*_):
        calls.append(0)
        if len(calls) == call:
            raise RuntimeError("out of memory")

    handle = model[4].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        TRADES(eps=0.1, steps=3, mode=mode)(model, x, y)
    handle.remove()
    assert [m.training for m in model.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"beta": -1}, ValueError, "beta must be finite and >= 0, got -1"),
        ({"beta": math.nan}, ValueError, "beta must be finite and >= 0, got nan"),
        ({"beta": "6"}, TypeError, "beta must be a number, got str"),
        ({"beta": True}, TypeError, "beta must be a number, got bool"),
        ({"noise": 0.0}, ValueError, "noise must be > 0"),
        ({"noise": -1.0}, ValueError, "noise must be finite and >= 0, got -1.0"),
        ({"p": 1}, ValueError, "p must be 2 or math.inf for NearPGD, got 1"),
        ({"eps": -0.1}, ValueError, "eps must be finite and >= 0, got -0.1"),
        ({"eps": "0.1"}, TypeError, "eps must be a number or a tensor, got str"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"step_size": -1.0}, ValueError, "step_size must be finite and >= 0, got -1.0"),
        ({"mode": "test"}, ValueError, 'mode must be "eval", "train" or "keep", got \'test\''),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        TRADES(**fields)
