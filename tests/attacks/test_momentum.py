"""What MIFGSM takes beside the momentum (NI-, SI-, VMI-, TI-, DI-FGSM): against plain loops, a sample at a time."""

import math

import pytest
import torch
import torch.nn.functional as F

import soatfast as sf
from soatfast.attacks import MIFGSM, ResizePad, gaussian_kernel
from soatfast.gradients import count_passes
from tests.nets import batch, relu_net, slow_gradient, smooth_net

EPS, ALPHA, STEPS = 0.2, 0.06, 5


def plain(model, x, y, decay=0.8, nesterov=False, scales=1, neighbours=None, blur=None, sign=1.0):
    """The papers' update; neighbours: (steps - 1, n, B, ...) offsets; blur: a function of a gradient (1, C, H, W)."""
    rows = []
    for i in range(len(x)):
        x0, x_adv, m, v = x[i : i + 1], x[i : i + 1], torch.zeros_like(x[:1]), torch.zeros_like(x[:1])

        def gradient(point, i=i):
            parts = [slow_gradient(model, point / 2**s, y[i : i + 1]) / 2**s for s in range(scales)]
            return sign * sum(parts) / scales

        for k in range(STEPS):
            g = gradient(x_adv + decay * ALPHA * m if nesterov else x_adv)
            tuned = blur(g + v) if blur else g + v
            m = decay * m + tuned / tuned.abs().mean()
            if neighbours is not None and k < STEPS - 1:
                v = sum(gradient(x_adv + u[i : i + 1]) for u in neighbours[k]) / len(neighbours[k]) - g
            x_adv = x0 + (x_adv + ALPHA * m.sign() - x0).clamp(-EPS, EPS)
            x_adv = x_adv.clamp(0, 1)
        rows.append(x_adv)
    return torch.cat(rows)


def ours(**fields):
    return MIFGSM(eps=EPS, steps=STEPS, step_size=ALPHA, decay=0.8, **fields)


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("fields", [{"nesterov": True}, {"scales": 3}, {"nesterov": True, "scales": 4}], ids=str)
def test_looks_ahead_and_scales_as_the_plain_loop(fields, targeted):
    model, (x, y) = smooth_net(), batch(n=8)
    expected = plain(model, x, y, sign=-1.0 if targeted else 1.0, **fields)
    torch.testing.assert_close(ours(targeted=targeted, **fields)(model, x, y), expected)
    assert not torch.equal(expected, plain(model, x, y)) or targeted


@pytest.mark.parametrize("fields", [{}, {"nesterov": True}, {"scales": 2}], ids=str)
def test_tunes_the_variance_as_the_plain_loop(fields):
    model, (x, y) = smooth_net(), batch(n=8)
    generator = torch.Generator().manual_seed(3)
    drawn = [
        [1.5 * EPS * torch.empty_like(x).uniform_(-1, 1, generator=generator) for _ in range(3)]
        for _ in range(STEPS - 1)
    ]
    attack = ours(neighbours=3, generator=torch.Generator().manual_seed(3), **fields)
    torch.testing.assert_close(attack(model, x, y), plain(model, x, y, neighbours=drawn, **fields))


@pytest.mark.parametrize("channels", [1, 3])
def test_blurs_the_gradient_as_a_sum_over_the_neighbours(channels):
    shape = (channels, 5, 5)
    model, (x, y) = smooth_net(shape=shape), batch(n=4, shape=shape)
    kernel = torch.rand(channels, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.3

    def blur(g):
        padded, out = F.pad(g, (1, 1, 1, 1)), torch.zeros_like(g)
        for r in range(3):
            for c in range(3):
                out += kernel[:, r, c].view(1, -1, 1, 1) * padded[:, :, r : r + 5, c : c + 5]
        return out

    torch.testing.assert_close(ours(kernel=kernel)(model, x, y), plain(model, x, y, blur=blur))


def test_a_look_ahead_without_momentum_and_one_scale_change_nothing():
    model, (x, y) = relu_net(), batch(n=8)
    attack = MIFGSM(eps=EPS, steps=4, decay=0)
    assert torch.equal(MIFGSM(eps=EPS, steps=4, decay=0, nesterov=True)(model, x, y), attack(model, x, y))
    one = torch.ones(1, 1, dtype=torch.float64)
    torch.testing.assert_close(MIFGSM(eps=EPS, steps=4, decay=0, kernel=one)(model, x, y), attack(model, x, y))


def test_normalised_inputs_are_scaled_and_searched_as_pixels():
    """eps a channel runs in units of eps: the same perturbation as of a model that normalises inside."""
    norm = sf.Normalized([0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
    model, (x, y) = smooth_net(shape=(3, 4, 4)), batch(n=6, shape=(3, 4, 4))
    for fields in ({"nesterov": True, "scales": 3}, {"neighbours": 2}, {"kernel": gaussian_kernel(3, 1.0)}):
        made = [MIFGSM(eps=0.1, steps=4, generator=torch.Generator().manual_seed(0), **fields) for _ in range(2)]
        inside = made[0](lambda pixels: model(norm.inputs(pixels)), x, y)
        outside = norm.pixels(norm(made[1])(model, norm.inputs(x), y))
        torch.testing.assert_close(outside, inside, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "times"),
    [({"nesterov": True}, 5), ({"scales": 3}, 15), ({"neighbours": 2}, 13), ({"scales": 2, "neighbours": 3}, 34)],
    ids=str,
)
def test_passes(fields, times):
    model, (x, y) = relu_net(), batch()
    attack = MIFGSM(eps=EPS, steps=5, **fields)
    with count_passes(model) as counted:
        attack(model, x, y)
    assert counted.total() == attack.passes(6) and attack.passes().forward == times


def test_a_known_gradient_is_used_where_it_is_the_first_one():
    model, (x, y) = smooth_net(), batch()
    for fields, saved in (({"nesterov": True}, 1), ({"scales": 2}, 0)):
        attack = MIFGSM(eps=0.2, steps=3, **fields)
        with attack.oracle(model) as oracle:
            g0 = oracle.gradient(x, y)
            with count_passes(model) as counted:
                known = attack.run(oracle, x, y, g0=g0)
        torch.testing.assert_close(known, attack(model, x, y))
        assert counted.forward == attack.passes().forward - saved


def test_a_resized_image_is_the_interpolated_one_in_zeros():
    x = torch.rand(2, 3, 10, 20)
    sizes = set()
    for seed in range(40):
        change = ResizePad(0.5, 1.0, torch.Generator().manual_seed(seed))
        shown = change.changed(x)
        assert shown.shape == x.shape
        inside = (shown != 0).any(0).any(0)
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        top, left, height, width = int(rows[0]), int(columns[0]), len(rows), len(columns)
        assert 10 <= width < 20 and height == width * 10 // 20
        expected = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)
        torch.testing.assert_close(shown[:, :, top : top + height, left : left + width], expected)
        sizes.add(width)
    assert len(sizes) > 5
    assert ResizePad(1.5, 1.0).changed(x).shape == (2, 3, 15, 30)
    assert ResizePad(prob=0.0).changed(x) is x


def test_the_attack_sees_resized_images_and_the_evaluation_does_not():
    model, (x, y) = relu_net(), batch()
    seen = []
    forward = ResizePad(0.5, 1.0, forward=lambda m, shown: seen.append(shown) or m(shown))
    x_adv = MIFGSM(eps=EPS, steps=3, forward=forward)(model, x, y)
    assert len(seen) == 3 and all((shown == 0).any() for shown in seen)
    assert (x_adv - x).abs().max() <= EPS + 1e-12
    changed = {"forward": ResizePad(0.5, 1.0)}
    accuracy = sf.evaluate.accuracy(model, (x, y), MIFGSM(eps=0.0, steps=1, **changed)).accuracy
    assert accuracy == sf.evaluate.accuracy(model, (x, y)).accuracy


def test_the_gaussian_kernel():
    kernel = gaussian_kernel(15, 3.0).double()
    at = torch.linspace(-3, 3, 15, dtype=torch.float64)
    expected = torch.distributions.Normal(0, 1).log_prob(at[:, None]).exp() * torch.exp(-(at**2) / 2)
    torch.testing.assert_close(kernel, expected / expected.sum(), rtol=1e-6, atol=1e-9)
    assert kernel.sum() == pytest.approx(1, abs=1e-6) and gaussian_kernel(1).tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MIFGSM(nesterov=1), TypeError, "nesterov must be True or False, got 1"),
        (lambda: MIFGSM(nesterov=True, p=2), ValueError, r"nesterov and neighbours need p = math\.inf, got p = 2"),
        (lambda: MIFGSM(neighbours=2, p=2), ValueError, r"nesterov and neighbours need p = math\.inf, got p = 2"),
        (lambda: MIFGSM(scales=0), ValueError, "scales must be at least 1, got 0"),
        (lambda: MIFGSM(scales=2.0), TypeError, "scales must be a whole number, got 2.0"),
        (lambda: MIFGSM(neighbours=-1), ValueError, "neighbours must be at least 0, got -1"),
        (lambda: MIFGSM(reach=math.nan), ValueError, "reach must be finite and >= 0, got nan"),
        (lambda: MIFGSM(reach="1"), TypeError, "reach must be a number, got str"),
        (lambda: MIFGSM(kernel=[[1.0]]), TypeError, "kernel must be a floating tensor, got list"),
        (lambda: MIFGSM(kernel=torch.ones(3, 3, dtype=torch.int64)), TypeError, r"floating tensor, got torch\.int64"),
        (
            lambda: MIFGSM(kernel=torch.ones(3)),
            ValueError,
            r"kernel must have shape \(h, w\) or \(C, h, w\), got \(3,\)",
        ),
        (lambda: MIFGSM(kernel=torch.full((3, 3), math.nan)), ValueError, "kernel must be finite"),
        (lambda: ResizePad(rate=1), ValueError, "rate must not be 1, which is the image's size, got 1"),
        (lambda: ResizePad(rate=math.nan), ValueError, "rate must be finite and > 0, got nan"),
        (lambda: ResizePad(prob=1.5), ValueError, r"prob must be a number in \[0, 1\], got 1.5"),
        (lambda: ResizePad(prob="1"), TypeError, "prob must be a number, got str"),
        (lambda: ResizePad(forward=3), TypeError, "forward must be a callable"),
        (lambda: gaussian_kernel(0), ValueError, "size must be at least 1, got 0"),
        (lambda: gaussian_kernel(3, math.inf), ValueError, "deviations must be finite and > 0, got inf"),
    ],
)
def test_bad_fields(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_bad_batches():
    flat, (x, y) = smooth_net(shape=(6,)), batch(shape=(6,))
    with pytest.raises(ValueError, match=r"a kernel needs images \(B, C, H, W\), got shape \(6, 6\)"):
        MIFGSM(kernel=torch.ones(3, 3))(flat, x, y)
    with pytest.raises(ValueError, match=r"ResizePad takes images \(B, C, H, W\), got shape \(6, 6\)"):
        MIFGSM(forward=ResizePad())(flat, x, y)
    x, y = batch()
    with pytest.raises(ValueError, match="kernel has 3 channels, the images have 1"):
        MIFGSM(kernel=torch.ones(3, 3, 3))(relu_net(), x, y)
    with pytest.raises(ValueError, match=r"an image of width 4 has no other size at rate 1\.1"):
        MIFGSM(forward=ResizePad(1.1))(relu_net(), x, y)
    with pytest.raises(
        ValueError, match=r"eps must be a number or have shape|step_size must be a number or have shape"
    ):
        MIFGSM(nesterov=True, step_size=torch.ones(5))(relu_net(), x, y)
