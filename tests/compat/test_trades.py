"""`trades_loss` against the authors' algorithm, written from its description with autograd and torch's own losses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soatfast.compat import trades_loss as exported
from soatfast.compat.trades import trades_loss
from soatfast.gradients import count_passes
from tests.nets import batch, conv_net, relu_net, smooth_net


def original(model, x, y, optimizer, step_size=0.003, epsilon=0.031, steps=10, beta=1.0, distance="l_inf"):
    """Every step asks for the clean softmax again, and so does the loss: 2K + 3 forwards."""

    def divergence(z):
        return F.kl_div(model(z).log_softmax(1), model(x).softmax(1), reduction="sum")

    model.eval()
    x_adv = x.detach() + 0.001 * torch.randn(x.shape)
    if distance == "l_inf":
        for _ in range(steps):
            leaf = x_adv.detach().requires_grad_()
            (g,) = torch.autograd.grad(divergence(leaf), leaf)
            x_adv = leaf.detach() + step_size * g.sign()
            x_adv = torch.minimum(torch.maximum(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
    else:
        delta = 0.001 * torch.randn(x.shape)
        delta = delta.to(x.dtype).requires_grad_()
        descent = torch.optim.SGD([delta], lr=epsilon / steps * 2)
        for _ in range(steps):
            descent.zero_grad()
            (-divergence(x + delta)).backward()
            norms = delta.grad.flatten(1).norm(dim=1)
            delta.grad.div_(norms.view(-1, *(1,) * (x.dim() - 1)))
            if (norms == 0).any():
                delta.grad[norms == 0] = torch.randn_like(delta.grad[norms == 0])
            descent.step()
            with torch.no_grad():
                delta.add_(x).clamp_(0, 1).sub_(x)
                delta.renorm_(p=2, dim=0, maxnorm=epsilon)
        x_adv = x + delta.detach()
    model.train()
    x_adv = x_adv.clamp(0, 1)
    optimizer.zero_grad()
    return F.cross_entropy(model(x), y) + beta * divergence_of(model, x, x_adv) / len(x)


def divergence_of(model, x, x_adv):
    adversarial = model(x_adv).log_softmax(1)
    return F.kl_div(adversarial, model(x).softmax(1), reduction="sum")


def dropout_net(dtype=torch.float64, momentum=0.1):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 12),
        nn.BatchNorm1d(12, momentum=momentum),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(12, 4),
    ).to(dtype)


def norm_net(dtype=torch.float64, momentum=0.1):
    """Batch norm, but nothing random."""
    model = dropout_net(dtype, momentum)
    model[4] = nn.Identity()
    return model


def spectral_net():
    """No random numbers, but a layer whose power iteration goes on with every training forward."""
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 12))
    return nn.Sequential(nn.Flatten(), layer, nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).double()


def instance_norm_net():
    """Running statistics that no batch norm keeps."""
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(1, track_running_stats=True)
    return nn.Sequential(norm, nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).double()


NETS = {
    "smooth": smooth_net,
    "relu": relu_net,
    "batch norm": norm_net,
    "cumulative batch norm": lambda: norm_net(momentum=None),
    "dropout": dropout_net,
    "spectral norm": spectral_net,
    "instance norm": instance_norm_net,
}


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
@pytest.mark.parametrize("distance", ["l_inf", "l_2"])
def test_three_steps_of_a_training_are_the_original_ones(net, distance):
    """Value, gradients, random numbers, flags, buffers and, by the later steps, whatever else they leave behind."""
    models = [net().train(), net().train()]
    states = []
    for model, function in zip(models, (original, trades_loss), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        torch.manual_seed(11)
        values = []
        for step in range(3):
            x, y = batch(n=7, seed=step)
            value = function(model, x, y, optimizer, 0.05, 0.2, 4, beta=6.0, distance=distance)
            value.backward()
            values.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
            optimizer.step()
        assert all(m.training for m in model.modules())
        states.append((values, list(model.buffers()), torch.get_rng_state()))
    (values, buffers, state), (got, got_buffers, got_state) = states
    exact = distance == "l_inf"  # torch's renorm divides by the norm + 1e-7
    tolerance = {"rtol": 1e-12, "atol": 1e-12} if exact else {"rtol": 1e-5, "atol": 1e-7}
    for before, after in zip(values, got, strict=True):
        for a, b in zip(after, before, strict=True):
            torch.testing.assert_close(a, b, **tolerance)
    for a, b in zip(got_buffers, buffers, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
    assert torch.equal(got_state, state)


@pytest.mark.parametrize("distance", ["l_inf", "l_2"])
def test_float32_and_the_default_arguments(distance):
    x, y = batch(n=16, shape=(3, 8, 8), classes=5, dtype=torch.float32)
    values = []
    for function in (original, trades_loss):
        model = conv_net().train()
        model[3].p = 0.0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(2)
        value = function(model, x, y, optimizer, distance=distance)
        value.backward()
        values.append([value.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("distance", ["l_inf", "l_2"])
@pytest.mark.parametrize(
    ("net", "forwards"), [(relu_net, 13), (norm_net, 13), (dropout_net, 14), (lambda: norm_net(momentum=None), 14)]
)
def test_thirteen_forwards_for_twenty_three(distance, net, forwards):
    x, y = batch()
    counts = []
    for function in (original, trades_loss):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with count_passes(model) as passes:
            function(model, x, y, optimizer, distance=distance).backward()
        counts.append((passes.forward, passes.backward_input, passes.backward_parameters))
    # the original's backward in the attack reaches the parameters (l_2) or not (l_inf)
    assert counts[0] == ((23, 10, 1) if distance == "l_inf" else (23, 0, 11))
    assert counts[1] == (forwards, 10, 1)


def flat_net():
    """Without a gradient for images that are dark all over."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).double()
    with torch.no_grad():
        model[1].weight.abs_()
        model[1].bias.fill_(-0.6)
    return model


def test_a_sample_without_a_gradient_takes_the_original_random_step():
    x, y = batch()
    x[1] = 0
    x[4] = 0.01
    values = []
    for function in (original, trades_loss):
        model = flat_net()
        torch.manual_seed(4)
        values.append(
            function(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), epsilon=2.0, beta=6.0, distance="l_2")
        )
        values.append(torch.rand(1))
    torch.testing.assert_close(values[2:], values[:2], rtol=1e-6, atol=1e-7)


def test_gradients_of_the_optimizer_are_cleared_and_frozen_modules_train_as_in_the_original():
    model, (x, y) = norm_net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.full_like(p, math_inf := float("inf"))
    model[2].eval()
    trades_loss(model, x, y, optimizer)
    assert all(m.training for m in model.modules())
    assert all(p.grad is None or not (p.grad == math_inf).any() for p in model.parameters())


def test_saturated_predictions_keep_finite_gradients():
    """p(x) underflows to 0 in float32, where p log p has no derivative of its own."""
    model, (x, y) = relu_net(torch.float32), batch(dtype=torch.float32)
    with torch.no_grad():
        model[3].weight.mul_(2000)
    value = trades_loss(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), beta=6.0)
    value.backward()
    assert value.isfinite() and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"distance": "l_1"}, ValueError, 'distance must be "l_inf" or "l_2", got \'l_1\''),
        ({"distance": 2}, ValueError, 'distance must be "l_inf" or "l_2", got 2'),
        ({"epsilon": -1}, ValueError, "eps must be finite and >= 0, got -1"),
        ({"perturb_steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"beta": None}, TypeError, "beta must be a number, got NoneType"),
        ({"step_size": "0.1"}, TypeError, "step_size must be a number or a tensor, got str"),
        ({"x_natural": torch.full((6, 1, 4, 4), torch.nan)}, ValueError, "without NaN"),
        ({"x_natural": torch.full((6, 1, 4, 4), 2.0)}, ValueError, r"x must lie in bounds \[0.0, 1.0\]"),
        ({"x_natural": torch.zeros(6, 1, 4, 4, dtype=torch.uint8)}, TypeError, "x must be a floating tensor"),
        ({"y": torch.full((6,), 4)}, ValueError, r"labels must lie in 0\.\.3, got 4\.\.4"),
        ({"y": torch.zeros(5, dtype=torch.int64)}, ValueError, r"y must have shape \(6,\)"),
    ],
)
def test_bad_arguments_leave_the_mode_alone(fields, error, message):
    model, (x, y) = relu_net().eval(), batch()
    arguments = {"x_natural": x, "y": y, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), **fields}
    if arguments["x_natural"].dtype == torch.float32:
        model.float()
    with pytest.raises(error, match=message):
        trades_loss(model, **arguments)
    assert not model.training


def test_positional_arguments_and_export():
    model, (x, y) = relu_net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for call in (
        lambda: trades_loss(model, x, y, optimizer, 0.01, 0.1, 3, 2.0, "l_inf"),
        lambda: exported(
            model=copy.copy(model),
            x_natural=x,
            y=y,
            optimizer=optimizer,
            step_size=0.01,
            epsilon=0.1,
            perturb_steps=3,
            beta=2.0,
            distance="l_inf",
        ),
    ):
        torch.manual_seed(0)
        values.append(call())
    assert torch.equal(*values)
