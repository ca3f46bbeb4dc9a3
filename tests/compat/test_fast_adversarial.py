"""`attack_pgd` of fast_adversarial against its algorithm written out, and in a script that trains."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F

from soatfast.compat import attack_pgd
from soatfast.gradients import count_passes
from tests.nets import batch, conv_net, relu_net


def original(model, X, y, epsilon, alpha, attack_iters, restarts, bounds=(0.0, 1.0)):
    """From its description; a start by channel where eps has channels, symmetric in each."""
    low, high = bounds
    highest, strongest = X.new_zeros(len(y)), torch.zeros_like(X)
    for _ in range(restarts):
        noise = torch.empty_like(X)
        if isinstance(epsilon, torch.Tensor):
            for channel in range(X.shape[1]):
                noise[:, channel].uniform_(-1, 1)
        else:
            noise.uniform_(-1, 1)
        delta = (X + epsilon * noise).clamp(low, high) - X
        for _ in range(attack_iters):
            leaf = (X + delta).requires_grad_()
            output = model(leaf)
            right = output.argmax(1) == y
            if not right.any():
                break
            (grad,) = torch.autograd.grad(F.cross_entropy(output, y), leaf)
            d = torch.minimum(torch.maximum(delta + alpha * grad.sign(), -epsilon * one(X)), epsilon * one(X))
            delta[right] = ((X + d).clamp(low, high) - X)[right]
        loss = F.cross_entropy(model(X + delta), y, reduction="none").detach()
        better = loss >= highest
        strongest[better] = delta[better]
        highest = torch.maximum(highest, loss)
    return strongest


def one(X):
    return torch.ones_like(X)


@pytest.mark.parametrize("restarts", [1, 3])
def test_it_is_the_original_under_the_same_seed(restarts):
    model, (x, _) = relu_net(), batch(n=40)
    y = model(x).argmax(1)
    answers = []
    for function in (original, attack_pgd):
        torch.manual_seed(3)
        with count_passes(model) as counted:
            delta = function(model, x, y, 0.15, 0.03, 6, restarts)
        answers.append((delta, torch.get_rng_state(), counted.total()))
    (expected, state, before), (delta, after_state, after) = answers
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-12)
    assert torch.equal(state, after_state) and 3 < (model(x + delta).argmax(1) != y).sum() < 40
    assert after.forward_samples < before.forward_samples and after.forward <= before.forward
    assert after.backward_parameters == 0 and after.backward_input_samples <= 40 * 6 * restarts


def test_images_that_are_normalised_outside():
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1).double(), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    std = std.double()
    limits = (0 - mean) / std, (1 - mean) / std
    torch.manual_seed(1)
    model = conv_net(torch.float64).eval()
    with torch.no_grad():
        model[6].weight.mul_(10)
    pixels, _ = batch(n=20, shape=(3, 8, 8), classes=5)
    x = (pixels - mean) / std
    y = model(x).argmax(1)
    eps, alpha = 0.03 / std, 0.01 / std
    ours = functools.partial(attack_pgd, bounds=limits)
    torch.manual_seed(3)
    expected = original(model, x, y, eps, alpha, 5, 2, bounds=limits)
    torch.manual_seed(3)
    delta = ours(model, x, y, eps, alpha, 5, 2, opt=None)
    torch.testing.assert_close(delta, expected, rtol=0, atol=1e-9)
    assert (model(x + delta).argmax(1) != y).any()


def test_in_a_training_step_the_model_is_left_alone():
    model = conv_net().train()
    x, y = batch(8, (3, 8, 8), 5, torch.float32)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    delta = attack_pgd(model, x, y, 8 / 255, 2 / 255, 3, 1, optimizer)
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and not delta.requires_grad
    assert attack_pgd(model, x[:0], y[:0], 0.1, 0.1, 1, 1).shape == (0, 3, 8, 8)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"epsilon": -0.1}, ValueError, "eps must be finite and >= 0"),
        ({"epsilon": math.nan}, ValueError, "eps must be finite and >= 0, got nan"),
        ({"epsilon": torch.ones(2, 1, 1)}, ValueError, "eps must broadcast to one sample"),
        ({"alpha": "0.1"}, TypeError, "step_size must be a number or a tensor, got str"),
        ({"attack_iters": 0}, ValueError, "attack_iters must be at least 1, got 0"),
        ({"attack_iters": 2.5}, TypeError, r"attack_iters must be a whole number, got 2\.5"),
        ({"restarts": True}, TypeError, "restarts must be a whole number, got True"),
        ({"bounds": (1, 0)}, ValueError, "bounds must be"),
        ({"X": torch.full((6, 1, 4, 4), torch.nan, dtype=torch.float64)}, ValueError, "without NaN"),
        ({"y": torch.full((6,), 7)}, ValueError, r"labels must lie in 0\.\.3"),
        ({"y": torch.zeros(6)}, TypeError, "y must be a tensor of integer labels"),
    ],
)
def test_bad_arguments(fields, error, message):
    X, y = batch()
    arguments = {"X": X, "y": y, "epsilon": 0.1, "alpha": 0.01, "attack_iters": 2, "restarts": 1, **fields}
    with pytest.raises(error, match=message) as raised:
        attack_pgd(relu_net(), **arguments)
    assert "\n" not in str(raised.value)
