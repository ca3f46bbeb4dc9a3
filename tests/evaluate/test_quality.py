"""PSNR and SSIM against loops over their definitions."""

import math

import pytest
import torch

from soatfast.evaluate import image_quality


def slow_psnr(a, b, top):
    return 10 * math.log10(top**2 / float(((a - b) ** 2).mean()))


def slow_ssim(a, b, top):
    """Window by window and channel by channel."""
    place = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * top) ** 2, (0.03 * top) ** 2
    values = []
    for c in range(a.shape[0]):
        for i in range(a.shape[1] - 10):
            for j in range(a.shape[2] - 10):
                p, q = a[c, i : i + 11, j : j + 11], b[c, i : i + 11, j : j + 11]
                mp, mq = float((window * p).sum()), float((window * q).sum())
                vp, vq = float((window * (p - mp) ** 2).sum()), float((window * (q - mq) ** 2).sum())
                cov = float((window * (p - mp) * (q - mq)).sum())
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return sum(values) / len(values)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("top", [1.0, 255.0])
def test_against_the_definitions(channels, top):
    x = top * torch.rand(5, channels, 13, 15, dtype=torch.float64)
    x_adv = (x + top * 0.05 * torch.randn_like(x)).clamp(0, top)
    found = image_quality(x, x_adv, data_range=top, batch_size=2)
    for i in range(5):
        assert found.psnr[i].item() == pytest.approx(slow_psnr(x[i], x_adv[i], top), rel=1e-6), (
            "its logarithms are of float32"
        )
        assert found.ssim[i].item() == pytest.approx(slow_ssim(x[i], x_adv[i], top), rel=1e-6)
    assert found.mean == (pytest.approx(found.psnr.mean().item()), pytest.approx(found.ssim.mean().item()))


def test_known_values():
    x = torch.full((2, 1, 28, 28), 0.5)
    found = image_quality(x, x + torch.tensor([0.0, 8 / 255]).view(2, 1, 1, 1))
    assert found.psnr[0] == math.inf and found.ssim[0] == pytest.approx(1.0)
    assert found.psnr[1].item() == pytest.approx(30.07, abs=0.01), "a shift of c: -20 log10 c"
    assert image_quality(x[:1], x[:1]).psnr.shape == (1,)
    assert image_quality(x[:0], x[:0]).ssim.shape == (0,)


@pytest.mark.parametrize(
    ("a", "b", "data_range", "text"),
    [
        ((2, 1, 16, 16), (2, 1, 16, 17), 1.0, "alike"),
        ((2, 16, 16), (2, 16, 16), 1.0, r"\(N, C, H, W\)"),
        ((2, 1, 16, 10), (2, 1, 16, 10), 1.0, "window is 11 x 11, got images of 16 x 10"),
        ((2, 1, 16, 16), (2, 1, 16, 16), 0.0, "data_range"),
    ],
)
def test_wrong_arguments(a, b, data_range, text):
    with pytest.raises(ValueError, match=text):
        image_quality(torch.rand(a), torch.rand(b), data_range)


def test_without_torchmetrics(without_torchmetrics):
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        image_quality(torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16))


@pytest.mark.parametrize(("value", "error"), [(None, 1e-6), (1.0, 2e-4)])
def test_single_precision_is_as_near_as_it_says(value, error):
    x = torch.rand(4, 1, 20, 20) if value is None else torch.full((4, 1, 20, 20), value)
    x_adv = (x - 0.01 * torch.rand_like(x)).clamp(0, 1)
    fast, exact = (image_quality(x, x_adv, dtype=dtype) for dtype in (torch.float32, torch.float64))
    torch.testing.assert_close(fast.ssim, exact.ssim, rtol=0, atol=error)
    torch.testing.assert_close(fast.psnr, exact.psnr, rtol=1e-5, atol=0)
