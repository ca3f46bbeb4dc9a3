"""What holds for the fields of every attack, loss and explanation, and for the numbers that any function takes."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from soatfast import attacks, explain, losses, ops
from soatfast.attacks.autoattack import AutoAttack
from soatfast.memory import PerturbationMemory
from soatfast.memory.crops import CropFlip
from soatfast.ops.arguments import check_flag, check_number, check_radius, check_steps, norm_name, norm_order
from soatfast.runs.files import describe

PUBLIC = [getattr(package, name) for package in (attacks, losses, explain) for name in package.__all__]
CLASSES = [
    each
    for each in (*PUBLIC, AutoAttack, CropFlip)
    if dataclasses.is_dataclass(each) and each.__dataclass_params__.frozen and "__post_init__" in dir(each)
]
FIELDS = [(each, field) for each in CLASSES for field in dataclasses.fields(each) if field.init]
FLAGS = [(each, field.name) for each, field in FIELDS if field.type in ("bool", bool)]
NUMBERS = [(each, field) for each, field in FIELDS if type(field.default) in (int, float)]


def made(cls, **fields):
    """An instance with these fields; what has no default gets one."""
    if "memory" in {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}:
        fields = {"memory": PerturbationMemory(4, (1, 2, 2)), **fields}
    return cls(**fields)


def name_of(value):
    return getattr(value, "__name__", None) or getattr(value, "name", None)


def test_the_lists_below_are_not_empty():
    assert len(FLAGS) > 20 and len(NUMBERS) > 80
    assert {cls.__name__ for cls, _ in FLAGS} >= {"PGD", "FrankWolfe", "SimBA", "SOAE", "SCORPIO", "CropFlip"}


@pytest.mark.parametrize(("cls", "name"), FLAGS, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("value", ["False", 1, 0, None, np.True_, torch.tensor(True)])
def test_a_flag_is_true_or_false(cls, name, value):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got ") as error:
        made(cls, **{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("cls", "field"), NUMBERS, ids=name_of)
def test_a_numpy_scalar_is_a_number_and_becomes_pythons(cls, field):
    scalar = np.int64 if type(field.default) is int else np.float32
    given = scalar(field.default)
    if not field.type.startswith(("int", "float")):
        return  # one of a few values: CURE's power
    config = made(cls, **{field.name: given})
    value = getattr(config, field.name)
    assert type(value) is type(field.default) and value == given
    if issubclass(cls, (attacks.Attack, losses.Loss)):
        json.dumps(describe(config), allow_nan=True)


def test_an_attack_with_numpy_scalars_is_the_attack():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x, y = torch.rand(2, 1, 2, 2), torch.tensor([0, 2])
    plain = attacks.FrankWolfe(eps=0.25, steps=2, p=2.0, h=0.5)
    numpy = attacks.FrankWolfe(eps=np.float32(0.25), steps=np.int64(2), p=np.float64(2), h=np.float16(0.5))
    assert numpy == plain and repr(numpy) == repr(plain)
    assert torch.equal(numpy(model, x, y), plain(model, x, y))
    assert torch.equal(ops.lmo(x, np.float32(2), np.float32(0.25)), ops.lmo(x, 2, 0.25))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: ops.lmo(torch.rand(3, 4), 2, a), "eps must be a number or a tensor, got a NumPy array"),
        (lambda a: ops.lmo(a, 2, 0.1), "expected a floating tensor, got a NumPy array"),
        (lambda a: attacks.PGD(eps=a), "eps must be a number or a tensor, got a NumPy array"),
        (lambda a: attacks.MIFGSM(decay=a), "decay must be a number, got a NumPy array"),
        (
            lambda a: attacks.PGD()(torch.nn.Identity(), a, torch.zeros(3, dtype=torch.int64)),
            "x must be .* NumPy array",
        ),
        (lambda a: attacks.PGD()(torch.nn.Identity(), torch.rand(3, 4), a), "y must be .* NumPy array"),
        (lambda a: losses.CrossEntropy()(torch.nn.Identity(), a, a), "x must be .* NumPy array"),
    ],
)
def test_a_numpy_array_is_told_how_it_becomes_a_tensor(call, message):
    with pytest.raises(TypeError, match=message) as error:
        call(np.zeros((3, 4), dtype=np.float32))
    assert "torch.from_numpy" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [True, "0.1", None, 1j, [0.1]])
def test_what_is_no_number(value):
    for check in (check_number, check_steps, check_radius):
        with pytest.raises(TypeError, match=r"name must be a (whole )?number"):
            check(value, "name")
    with pytest.raises(TypeError, match="p must be a number"):
        norm_order(value)
    with pytest.raises(TypeError, match=r"steps must be a whole number, got 2.0"):
        check_steps(2.0)


def test_ranges_and_names():
    assert check_number(0, "a", above=False) == 0 and check_steps(np.uint8(0), least=0) == 0
    assert [norm_name(p) for p in (1, 1.5, 2.0, math.inf)] == ["L1", "L1.5", "L2", "Linf"]
    for call in (
        lambda: check_number(0, "a"),
        lambda: check_number(math.nan, "a"),
        lambda: check_steps(1, "a", least=2),
    ):
        with pytest.raises(ValueError, match="a must be "):
            call()
    check_flag(False, "a")
