"""PSNR and SSIM in the suite: of which examples, what an unperturbed one counts, what is said where there are none."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from soatfast.attacks import FGSM, PGD
from soatfast.evaluate import image_quality, load_suite, quality, suite
from soatfast.runs.errors import RunFolderError
from tests.nets import batch, relu_net

SHAPE = (1, 13, 12)
ATTACKS = {"pgd": PGD(eps=0.05, steps=3), "fgsm": FGSM(eps=0.05)}


@pytest.fixture
def net():
    return relu_net(torch.float32, SHAPE)


@pytest.fixture
def samples(net):
    """Every fourth is wrong already."""
    x, _ = batch(24, SHAPE, dtype=torch.float32)
    with torch.no_grad():
        predicted = net(x).argmax(1)
    return x, torch.where(torch.arange(24) % 4 == 0, (predicted + 1) % 4, predicted)


def brighter(model, x, y):
    """Perturbs every second sample that it is given."""
    return (x + 0.02 * (torch.arange(len(x)) % 2).view(-1, 1, 1, 1)).clamp(0, 1)


def test_it_is_the_quality_of_the_final_example_and_means_leave_out_what_is_unperturbed(net, samples):
    x, y = samples
    right = torch.arange(24) % 4 != 0
    x_adv = x.clone()
    x_adv[right] = brighter(net, x[right], y[right])
    expected = image_quality(x, x_adv)
    found = suite(net, [samples], {"brighter": brighter})["brighter"]
    np.testing.assert_allclose(found.psnr, expected.psnr.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found.ssim, expected.ssim.numpy(), atol=1e-5)
    changed = np.isfinite(found.psnr)
    assert changed.sum() == 9 and (found.ssim[~changed] == 1).all() and (found.ssim[changed] < 1).all()
    psnr, ssim = found.quality
    assert psnr == pytest.approx(float(expected.psnr[expected.psnr.isfinite()].mean()), rel=1e-5)
    assert ssim == pytest.approx(float(expected.ssim[expected.psnr.isfinite()].mean()), abs=1e-5) and psnr < 40


def test_large_images_are_measured_a_few_at_a_time(monkeypatch):
    x, _ = batch(7, SHAPE, dtype=torch.float32)
    x_adv = (x + 0.02).clamp(0, 1)
    whole = quality.quality_of_changed(x, x_adv, 1.0)
    sizes = []
    real = quality._ssim
    monkeypatch.setattr(quality, "_ENTRIES", 3 * x[0].numel())
    monkeypatch.setattr(quality, "_ssim", lambda metrics, a, *rest: sizes.append(len(a)) or real(metrics, a, *rest))
    torch.testing.assert_close(quality.quality_of_changed(x, x_adv, 1.0).ssim, whole.ssim)
    assert sizes == [3, 3, 1]


def test_the_range_is_that_of_the_attacks_box(net):
    x, y = batch(6, SHAPE, dtype=torch.float32)
    y = net(2 * x - 1).argmax(1).detach()
    attack = {"fgsm": FGSM(eps=0.1, bounds=(-1, 1))}
    found = suite(net, [(2 * x - 1, y)], attack)["fgsm"]
    half = suite(nn.Sequential(Shift(), net), [(x, y)], {"fgsm": FGSM(eps=0.05)})["fgsm"]
    np.testing.assert_allclose(found.psnr, half.psnr, rtol=1e-4)


class Shift(nn.Module):
    def forward(self, x):
        return 2 * x - 1


def test_the_table_says_it(net, samples):
    found = suite(net, [samples], {**ATTACKS, "nothing": lambda model, x, y: x})
    rows = {row["name"]: row for row in found.table().rows}
    assert (rows["clean"]["psnr"], rows["nothing"]["ssim"]) == (None, None), "nothing is perturbed"
    assert rows["fgsm"]["psnr"] == found["fgsm"].quality[0] and 0.5 < rows["fgsm"]["ssim"] < 1
    assert rows["fgsm"]["psnr"] == pytest.approx(-20 * math.log10(0.05), abs=0.5)
    assert "PSNR, SSIM: means over the perturbed images" in found.table().note
    assert "| PSNR dB |" in found.table().to_markdown()


def test_compaction_changes_no_figure(net, samples):
    for worst_case in (False, True):
        active, plain = (
            suite(net, [samples], ATTACKS, worst_case=worst_case, compact=compact) for compact in (True, False)
        )
        for name in ATTACKS:
            np.testing.assert_allclose(active[name].psnr, plain[name].psnr, rtol=1e-5)
            np.testing.assert_allclose(active[name].ssim, plain[name].ssim, atol=1e-5)


def test_resuming_gives_the_same_to_the_bit(net, samples, tmp_path):
    loader = list(zip(*(t.split(9) for t in samples), strict=True))
    whole = suite(net, loader, ATTACKS)

    def stop(name, done, total):
        if done > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite(net, loader, ATTACKS, folder=tmp_path, progress=stop)
    again, read = suite(net, loader, ATTACKS, folder=tmp_path), load_suite(tmp_path)
    for name in ATTACKS:
        for key in ("psnr", "ssim"):
            expected = getattr(whole[name], key)
            assert not np.isnan(expected).any() and expected.dtype == np.float32
            assert all(np.array_equal(getattr(found[name], key), expected) for found in (again, read))


@pytest.mark.parametrize(("shape", "psnr"), [((1, 8, 8), True), ((64,), False)])
def test_small_images_have_a_psnr_and_vectors_nothing(shape, psnr):
    net = relu_net(torch.float32, shape)
    x, _ = batch(6, shape, dtype=torch.float32)
    found = suite(net, [(x, net(x).argmax(1))], {"fgsm": FGSM(eps=0.1)})["fgsm"]
    assert np.isnan(found.ssim).all() and np.isfinite(found.psnr).all() == psnr
    assert (found.quality[0] is not None) == psnr and found.quality[1] is None


def test_without_torchmetrics_the_rest_is_there_and_it_is_said(net, samples, tmp_path, without_torchmetrics):
    found = suite(net, [samples], ATTACKS, folder=tmp_path)
    assert np.isnan(found["fgsm"].psnr).all() and found["fgsm"].quality == (None, None)
    assert "torchmetrics is missing (pip install torchmetrics)" in found.table().note
    assert "torchmetrics is missing" in load_suite(tmp_path).table().note
    with pytest.raises(ImportError, match="pip install torchmetrics"):
        suite(net, [samples], ATTACKS, quality=True)


def test_records_with_and_without_are_not_mixed(net, samples, tmp_path):
    suite(net, [samples], ATTACKS, folder=tmp_path, quality=False)
    with pytest.raises(RunFolderError, match="quality was False, now True"):
        suite(net, [samples], ATTACKS, folder=tmp_path)
