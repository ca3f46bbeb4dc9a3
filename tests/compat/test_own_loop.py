"""N-FGSM and free training in a script's own loop, against the loops of the authors written from their description."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soatfast.compat import FreePerturbation, n_fgsm_delta
from soatfast.gradients import count_passes
from soatfast.losses import NFGSM
from tests.nets import batch, conv_net, relu_net


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)).double()


@pytest.mark.parametrize("unif", [0.0, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.05])
def test_n_fgsm_is_the_authors_step(unif, alpha):
    model, (X, y) = mlp().train(), batch(12)
    torch.manual_seed(5)
    with count_passes(model) as counted:
        delta = n_fgsm_delta(model, X, y, 0.1, alpha, unif)
    torch.manual_seed(5)
    eta = torch.empty_like(X).uniform_(-1, 1) * unif * 0.1
    leaf = (X + eta).clamp(0, 1).requires_grad_()
    state = {name: t.clone() for name, t in model.state_dict().items()}
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    model.load_state_dict(state)
    expected = (leaf.detach() + (0.1 if alpha is None else alpha) * g.sign()).clamp(0, 1) - X
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-12)
    assert (counted.forward, counted.backward_input, counted.backward_parameters) == (1, 1, 0)
    assert model.training and not delta.requires_grad and not model[2].num_batches_tracked


def test_n_fgsm_trains_as_the_loss_does():
    X, y = batch(12)
    slopes = []
    for own in (True, False):
        model = mlp().train()
        torch.manual_seed(5)
        value = F.cross_entropy(model(X + n_fgsm_delta(model, X, y, 0.1)), y) if own else NFGSM(eps=0.1)(model, X, y)
        slopes.append([value, *torch.autograd.grad(value, list(model.parameters())), *model.buffers()])
    torch.testing.assert_close(*slopes)


BOUNDS = torch.tensor([-2.0, -1.5, -1.0]).view(3, 1, 1).double(), torch.tensor([2.0, 2.5, 3.0]).view(3, 1, 1).double()


@pytest.mark.parametrize("channels", [False, True])
def test_free_is_the_authors_loop(channels):
    """Three batches of 6, 6 and 4, each three times; the last one leaves two rows of delta alone."""
    bounds = BOUNDS if channels else (0.0, 1.0)
    eps = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1).double() if channels else 0.1
    finals = []
    for own in (True, False):
        model = conv_net(torch.float64).train()
        model[3].p = 0.0
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        free, delta = FreePerturbation(eps, bounds=bounds), torch.zeros(6, 3, 8, 8, dtype=torch.float64)
        for number, size in enumerate((6, 6, 4)):
            X, y = batch(size, (3, 8, 8), 5, seed=number)
            X = bounds[0] + X * (bounds[1] - bounds[0])
            for _ in range(3):
                optimizer.zero_grad()
                if own:
                    F.cross_entropy(model(free(X)), y, label_smoothing=0.1).backward()
                else:
                    leaf = delta.clone().requires_grad_()
                    F.cross_entropy(model(X + leaf[:size]), y, label_smoothing=0.1).backward()
                    ones = torch.ones_like(delta)
                    delta = torch.minimum(torch.maximum(delta + eps * leaf.grad.sign(), -eps * ones), eps * ones)
                    delta[:size] = (X + delta[:size]).clamp(*bounds) - X
                optimizer.step()
        finals.append([free.delta if own else delta, *(p.detach() for p in model.parameters()), *model.buffers()])
    torch.testing.assert_close(*finals, rtol=0, atol=1e-10)
    assert finals[0][0].any()


def test_free_makes_no_pass_of_its_own_and_resumes():
    model, (X, y) = relu_net(), batch()
    free = FreePerturbation(0.1)
    with count_passes(model) as counted:
        F.cross_entropy(model(free(X)), y).backward()
    assert (counted.forward, counted.backward_input, counted.backward_parameters) == (1, 0, 1)
    again = FreePerturbation(0.1)
    again.load_state_dict(free.state_dict())
    assert torch.equal(again(X), free(X))
    FreePerturbation(0.1).load_state_dict(FreePerturbation(0.2).state_dict())
    with torch.no_grad():
        model(free(X))


def test_free_starts_small_and_grows():
    free = FreePerturbation(0.1)
    X, y = batch(6)
    F.cross_entropy(relu_net()(free(X[:2])), y[:2]).backward()
    assert torch.equal(free(X)[2:], X[2:]) and not torch.equal(free(X)[:2], X[:2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: n_fgsm_delta(relu_net(), *batch(), "0.1"), TypeError, "epsilon must be a number, got str"),
        (lambda: n_fgsm_delta(relu_net(), *batch(), math.nan), ValueError, "epsilon must be finite and > 0, got nan"),
        (lambda: n_fgsm_delta(relu_net(), *batch(), 0.1, -1), ValueError, "alpha must be finite and > 0, got -1"),
        (lambda: n_fgsm_delta(relu_net(), *batch(), 0.1, unif=-1), ValueError, "unif must be finite and >= 0, got -1"),
        (lambda: n_fgsm_delta(relu_net(), 2 * batch()[0], batch()[1], 0.1), ValueError, "x must lie in bounds"),
        (lambda: FreePerturbation("0.1"), TypeError, "eps must be a number or a tensor, got str"),
        (lambda: FreePerturbation(math.nan), ValueError, "eps must be finite"),
        (lambda: FreePerturbation(0.1, step=0), ValueError, "step must be finite and > 0, got 0"),
        (lambda: FreePerturbation(0.1, bounds=(1, 0)), ValueError, "bounds must be"),
        (lambda: FreePerturbation(0.1)([0.1]), TypeError, "X must be a floating tensor, got list"),
        (lambda: FreePerturbation(torch.ones(2, 1, 1))(torch.rand(2, 3, 4, 4)).sum().backward(), ValueError, "epsilon"),
        (lambda: FreePerturbation(0.1).load_state_dict({"u": 1}), ValueError, r"expected the state_dict\(\) of a Free"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_a_batch_of_another_shape():
    free = FreePerturbation(0.1)
    free(torch.rand(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"X must have samples of shape \(3, 4, 4\), as before, got \(2, 3, 5, 5\)"):
        free(torch.rand(2, 3, 5, 5))
