"""The PNGs: there, of a sensible size, not blank, and no room for an empty list."""

import numpy as np
import pytest

from soatfast.evaluate import Curve, compare_margins, curves_picture, scatter_picture
from soatfast.gradients.passes import Passes


def curve(label, *values):
    return Curve(label, (1, 10, 100)[: len(values)], values, 0.97, Passes(), Passes())


def pixels(path):
    return pytest.importorskip("matplotlib.image").imread(path)[..., :3]


@pytest.mark.parametrize("steps", [True, False])
def test_curves(tmp_path, steps):
    curves = [curve("PGD", 0.9, 0.5, 0.4), curve("FGSM", 0.95)]
    curves_picture(tmp_path / "c.png", curves, "title", steps)
    picture = pixels(tmp_path / "c.png")
    assert 500 < picture.shape[0] < 800 and 900 < picture.shape[1] < 1100 and picture.std() > 0.05
    with pytest.raises(ValueError, match="no curves"):
        curves_picture(tmp_path / "c.png", [], "title")


@pytest.mark.parametrize("panels", [1, 2])
def test_scatter(tmp_path, panels):
    random = np.random.default_rng(0)
    white = random.normal(size=100)
    found = compare_margins(white, white + 0.3 * random.normal(size=100))
    scatter_picture(tmp_path / "s.png", [("one", found)] * panels, "PGD-100", "SimBA", "title")
    picture = pixels(tmp_path / "s.png")
    assert 600 < picture.shape[0] < 900 and 500 * panels < picture.shape[1] < 750 * panels and picture.std() > 0.05
    constant = compare_margins(np.zeros(3), np.zeros(3))
    scatter_picture(tmp_path / "s.png", [("one point", constant)], "a", "b", "title")
    with pytest.raises(ValueError, match="no scatters"):
        scatter_picture(tmp_path / "s.png", [], "a", "b", "title")
