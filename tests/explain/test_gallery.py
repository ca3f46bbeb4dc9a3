"""Galleries: they are drawn, in colour, and show what they are given."""

import pytest
import torch

from soatfast.attacks import PGD
from soatfast.explain import ContrastivePair, PertinentPositive, Saliency, gallery
from soatfast.gradients import count_passes
from tests.nets import conv_net, relu_net

matplotlib_image = pytest.importorskip("matplotlib.image")


def colours(path):
    """(height, width, number of different colours that are no greys)."""
    pixels = torch.from_numpy(matplotlib_image.imread(path)[..., :3].copy())
    found = pixels.view(-1, 3).mul(255).round().long().unique(dim=0)
    return *pixels.shape[:2], int((found.amax(1) - found.amin(1) > 40).sum())


def images(channels, n=4):
    model = conv_net(channels=channels)
    x = torch.rand(n, channels, 8, 8)
    return model, x, torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [None, 0.1])
def test_perturbations(tmp_path, channels, scale):
    model, x, y = images(channels)
    shown = [gallery.attacked(model, PGD(eps=0.1, steps=2), x, y, name, style=i) for i, name in enumerate("ab")]
    gallery.perturbations(tmp_path / "picture.png", x, y, shown, scale, "title")
    height, width, found = colours(tmp_path / "picture.png")
    assert 600 < height < 1000 and 600 < width < 1000 and found > 10


@pytest.mark.parametrize("channels", [1, 3])
def test_saliencies(tmp_path, channels):
    model, x, y = images(channels)
    maps = [("gradient", Saliency()(model, x, y)), ("nothing", torch.zeros_like(x))]
    gallery.saliencies(tmp_path / "picture.png", x, y, maps, "title", [0, 1])
    assert colours(tmp_path / "picture.png")[2] > 10


@pytest.mark.parametrize("channels", [1, 3])
def test_explanations(tmp_path, channels):
    model, x, y = images(channels)
    pair = ContrastivePair(eps=1.0, steps=2)(model, x, y)
    least = PertinentPositive(steps=5, searches=2)(model, x)
    found = [("negative", pair.negative), ("positive", pair.positive), ("least", least)]
    gallery.explanations(tmp_path / "picture.png", x, y, (pair.predictions, pair.confidence), found, "title")
    assert colours(tmp_path / "picture.png")[2] > 10


def test_what_an_attacked_batch_knows():
    model, x = relu_net(torch.float32, (1, 8, 8)), torch.rand(5, 1, 8, 8)
    y = model(x).argmax(1)
    attack = PGD(eps=0.2, steps=3, random_start=False)
    with count_passes(model) as counted:
        one = gallery.attacked(model, attack, x, y)
    assert one.name == "PGD" and torch.equal(one.image, attack(model, x, y))
    assert torch.equal(one.before[0], y) and torch.equal(one.after[0], model(one.image).argmax(1))
    assert torch.allclose(one.after[1], model(one.image).softmax(1).amax(1))
    assert counted.forward == attack.passes().forward + 2


def test_notes():
    assert gallery.verdicts((torch.tensor([3, 10]), torch.tensor([0.874, 1.0])), "was ") == [
        "was 3  87 %",
        "was 10  100 %",
    ]
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    model[1].weight.data, model[1].bias.data = torch.zeros(2, 4), torch.tensor([1.0, 0.0])
    x = torch.rand(2, 1, 2, 2)
    found = PertinentPositive(steps=3, searches=1)(model, x, torch.tensor([0, 1]))
    assert gallery._notes(found) == ["0  73 %, empty", "none found"]


def row(strip):
    from matplotlib.figure import Figure

    figure = Figure()
    cells = figure.subplots(1, len(strip.images), squeeze=False)
    gallery._row(figure, cells[0], strip)
    return cells[0]


def test_signed_images_are_centred_at_0_and_end_at_the_scale():
    images = torch.tensor([[0.0, 0.03, -0.03]]).view(1, 1, 1, 3)
    (cell,) = row(gallery.Strip("delta", images, scale=0.03))
    shown = cell.images[0]
    assert shown.get_clim() == (-0.03, 0.03)
    white, red, blue = shown.cmap(shown.norm(shown.get_array())).reshape(3, 4)[:, :3]
    assert white.min() > 0.95 and red[0] > 2 * red[2] and blue[2] > 2 * blue[0]


def test_of_three_channels_the_largest_is_shown():
    images = torch.tensor([0.01, -0.03, 0.02]).view(1, 3, 1, 1)
    assert row(gallery.Strip("delta", images, scale=0.03))[0].images[0].get_array().item() == pytest.approx(-0.03)


def test_a_mark_is_more_than_a_colour():
    cells = row(gallery.Strip("attacked", torch.rand(2, 1, 4, 4), notes=["3", "4"], marks=[False, True]))
    assert [cell.get_title() for cell in cells] == ["3", "4 ×"]
    assert [cell.spines["top"].get_visible() for cell in cells] == [False, True]


@pytest.mark.parametrize(
    ("strip", "message"),
    [
        ({"images": torch.rand(2, 4, 8, 8)}, r"shape \(K, 1 or 3, H, W\), got \(2, 4, 8, 8\)"),
        ({"images": torch.rand(8, 8)}, r"got \(8, 8\)"),
        ({"images": torch.rand(0, 1, 8, 8)}, r"got \(0, 1, 8, 8\)"),
        ({"images": torch.rand(2, 1, 8, 8), "scale": 0.0}, "scale must be greater than 0, got 0"),
        ({"images": torch.rand(2, 1, 8, 8), "notes": ["a"]}, "expected 2 notes or none, got 1"),
        ({"images": torch.rand(2, 1, 8, 8), "marks": [True] * 3}, "expected 2 marks or none, got 3"),
    ],
)
def test_bad_strips(strip, message):
    with pytest.raises(ValueError, match=message):
        gallery.Strip("name", **strip)


def test_strips_of_different_lengths(tmp_path):
    strips = [gallery.Strip("a", torch.rand(n, 1, 8, 8)) for n in (2, 3)]
    with pytest.raises(ValueError, match=r"the same number of images, got \[2, 3\]"):
        gallery.draw(tmp_path / "picture.png", strips)
    with pytest.raises(ValueError, match="no strips"):
        gallery.draw(tmp_path / "picture.png", [])
