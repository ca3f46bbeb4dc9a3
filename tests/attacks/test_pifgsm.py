"""PIFGSM against algorithm 1 of the paper in plain Python, a pixel at a time."""

import math

import pytest
import torch

from soatfast.attacks import MIFGSM, PIFGSM, gaussian_kernel
from tests.nets import batch, relu_net, slow_gradient, smooth_net


def around(image, r, c):
    """The mean over the 8 pixels around, zeros beyond the edge."""
    height, width = image.shape
    cells = [(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
    return sum(float(image[a, b]) for a, b in cells if 0 <= a < height and 0 <= b < width) / 8


def sign(value):
    return (value > 1e-12) - (value < -1e-12)


def blurred(image, kernel):
    out, reach = torch.zeros_like(image), len(kernel) // 2
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            for i in range(-reach, reach + 1):
                for j in range(-reach, reach + 1):
                    if 0 <= r + i < image.shape[0] and 0 <= c + j < image.shape[1]:
                        out[r, c] += kernel[i + reach, j + reach] * image[r + i, c + j]
    return out


def plain(model, x, y, eps, steps, amplification, factor=1.0, carried=True, kernel=None, towards=False):
    rows = []
    for i in range(len(x)):
        start, x_adv, a = x[i, 0], x[i, 0].clone(), torch.zeros_like(x[i, 0])
        alpha = amplification * eps / steps
        for _ in range(steps):
            g = slow_gradient(model, x_adv[None, None], y[i : i + 1])[0, 0] * (-1 if towards else 1)
            if kernel is not None:
                g = blurred(g, kernel)
            step = alpha * g.sign()
            a = a + step
            cut = (a.abs() - eps).clamp_min(0) * a.sign()
            r = torch.zeros_like(a)
            for row in range(a.shape[0]):
                for column in range(a.shape[1]):
                    r[row, column] = factor * alpha * sign(around(cut, row, column))
            a = a + r if carried else a
            x_adv = torch.minimum(torch.maximum(x_adv + step + r, start - eps), start + eps).clamp(0, 1)
        rows.append(x_adv[None, None])
    return torch.cat(rows)


@pytest.mark.parametrize("towards", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"amplification": 2.5},
        {"amplification": 3.1, "project_factor": 0.37},
        {"amplification": 2.3, "project_factor": 0.8, "carried": False, "kernel": gaussian_kernel(3, 1.0).double()},
    ],
    ids=["pi", "factor", "pi++"],
)
def test_equals_the_plain_loop(fields, towards):
    """The factors keep the handed-on sums off zero, where a sign would hang on the order of a sum."""
    model, (x, y) = smooth_net(), batch(n=6)
    x_adv = PIFGSM(eps=0.1, steps=4, targeted=towards, **fields)(model, x, y)
    named = {"factor": fields.get("project_factor", 1.0), "carried": fields.get("carried", True)}
    expected = plain(
        model, x, y, 0.1, 4, fields["amplification"], kernel=fields.get("kernel"), towards=towards, **named
    )
    torch.testing.assert_close(x_adv, expected)
    assert (x_adv - x).abs().max() <= 0.1 + 1e-12


def test_without_amplification_and_projection_it_is_iterative_fgsm():
    model, (x, y) = relu_net(), batch(n=8)
    attack = PIFGSM(eps=0.1, steps=5, amplification=1.0, project_factor=0)
    torch.testing.assert_close(attack(model, x, y), MIFGSM(eps=0.1, steps=5, decay=0)(model, x, y))


def test_a_radius_a_sample_and_a_mask():
    model, (x, y) = smooth_net(), batch(n=6)
    eps = torch.linspace(0.01, 0.1, 6, dtype=torch.float64)
    x_adv = PIFGSM(eps=eps, steps=3)(model, x, y)
    for i in range(6):
        torch.testing.assert_close(
            x_adv[i : i + 1], PIFGSM(eps=float(eps[i]), steps=3)(model, x[i : i + 1], y[i : i + 1])
        )
    mask = torch.rand(1, 4, 4) < 0.5
    x_adv = PIFGSM(eps=0.1, steps=3, mask=mask)(model, x, y)
    assert torch.equal(x_adv[:, ~mask], x[:, ~mask]) and not torch.equal(x_adv, x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PIFGSM(p=2), ValueError, r"p must be math\.inf for PIFGSM, got 2"),
        (lambda: PIFGSM(steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda: PIFGSM(amplification=0), ValueError, "amplification must be finite and > 0, got 0"),
        (lambda: PIFGSM(amplification=math.nan), ValueError, "amplification must be finite"),
        (lambda: PIFGSM(project_factor=-1), ValueError, "project_factor must be finite and >= 0, got -1"),
        (lambda: PIFGSM(project_factor="1"), TypeError, "project_factor must be a number, got str"),
        (lambda: PIFGSM(carried=0), TypeError, "carried must be True or False, got 0"),
        (lambda: PIFGSM(kernel=torch.ones(3)), ValueError, "kernel must have shape"),
        (
            lambda: PIFGSM()(relu_net(shape=(6,)), *batch(shape=(6,))),
            ValueError,
            r"PIFGSM takes images \(B, C, H, W\), got shape \(6, 6\)",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
