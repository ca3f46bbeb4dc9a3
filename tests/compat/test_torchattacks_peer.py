"""What torchattacks' own test file asks of every class, on a small network and without a download.

Each class is made with its defaults and attacks a few images. No attack may raise the accuracy, nor may its targeted
form with random targets, where it has one. Classes that are not here are counted.
"""

import contextlib

import pytest
import torch

import soatfast.compat.torchattacks as compat
from tests.nets import conv_net

RUN = [name for name in compat.__all__ if name not in compat.__wrapper__]


@pytest.fixture(scope="module")
def settled():
    """A network, images, and labels that it gets right but for one."""
    model = conv_net().eval()
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    return model, images, labels


@pytest.mark.parametrize("outer", [torch.no_grad, contextlib.nullcontext])
@pytest.mark.parametrize("name", RUN)
def test_no_class_raises_the_accuracy(settled, name, outer):
    model, images, labels = settled

    def right(x):
        with torch.no_grad():
            return int((model(x).argmax(1) == labels).sum())

    torch.manual_seed(0)
    with outer():
        attack = getattr(compat, name)(model)
        adversarial = [attack(images, labels)]
        if "targeted" in attack.supported_mode:
            attack.set_mode_targeted_random(quiet=True)
            adversarial.append(attack(images, labels))
    for x in adversarial:
        assert x.shape == images.shape and not x.requires_grad and right(x) <= right(images)
        assert (name == "VANILA") == torch.equal(x, images)


def test_classes_are_counted():
    torchattacks = pytest.importorskip("torchattacks")
    asked = [name for name in torchattacks.__all__ if name not in torchattacks.__wrapper__]
    assert (len(asked), len(RUN), len(set(asked) - set(RUN))) == (37, 23, 14)
