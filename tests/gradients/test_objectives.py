"""Objectives against plain PyTorch, and where plain PyTorch is wrong."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from soatfast.gradients import objectives


@given(st.integers(1, 5), st.integers(2, 7), st.floats(0.1, 30), st.integers(0, 10**6))
def test_cross_entropy_equals_torch(rows, classes, scale, seed):
    torch.manual_seed(seed)
    z = scale * torch.randn(rows, classes, dtype=torch.float64)
    y = torch.randint(0, classes, (rows,))
    torch.testing.assert_close(objectives.cross_entropy(z, y), F.cross_entropy(z, y, reduction="none"))


@pytest.mark.parametrize("name", ["ce", "margin"])
def test_closed_form_gradient_equals_autograd(name):
    torch.manual_seed(0)
    z = (3 * torch.randn(40, 5, dtype=torch.float64)).requires_grad_()
    y = torch.randint(0, 5, (40,))
    function, derivative = objectives.resolve(name)
    (gradient,) = torch.autograd.grad(function(z, y).sum(), z)
    torch.testing.assert_close(derivative(z.detach(), y), gradient)


def test_confident_sample_keeps_its_gradient_in_float32():
    # Plain cross-entropy has p_y - 1 = 0 here; the true derivative by z_y is -3 exp(-40).
    z, y = torch.tensor([[40.0, 0.0, 0.0, 0.0]]), torch.tensor([0])
    loss, derivative = objectives.cross_entropy(z, y), objectives.resolve("ce")[1](z, y)
    small = torch.tensor(-40.0, dtype=torch.float64).exp().item()
    torch.testing.assert_close(derivative, torch.tensor([[-3 * small, small, small, small]]), rtol=1e-4, atol=0)
    torch.testing.assert_close(loss, torch.tensor([3 * small]), rtol=1e-4, atol=0)
    leaf = z.clone().requires_grad_()
    objectives.cross_entropy(leaf, y).sum().backward()
    torch.testing.assert_close(leaf.grad, derivative, rtol=1e-4, atol=0)


def test_hopeless_sample_stays_finite():
    z, y = torch.tensor([[-1e4, 1e4]]), torch.tensor([0])
    assert objectives.cross_entropy(z, y).item() == pytest.approx(2e4)
    torch.testing.assert_close(objectives.resolve("ce")[1](z, y), torch.tensor([[-1.0, 1.0]]))


def test_cross_entropy_is_twice_differentiable():
    torch.manual_seed(0)
    z = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 3, 1])
    assert torch.autograd.gradgradcheck(lambda z: objectives.cross_entropy(z, y), z)


def test_margin_is_positive_exactly_when_wrong():
    torch.manual_seed(0)
    z, y = torch.randn(200, 5), torch.randint(0, 5, (200,))
    assert torch.equal(objectives.margin(z, y) > 0, z.argmax(1) != y)


def test_one_nan_row_leaves_the_others_alone():
    z, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    spoiled = z.clone()
    spoiled[1] = torch.nan
    for name in ("ce", "margin"):
        for function in objectives.resolve(name):
            assert torch.equal(function(z, y)[[0, 2]], function(spoiled, y)[[0, 2]])


def test_callable_objective():
    function, derivative = objectives.resolve(lambda z, y: z.gather(1, y[:, None]).squeeze(1) ** 2)
    z, y = torch.tensor([[1.0, 3.0]]), torch.tensor([1])
    assert function(z, y).item() == 9 and derivative(z, y).tolist() == [[0.0, 6.0]]


def test_bad_objective():
    with pytest.raises(ValueError, match="objective must be one of ce, margin"):
        objectives.resolve("crossentropy")
    with pytest.raises(ValueError, match="objective must return shape"):
        objectives.resolve(lambda z, y: z.sum())[1](torch.zeros(2, 3), torch.tensor([0, 1]))


@given(st.integers(1, 5), st.integers(2, 7), st.floats(0.1, 30), st.integers(0, 10**6))
def test_kl_divergence_equals_torch_in_value_and_gradients(rows, classes, scale, seed):
    torch.manual_seed(seed)
    z, w = (scale * torch.randn(2, rows, classes, dtype=torch.float64)).requires_grad_().unbind()
    value = objectives.kl_divergence(z, w)
    expected = F.kl_div(w.log_softmax(1), z.log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(value, expected)
    assert (value >= -1e-12).all() and (objectives.kl_divergence(z, z) == 0).all()
    for leaf in (z, w):
        (a,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
        (b,) = torch.autograd.grad(expected.sum(), leaf, retain_graph=True)
        torch.testing.assert_close(a, b)


def test_kl_divergence_is_quadratic_nearby():
    """1/2 d^T S d with S = diag(p) - p p^T."""
    torch.manual_seed(0)
    z, d = torch.randn(4, 5, dtype=torch.float64), 1e-4 * torch.randn(4, 5, dtype=torch.float64)
    p = z.softmax(1)
    expected = 0.5 * ((p * d * d).sum(1) - (p * d).sum(1) ** 2)
    torch.testing.assert_close(objectives.kl_divergence(z, z + d), expected, rtol=1e-3, atol=0)


def test_kl_divergence_of_a_probability_that_underflows():
    z, w = torch.tensor([[300.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 1.0]], requires_grad=True)
    value = objectives.kl_divergence(z, w)
    value.sum().backward()
    torch.testing.assert_close(value, w.detach().logsumexp(1))
    assert z.grad.tolist() == [[0, 0]] and w.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 4), (5, 1), (5,), (5, 4, 3)])
def test_the_derivative_of_the_divergence_is_autograds_to_the_last_bit(shape, dtype):
    """Near the clean logits the divergence is least, and the sign of its derivative is one of rounding."""
    torch.manual_seed(0)
    clean = torch.randn(shape, dtype=dtype)
    logits = clean + 1e-4 * torch.randn(shape, dtype=dtype)
    if len(shape) > 1 and shape[1] == 4:
        clean[:, 1] = logits[:, 1] = -torch.inf
    objective, derivative = objectives.resolve(objectives.DivergenceFrom(clean))
    leaf = logits.clone().requires_grad_()
    (expected,) = torch.autograd.grad(objective(leaf, None).sum(), leaf)
    assert torch.equal(derivative(logits, None), expected) and expected.isfinite().all() and expected.any()
