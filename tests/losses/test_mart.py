"""MART against its formula, written out with autograd and a loop of its own."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from soatfast.attacks import NearPGD
from soatfast.gradients import count_passes
from soatfast.losses import MART
from soatfast.losses.mart import boosted_cross_entropy
from tests.losses.test_trades import gradients, kl, norm_net, start_of
from tests.nets import batch, relu_net, slow_gradient, smooth_net


def attack_written_out(model, x, y, start, eps, steps, alpha):
    x_adv = start
    for _ in range(steps):
        x_adv = x_adv + alpha * slow_gradient(model, x_adv, y).sign()
        x_adv = x_adv.clamp(x - eps, x + eps).clamp(0, 1)
    return x_adv


def written_out(model, x, y, x_adv, beta):
    """Sample by sample, class by class, as the paper prints it."""
    clean, adversarial = model(x).softmax(1), model(x_adv).softmax(1)
    total = torch.zeros((), dtype=x.dtype)
    for p, q, label in zip(clean, adversarial, y.tolist(), strict=True):
        rival = torch.stack([q[k] for k in range(len(q)) if k != label]).max()
        boosted = -q[label].log() - (1 - rival).log()
        total = total + boosted + beta * kl(p[None], q[None])[0] * (1 - p[label])
    return total / len(x)


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize(("beta", "step_size"), [(5.0, None), (1.0, 0.05), (0.0, 0.05)])
def test_equals_its_formula_in_value_and_gradient(mode, beta, step_size):
    model, (x, y) = smooth_net(), batch()
    loss = MART(eps=0.3, steps=4, step_size=step_size, beta=beta, mode=mode)
    alpha = step_size or 0.007 / 0.031 * 10 * 0.3 / 4
    x_adv = attack_written_out(model, x, y, start_of(x, 7), 0.3, 4, alpha)
    expected = written_out(model, x, y, x_adv, beta)
    torch.manual_seed(7)
    actual = loss(model, x, y)
    torch.testing.assert_close(actual, expected)
    for a, b in zip(gradients(model, actual), gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b)


def test_attack_in_eval_mode_and_loss_in_train_mode():
    model, twin = norm_net().train(), norm_net()
    x, y = batch(n=8)
    for net in (model, twin):
        net[2].running_mean += 0.1
    x_adv = attack_written_out(twin.eval(), x, y, start_of(x, 3), 0.2, 3, 0.1)
    expected = written_out(twin.train(), x, y, x_adv, 5.0)
    torch.manual_seed(3)
    torch.testing.assert_close(MART(eps=0.2, steps=3, step_size=0.1)(model, x, y), expected)
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert model[2].num_batches_tracked == 2 and all(m.training for m in model.modules())


def test_twelve_forwards_of_ten_steps():
    model, (x, y) = norm_net().train(), batch()
    loss = MART(eps=0.1)
    with count_passes(model) as passes:
        loss(model, x, y).backward()
    assert passes.total() == loss.passes(6)
    assert (passes.forward, passes.backward_input, passes.backward_parameters) == (12, 10, 1)


@given(st.integers(1, 5), st.integers(2, 7), st.floats(0.1, 30), st.integers(0, 10**6))
def test_boosted_cross_entropy_equals_its_formula(rows, classes, scale, seed):
    torch.manual_seed(seed)
    z = (scale * torch.randn(rows, classes, dtype=torch.float64)).requires_grad_()
    y = torch.randint(0, classes, (rows,))
    log_p = z.log_softmax(1)
    rival = log_p.detach().scatter(1, y[:, None], -torch.inf).argmax(1, keepdim=True)
    others = log_p.scatter(1, rival, -torch.inf).logsumexp(1)  # log(1 - p_rival)
    expected = F.nll_loss(log_p, y, reduction="none") - others
    value = boosted_cross_entropy(z, y)
    torch.testing.assert_close(value, expected)
    assert (value >= 0).all()
    (a,), (b,) = torch.autograd.grad(value.sum(), z), torch.autograd.grad(expected.sum(), z)
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("logits", [[200.0, 0.0, 0.0], [0.0, 200.0, 0.0], [0.0, -200.0, 0.0], [0.0, 0.0, 0.0]])
def test_confident_samples_have_finite_values_and_gradients(logits):
    z = torch.tensor([logits], requires_grad=True)
    value = boosted_cross_entropy(z, torch.tensor([0]))
    value.sum().backward()
    assert value.isfinite().all() and z.grad.isfinite().all()


def test_samples_do_not_see_each_other():
    model, (x, y) = smooth_net(), batch()
    loss = MART(eps=0.2, steps=3, noise=0.0)
    alone = [loss(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(loss(model, x, y), torch.stack(alone).mean())


def test_l2_takes_the_l2_attack():
    model, (x, y) = relu_net(), batch()
    loss = MART(eps=0.5, p=2, steps=3, noise=0.0)
    x_adv = NearPGD(eps=0.5, p=2, steps=3, step_size=2 * 0.5 / 3, noise=0.0)(model, x, y)
    torch.testing.assert_close(loss(model, x, y), written_out(model, x, y, x_adv, 5.0))


def test_ramp_and_steps():
    loss = MART(eps=0.2, steps=4, step_size=0.1)
    assert loss.with_eps(0.1) == dataclasses.replace(loss, eps=0.1)
    assert loss.with_steps(7) == MART(eps=0.2, steps=7)
    assert loss.attack.eps == 0.2 and MART().attack._alpha() == pytest.approx(0.007)


@pytest.mark.parametrize("call", [1, 3, 5])
def test_an_exception_leaves_the_model_as_it_was(call):
    model, (x, y) = norm_net().train(), batch()
    calls = []

    def fail(*_):
        calls.append(0)
        if len(calls) == call:
            raise RuntimeError("out of memory")

    handle = model[4].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        MART(eps=0.1, steps=3)(model, x, y)
    handle.remove()
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"beta": -1}, ValueError, "beta must be finite and >= 0, got -1"),
        ({"beta": "5"}, TypeError, "beta must be a number, got str"),
        ({"noise": math.inf}, ValueError, "noise must be finite and >= 0, got inf"),
        ({"noise": None}, TypeError, "noise must be a number, got NoneType"),
        ({"p": 1}, ValueError, "p must be 2 or math.inf for NearPGD, got 1"),
        ({"eps": -0.1}, ValueError, "eps must be finite and >= 0, got -0.1"),
        ({"steps": 1.5}, TypeError, "steps must be a whole number, got 1.5"),
        ({"mode": "test"}, ValueError, "mode must be"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        MART(**fields)
