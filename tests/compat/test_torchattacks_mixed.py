"""Attacks of torchattacks, and others that are called alike, inside a wrapper of this package: every setter arrives."""

import pytest
import torch
from torch import nn

import soatfast.compat.torchattacks as compat
from tests.nets import batch, conv_net

MEAN, STD = [0.5, 0.4, 0.6], [0.2, 0.3, 0.25]


class Foreign:
    """Somebody's attack, of no library: it has torchattacks' setters and notes what it is told."""

    def __init__(self, model):
        self.model, self.told, self.normalization_used = model, {}, None

    def __call__(self, images, labels):
        self.seen = images
        return images

    def __getattr__(self, name):
        if name.startswith(("set_", "_set_")):
            return lambda *given, **named: self.told.update({name: (given, named)})
        raise AttributeError(name)


class Wrapper(compat.Attack):
    """Holds attacks in whatever it is given."""

    def __init__(self, model, held):
        super().__init__("Wrapper", model)
        self.held = held
        self.supported_mode = ["default", "targeted"]


@pytest.mark.parametrize(
    "hold",
    [
        lambda attack: attack,
        lambda attack: [attack],
        lambda attack: ("eps", attack, None),
        lambda attack: {"first": attack},
        lambda attack: {attack: 0.5},
        lambda attack: {"all": [{"deep": (attack,)}, 3], "again": attack},
        lambda attack: {attack},
    ],
    ids=["itself", "list", "tuple", "value", "key", "nested", "set"],
)
def test_every_setter_arrives_wherever_an_attack_is_kept(hold):
    model, other = conv_net(), conv_net(seed=1)
    inner = Foreign(model)
    wrapper = Wrapper(model, hold(inner))
    wrapper.set_normalization_used(MEAN, STD)
    wrapper.set_device("cpu")
    wrapper.set_model(other)
    wrapper.set_model_training_mode(True, batchnorm_training=True)
    wrapper.set_mode_targeted_random(quiet=True)
    wrapper.set_mode_targeted_least_likely(2, quiet=True)
    wrapper.set_mode_targeted_by_label(quiet=True)
    wrapper.set_mode_default()
    assert inner.told == {
        "set_normalization_used": ((MEAN, STD), {}),
        "_set_normalization_applied": ((True,), {}),
        "set_device": (("cpu",), {}),
        "set_model": ((other,), {}),
        "set_model_training_mode": ((True,), {"batchnorm_training": True}),
        "set_mode_targeted_random": ((), {"quiet": True}),
        "set_mode_targeted_least_likely": ((2,), {"quiet": True}),
        "set_mode_targeted_by_label": ((), {"quiet": True}),
        "set_mode_default": ((), {}),
    }
    assert wrapper.held is not None


def test_a_model_or_a_class_with_such_a_method_is_no_attack():
    class Model(nn.Linear):
        def set_device(self, device):
            raise AssertionError("told")

    wrapper = Wrapper(Model(2, 2), [Model(2, 2), compat.PGD])
    wrapper.set_device("cpu")
    assert wrapper.device == "cpu"


def test_attacks_that_hold_each_other_end():
    model = conv_net()
    a = Wrapper(model, None)
    a.held = [a, {"me": a}]
    a.set_device("cpu")
    assert a.device == "cpu"


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_mixed_multiattack_is_as_strong_as_theirs(order):
    torchattacks = pytest.importorskip("torchattacks")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 7)).eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    x = (torch.rand(300, 3, 12, 12) - mean) / std
    y = model(x).argmax(1)
    left = []
    for first, second in ((torchattacks, torchattacks), (torchattacks, compat), (compat, compat)):
        made = [first.FGSM(model, eps=0.002), second.PGDL2(model, eps=0.2)]
        multi = (torchattacks if second is torchattacks else compat).MultiAttack([made[i] for i in order])
        multi.set_normalization_used(MEAN, STD)
        torch.manual_seed(1)
        left.append((model(multi(x, y)).argmax(1) == y).double().mean().item())
    assert (
        0.05 < left[0] < 0.95
        and left[1] == pytest.approx(left[0], abs=0.01)
        and left[2] == pytest.approx(left[0], abs=0.01)
    )


def test_a_wrapper_in_a_wrapper_with_theirs_inside():
    torchattacks = pytest.importorskip("torchattacks")
    model, (x, y) = conv_net(), batch(n=8, shape=(3, 8, 8), classes=5, dtype=torch.float32)
    inner = torchattacks.MultiAttack([torchattacks.FGSM(model), torchattacks.BIM(model)])
    outer = compat.MultiAttack([compat.MultiAttack([inner, compat.FGSM(model)]), compat.BIM(model)])
    outer.set_normalization_used(MEAN, STD)
    assert inner.normalization_used is not None and inner.attacks[1].normalization_used is not None
    outer(outer.normalize(x), y)
    assert inner._normalization_applied is True and inner.attacks[0]._normalization_applied is True


class MadeLate(compat.Attack):
    """As LGV does: the attack is made in the call, when normalisation is long set."""

    def __init__(self, model, library):
        super().__init__("MadeLate", model)
        self.library, self.base_attack = library, None

    def forward(self, images, labels):
        self.base_attack = self.library.FGSM(self.model, eps=0.05)
        return self.base_attack(images, labels)


@pytest.mark.parametrize("theirs", [False, True])
def test_an_attack_that_is_made_in_the_call_is_told_of_the_normalisation(theirs):
    library = pytest.importorskip("torchattacks") if theirs else compat
    model, (x, y) = conv_net().eval(), batch(n=8, shape=(3, 8, 8), classes=5, dtype=torch.float32)
    plain = compat.FGSM(model, eps=0.05)
    wrapper = MadeLate(model, library)
    for attack in (plain, wrapper):
        attack.set_normalization_used(MEAN, STD)
    normal = plain.normalize(x)
    for _ in range(2):
        torch.testing.assert_close(wrapper(normal, y), plain(normal, y), rtol=0, atol=1e-5)
    assert wrapper.base_attack._normalization_applied is True
