"""MI-FGSM against the formula in plain PyTorch, closed forms and another library."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast.attacks import MIFGSM, PGD
from soatfast.gradients import InputGradient
from tests.nets import batch, conv_net, linear_net, relu_net, slow_gradient, smooth_net


def plain_mifgsm(model, x, y, eps, p, steps, alpha, decay, sign=1.0):
    """Equations 6, 7 and 9 of Dong et al., a sample at a time; sign -1: towards y."""
    rows = []
    for i in range(len(x)):
        x0, x_adv, m = x[i], x[i], torch.zeros_like(x[i])
        for _ in range(steps):
            g = sign * slow_gradient(model, x_adv[None], y[i : i + 1])[0]
            m = decay * m + g / g.abs().sum()
            if p == math.inf:
                x_adv = x_adv + alpha * m.sign()
                x_adv = (x0 + (x_adv - x0).clamp(-eps, eps)).clamp(0, 1)
            else:  # over ball and box: the multiple of m, and then of the whole move, that has the length
                x_adv = clipped_multiple(m, x_adv, alpha, 1e9)
                x_adv = clipped_multiple(x_adv - x0, x0, eps, 1.0)
        rows.append(x_adv)
    return torch.stack(rows)


def clipped_multiple(move, x, length, most):
    """clip(x + t move) with the t in [0, most] for which it lies ``length`` from x, or most where it is nearer."""
    low, high = 0.0, most
    for _ in range(200):
        middle = (low + high) / 2
        if ((x + middle * move).clamp(0, 1) - x).norm() > length:
            high = middle
        else:
            low = middle
    return (x + low * move).clamp(0, 1)


@pytest.mark.parametrize("decay", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("p", "eps"), [(math.inf, 0.2), (2, 0.7)])
@pytest.mark.parametrize("targeted", [False, True])
def test_equals_the_plain_loop(p, eps, decay, targeted):
    model, (x, y) = smooth_net(), batch(n=8)
    sign = -1.0 if targeted else 1.0
    attack = MIFGSM(eps=eps, p=p, steps=6, step_size=eps / 4, decay=decay, targeted=targeted)
    torch.testing.assert_close(attack(model, x, y), plain_mifgsm(model, x, y, eps, p, 6, eps / 4, decay, sign))
    default = MIFGSM(eps=eps, p=p, steps=6, decay=decay, targeted=targeted)
    torch.testing.assert_close(default(model, x, y), plain_mifgsm(model, x, y, eps, p, 6, eps / 6, decay, sign))


def test_without_momentum_it_is_pgd_from_x():
    model, (x, y) = relu_net(), batch(n=8)
    pgd = PGD(eps=0.2, steps=4, step_size=0.05, random_start=False)
    torch.testing.assert_close(MIFGSM(eps=0.2, steps=4, step_size=0.05, decay=0)(model, x, y), pgd(model, x, y))


@pytest.mark.parametrize(("p", "q"), [(math.inf, 1), (2, 2)])
def test_reaches_the_optimum_of_a_linear_model(p, q):
    model, (x, _) = linear_net(), batch()
    y = torch.zeros(6, dtype=torch.int64)
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    with InputGradient(model, "margin") as oracle:
        attack = MIFGSM(eps=0.3, p=p, steps=4, bounds=(-9.0, 9.0))
        gain = oracle.loss(attack(model, x, y), y) - oracle.loss(x, y)
    torch.testing.assert_close(gain, torch.full_like(gain, 0.3 * w.norm(q).item()))


def test_equals_torchattacks():
    torchattacks = pytest.importorskip("torchattacks")
    model, (x, y) = conv_net().eval(), batch(n=8, shape=(3, 8, 8), classes=5, dtype=torch.float32)
    ours = MIFGSM(eps=8 / 255, steps=10, step_size=2 / 255)(model, x, y)
    theirs = torchattacks.MIFGSM(model, eps=8 / 255, alpha=2 / 255, steps=10, decay=1.0)(x, y)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


class Once(torch.nn.Module):
    """Sample 0 has a zero (or NaN) gradient in the first pass only."""

    def __init__(self, factor):
        super().__init__()
        self.model, self.factor, self.first = smooth_net(), factor, True

    def forward(self, x):
        weight = torch.ones(len(x), dtype=x.dtype)
        weight[0] = self.factor if self.first else 1.0
        self.first = False
        return self.model(x) * weight[:, None]


@pytest.mark.parametrize("factor", [0.0, math.nan, math.inf])
def test_a_gradient_without_direction_does_not_freeze_the_sample(factor):
    """torchattacks divides by its mean, and a NaN stays in the momentum."""
    x, y = batch()
    x_adv = MIFGSM(eps=0.3, steps=3)(Once(factor), x, y)
    torch.testing.assert_close(x_adv[:1], MIFGSM(eps=0.3, steps=2, step_size=0.1)(smooth_net(), x[:1], y[:1]))


def test_a_known_gradient_is_not_computed_again():
    model, (x, y) = smooth_net(), batch()
    attack = MIFGSM(eps=0.2, steps=3)
    with attack.oracle(model) as oracle:
        known = attack.run(oracle, x, y, g0=oracle.gradient(x, y))
    torch.testing.assert_close(known, attack(model, x, y))


@given(
    p=st.sampled_from([2, math.inf]),
    eps=st.floats(0, 3),
    decay=st.floats(0, 5),
    step_size=st.none() | st.floats(0, 3),
    targeted=st.booleans(),
)
def test_inside_ball_and_box(p, eps, decay, step_size, targeted):
    model, (x, y) = relu_net(), batch()
    x[0] = x[0].round()
    attack = MIFGSM(eps=eps, p=p, steps=3, step_size=step_size, decay=decay, targeted=targeted)
    x_adv = attack(model, x, y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert ((x_adv - x).flatten(1).norm(p, dim=1) <= eps * (1 + 1e-9) + 1e-12).all()


def test_with_steps_and_bad_fields():
    assert MIFGSM(step_size=0.1).with_steps(3) == MIFGSM(steps=3)
    for fields, error, message in (
        ({"p": 1}, ValueError, "p must be 2 or math.inf for MIFGSM, got 1"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"step_size": -1.0}, ValueError, "step_size must be finite and >= 0, got -1.0"),
        ({"decay": -0.5}, ValueError, "decay must be finite and >= 0, got -0.5"),
        ({"decay": math.inf}, ValueError, "decay must be finite and >= 0, got inf"),
        ({"decay": "1"}, TypeError, "decay must be a number, got str"),
    ):
        with pytest.raises(error, match=message):
            MIFGSM(**fields)


def test_model_is_restored_after_an_error():
    model = torch.nn.Sequential(conv_net(classes=4), torch.nn.Linear(9, 4)).train()
    model[0][1].eval()
    x, y = batch(n=3, shape=(3, 8, 8), dtype=torch.float32)
    with pytest.raises(RuntimeError):
        MIFGSM()(model, x, y)
    assert model.training and model[0][0].training and not model[0][1].training
    assert all(p.requires_grad for p in model.parameters())
