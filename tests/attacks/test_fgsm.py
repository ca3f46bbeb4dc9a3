"""FGSM from a random start, against FGSM-RS written out."""

import math

import pytest
import torch
import torch.nn.functional as F

from soatfast.attacks import FGSM, PGD
from soatfast.gradients import count_passes
from soatfast.losses import AdversarialTraining
from tests.nets import batch, relu_net


def test_it_is_fast_adversarials_training_attack():
    """uniform start in ball and box, one step of 1.25 eps, clipped to the ball and to the box."""
    model, (x, y) = relu_net(), batch(20)
    torch.manual_seed(4)
    with count_passes(model) as counted:
        x_adv = FGSM(eps=0.2, random_start=True)(model, x, y)
    torch.manual_seed(4)
    delta = (x + 0.2 * torch.empty_like(x).uniform_(-1, 1)).clamp(0, 1) - x
    leaf = (x + delta).requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf)
    delta = (delta + 1.25 * 0.2 * g.sign()).clamp(-0.2, 0.2)
    torch.testing.assert_close(x_adv, (x + delta).clamp(0, 1), rtol=0, atol=1e-12)
    assert counted.total() == FGSM(eps=0.2, random_start=True).passes(20)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_other_balls_a_mask_and_a_step_are_those_of_one_pgd_step(p):
    model, (x, y) = relu_net(), batch()
    mask = torch.rand(1, 4, 4) < 0.6
    fields = {"eps": 0.5, "p": p, "step_size": 0.3, "mask": mask}
    made = []
    for attack in (FGSM(**fields, random_start=True), PGD(**fields, steps=1)):
        torch.manual_seed(4)
        made.append(attack(model, x, y))
    assert torch.equal(*made) and (made[0] != x).any()


def test_a_radius_for_each_channel_and_a_generator():
    model, (x, y) = relu_net(shape=(3, 4, 4)), batch(shape=(3, 4, 4))
    eps = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64).view(3, 1, 1)
    made = [FGSM(eps=eps, random_start=True, generator=torch.Generator().manual_seed(1))(model, x, y) for _ in range(2)]
    assert torch.equal(*made) and ((made[0] - x).abs() <= eps + 1e-12).all() and (made[0] - x).abs().max() > 0.1


def test_without_it_nothing_changes_and_no_number_is_drawn():
    model, (x, y) = relu_net(), batch()
    state = torch.get_rng_state()
    x_adv = FGSM(eps=0.1)(model, x, y)
    assert torch.equal(torch.get_rng_state(), state)
    g = FGSM(eps=0.1).oracle(model)
    with g as oracle:
        torch.testing.assert_close(x_adv, (x + 0.1 * oracle.gradient(x, y).sign()).clamp(0, 1))


def test_in_training():
    model, (x, y) = relu_net(), batch()
    loss = AdversarialTraining(FGSM(eps=0.1, random_start=True, mode="keep"), return_output=True)
    value, output = loss(model, x, y)
    value.backward()
    assert output.shape == (6, 4)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"random_start": "yes"}, TypeError, "random_start must be True or False, got 'yes'"),
        ({"step_size": 0.1}, ValueError, "step_size needs random_start=True: without it the step is eps, got 0.1"),
        ({"random_start": True, "step_size": "0.1"}, TypeError, "step_size must be a number or a tensor, got str"),
        ({"random_start": True, "step_size": math.nan}, ValueError, "step_size must be finite and >= 0, got nan"),
        ({"random_start": True, "p": 3}, ValueError, "p must be 1, 2 or math.inf for FGSM with random_start, got 3"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        FGSM(**fields)


def test_a_step_of_another_shape():
    model, (x, y) = relu_net(), batch()
    with pytest.raises(ValueError, match="alpha must be a number or a floating tensor"):
        FGSM(random_start=True, step_size=torch.ones(5))(model, x, y)
