"""`mart_loss` against the authors' algorithm, written from its description with autograd and torch's own losses."""

import math

import pytest
import torch
import torch.nn.functional as F

from soatfast.compat import mart_loss as exported
from soatfast.compat.mart import mart_loss
from soatfast.gradients import count_passes
from soatfast.losses import MART
from tests.compat.test_trades import NETS
from tests.nets import batch, relu_net, smooth_net


def original(model, x, y, optimizer, step_size=0.007, epsilon=0.031, steps=10, beta=6.0):
    model.eval()
    x_adv = x.detach() + 0.001 * torch.randn(x.shape)
    for _ in range(steps):
        leaf = x_adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
        x_adv = leaf.detach() + step_size * g.sign()
        x_adv = torch.minimum(torch.maximum(x_adv, x - epsilon), x + epsilon).clamp(0, 1)
    model.train()
    optimizer.zero_grad()
    z, z_adv = model(x), model(x_adv)
    p, q = z.softmax(1), z_adv.softmax(1)
    top = q.topk(2, dim=1).indices
    rival = torch.where(top[:, 0] == y, top[:, 1], top[:, 0])
    boosted = F.cross_entropy(z_adv, y) + F.nll_loss((1.0001 - q + 1e-12).log(), rival)
    divergence = (p * (p.log() - (q + 1e-12).log())).sum(1)
    return boosted + beta * (divergence * (1.0000001 - p[torch.arange(len(y)), y])).mean()


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_three_steps_of_a_training_are_the_original_ones(net):
    """Value, gradients, random numbers, flags, buffers and, by the later steps, whatever else they leave behind."""
    states = []
    for function in (original, mart_loss):
        model = net().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        torch.manual_seed(11)
        values = []
        for step in range(3):
            x, y = batch(n=7, seed=step)
            value = function(model, x, y, optimizer, 0.05, 0.2, 4, beta=5.0)
            value.backward()
            values.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
            optimizer.step()
        assert all(m.training for m in model.modules())
        states.append((values, [b.clone() for b in model.buffers()], torch.get_rng_state()))
    (values, buffers, state), (got, got_buffers, got_state) = states
    for before, after in zip(values, got, strict=True):
        for a, b in zip(after, before, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    for a, b in zip(got_buffers, buffers, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    assert torch.equal(got_state, state)


def test_it_is_marts_loss_but_for_its_constants():
    model, (x, y) = smooth_net(), batch(n=32)
    torch.manual_seed(0)
    value = mart_loss(model, x, y, torch.optim.SGD(model.parameters(), lr=0.1), beta=5.0)
    torch.manual_seed(0)
    exact = MART(generator=torch.Generator().manual_seed(1))(model, x, y)  # another start, 0.001 wide
    assert value.item() == pytest.approx(exact.item(), rel=0.01)


def test_passes_and_the_defaults():
    model, (x, y) = relu_net(), batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    values = []
    for function in (original, mart_loss, exported):
        torch.manual_seed(2)
        with count_passes(model) as passes:
            value = function(model, x, y, optimizer)
            value.backward()
        values.append(value.detach())
        assert (passes.forward, passes.backward_input, passes.backward_parameters) == (12, 10, 1)
    torch.testing.assert_close(values[1:], [values[0]] * 2)
    assert mart_loss(model, x, y, optimizer, 0.01, 0.1, 3, 2.0, "l_inf").isfinite()


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"distance": "l_2"},
            ValueError,
            "distance must be \"l_inf\", as the original attacks for no other, got 'l_2'",
        ),
        ({"epsilon": -1}, ValueError, "eps must be finite and >= 0, got -1"),
        ({"epsilon": math.nan}, ValueError, "eps must be finite and >= 0, got nan"),
        ({"perturb_steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"perturb_steps": 2.0}, TypeError, r"steps must be a whole number, got 2\.0"),
        ({"beta": None}, TypeError, "beta must be a number, got NoneType"),
        ({"beta": -1}, ValueError, "beta must be finite and >= 0, got -1"),
        ({"step_size": "0.1"}, TypeError, "step_size must be a number or a tensor, got str"),
        ({"x_natural": torch.full((6, 1, 4, 4), torch.nan)}, ValueError, "without NaN"),
        ({"y": torch.full((6,), 4)}, ValueError, r"labels must lie in 0\.\.3, got 4\.\.4"),
        ({"y": torch.zeros(5, dtype=torch.int64)}, ValueError, r"y must have shape \(6,\)"),
    ],
)
def test_bad_arguments_leave_the_mode_alone(fields, error, message):
    model, (x, y) = relu_net().eval(), batch()
    arguments = {"x_natural": x, "y": y, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), **fields}
    if arguments["x_natural"].dtype == torch.float32:
        model.float()
    with pytest.raises(error, match=message) as raised:
        mart_loss(model, **arguments)
    assert not model.training and "\n" not in str(raised.value)
