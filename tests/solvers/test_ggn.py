"""The low-rank form against autograd's Hessian, and the closed forms that hold for it."""

from __future__ import annotations

import pytest
import torch

from soatfast.gradients import InputGradient, count_passes
from soatfast.solvers.ggn import gauss_newton
from soatfast.solvers.quadratic import newton, trust_region
from tests.nets import batch, hessians, linear_net, relu_net, smooth_net


@pytest.mark.parametrize("net", [relu_net, linear_net])
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_form_is_the_hessian_of_a_piecewise_linear_network(net, classes):
    model, (x, y) = net(classes=classes), batch(classes=classes)
    exact = hessians(model, x, y)
    with InputGradient(model) as oracle:
        form, g = gauss_newton(oracle, x, y), oracle.gradient(x, y)
    torch.testing.assert_close(form.jacobian.transpose(1, 2) @ form.curvature @ form.jacobian, exact)
    torch.testing.assert_close(form.gradient.view_as(x), g)
    v = torch.randn_like(x)
    expected = (exact @ v.flatten(1).unsqueeze(2)).squeeze(2).view_as(x)
    torch.testing.assert_close(form(v), expected)
    assert (torch.linalg.matrix_rank(exact, rtol=1e-9) <= classes - 1).all()


def test_reduced_form():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model) as oracle:
        form = gauss_newton(oracle, x, y)
    v, t, c = form.reduced()
    exact = hessians(model, x, y)
    torch.testing.assert_close(v @ v.transpose(1, 2), torch.eye(3).double().expand(6, 3, 3))
    torch.testing.assert_close(v.transpose(1, 2) @ t @ v, exact)
    torch.testing.assert_close((c.unsqueeze(1) @ v).squeeze(1), form.gradient)


@pytest.mark.parametrize("net", [relu_net, linear_net])
def test_newton_direction_gains_exp_loss_minus_1(net):
    """<g, H^+ g> = (1 - p_y) / p_y = exp(l) - 1, and H^+ g lowers the true logit alone."""
    model, (x, y) = net(classes=4), batch()
    with InputGradient(model) as oracle:
        form, (loss, g) = gauss_newton(oracle, x, y), oracle(x, y)
    v, t, c = form.reduced()
    d = (newton(t, c).unsqueeze(1) @ v).squeeze(1)
    torch.testing.assert_close((g.flatten(1) * d).sum(1), torch.expm1(loss))
    pinv = torch.linalg.pinv(hessians(model, x, y), rtol=1e-9)
    torch.testing.assert_close(d, (pinv @ g.flatten(1).unsqueeze(2)).squeeze(2))
    logits, moved = torch.func.jvp(model, (x,), (d.view_as(x),))
    p = logits.softmax(1).gather(1, y.unsqueeze(1))
    expected = torch.zeros_like(moved).scatter(1, y.unsqueeze(1), -1 / p)
    centred = lambda z: z - z.mean(1, keepdim=True)  # noqa: E731
    torch.testing.assert_close(centred(moved), centred(expected))


def test_trust_region_in_k_dimensions_is_the_one_in_all():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model) as oracle:
        form = gauss_newton(oracle, x, y)
    v, t, c = form.reduced()
    d = (trust_region(t, c, 0.5).unsqueeze(1) @ v).squeeze(1)
    torch.testing.assert_close(d, trust_region(hessians(model, x, y), form.gradient, 0.5), rtol=1e-6, atol=1e-8)


def test_a_confident_sample_keeps_its_curvature():
    model = torch.nn.Identity()
    z = torch.tensor([[40.0, 0.0, 0.0]])
    with InputGradient(model) as oracle:
        form = gauss_newton(oracle, z, torch.tensor([0]))
    exact = hessians(model, z.double(), torch.tensor([0]))
    mine = form.jacobian.transpose(1, 2) @ form.curvature @ form.jacobian
    torch.testing.assert_close(mine.double(), exact, rtol=1e-5, atol=0)


def test_targeted_turns_the_sign():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model) as oracle:
        plain = gauss_newton(oracle, x, y)
    with InputGradient(model, targeted=True) as oracle:
        turned = gauss_newton(oracle, x, y)
    torch.testing.assert_close(turned.gradient, -plain.gradient)
    torch.testing.assert_close(turned(x), -plain(x))


def test_passes_and_errors():
    model, (x, y) = relu_net(classes=6), batch(classes=6)
    with count_passes(model) as passes, InputGradient(model) as oracle:
        gauss_newton(oracle, x, y)
    assert (passes.forward, passes.backward_input, passes.backward_parameters) == (1, 5, 0)
    with InputGradient(model, "margin") as oracle, pytest.raises(ValueError, match='of objective "ce"'):
        gauss_newton(oracle, x, y)


def test_smooth_networks_have_curvature_of_their_own():
    model, (x, y) = smooth_net(), batch()
    with InputGradient(model) as oracle:
        form = gauss_newton(oracle, x, y)
    difference = form.jacobian.transpose(1, 2) @ form.curvature @ form.jacobian - hessians(model, x, y)
    assert difference.abs().amax((1, 2)).min() > 1e-4
