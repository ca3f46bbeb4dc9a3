"""What the rows of both catalogues owe: they can be made where they say so, and mean one thing everywhere."""

import math
import subprocess
import sys

import pytest
import torch

from soatfast.attacks import ASOD
from soatfast.attacks.catalogue import ATTACKS
from soatfast.attacks.task import Task
from soatfast.commands.attack import AttackConfig
from soatfast.commands.methods import COLUMNS
from soatfast.evaluate import standard_attacks
from soatfast.gradients import count_passes
from soatfast.losses import Loss
from soatfast.losses.catalogue import LOSSES
from soatfast.train.data.sets import Data
from soatfast.train.subject import Subject
from tests.nets import batch, relu_net

RADIUS = {1: 1.0, 2: 0.5, math.inf: 0.1}


def task(p):
    return Task(RADIUS[p], samples=6, shape=(1, 4, 4), p=p, classes=10)


HERE = [(row, p) for row in ATTACKS for p in row.norms if row.name != "autoattack"]


@pytest.mark.parametrize(("row", "p"), HERE, ids=[f"{row.name}-{p}" for row, p in HERE])
def test_an_attack_is_feasible_in_its_norms_and_makes_its_passes(row, p):
    attack = row.make(task(p))
    model, (x, y) = relu_net(classes=10), batch(n=6, classes=10)
    with count_passes(model) as counted:
        x_adv = attack(model, x, y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert ((x_adv - x).flatten(1).norm(p, dim=1) <= attack.eps * (1 + 1e-5)).all()
    total, declared = counted.total(), attack.passes(6)
    assert total.backward_parameters == 0
    assert total.forward <= declared.forward and total.backward_input <= declared.backward_input
    if not row.full and row.facts is not None:
        assert total == declared


@pytest.mark.parametrize("row", LOSSES, ids=lambda row: row.name)
def test_a_method_is_a_loss_whose_memory_is_the_tasks(row):
    loss = row.make(task(math.inf))
    assert isinstance(loss, Loss)
    memory = getattr(loss, "memory", None)
    assert memory is None or len(memory.visits) == 6


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_the_suite_is_the_catalogues(p):
    made = standard_attacks(eps=RADIUS[p], p=p, classes=10)
    assert made == {row.name: row.make(task(p)) for row in ATTACKS if row.suite and p in row.norms}
    assert standard_attacks(steps=7)["pgd7"].steps == 7 and standard_attacks(simba_steps=16)["simba"].steps == 16


@pytest.mark.parametrize("p", [3, 0.5])
def test_the_suite_knows_three_norms(p):
    with pytest.raises(ValueError, match=r"p must be 1, 2 or math\.inf, got"):
        standard_attacks(p=p)


@pytest.mark.parametrize(("shape", "sigma"), [((1, 4, 4), 0.7), ((3, 4, 4), 100 / 255)])
def test_asod_has_one_sigma_for_a_kind_of_image(shape, sigma):
    """That of the authors' code for MNIST or CIFAR-10, in evaluate, compare, attack and for a class at the end."""
    model = relu_net(torch.float32, shape, 3)
    x, y = torch.rand(2, *shape), torch.tensor([0, 1])
    data = Data("two", None, None, shape, 3)
    config = AttackConfig(attack="asod", subject=Subject(weights="w.safetensors"), eps=0.1)
    made = [
        standard_attacks(eps=0.1)["asod"],
        COLUMNS["asod"].make(Task(0.1, 2, shape)),
        config.make(data),
        ASOD(eps=0.1),
        ASOD(eps=0.1, sigma=sigma),
    ]
    found = []
    for attack in made:
        torch.manual_seed(0)
        found.append(attack(model, x, y))
    assert all(torch.equal(found[0], other) for other in found)
    torch.manual_seed(0)
    assert not torch.equal(found[0], ASOD(eps=0.1, sigma=0.1)(model, x, y))


ADDED = """
from dataclasses import dataclass
from soatfast.attacks import FGSM, catalogue

@dataclass(frozen=True, kw_only=True)
class NewOne(FGSM):
    "One step."

catalogue.ATTACKS += (catalogue.AttackRow("newest", "New", lambda t: NewOne(eps=t.eps, p=t.p), suite=True),)

from soatfast.commands.attack import CLASSES, AttackConfig
from soatfast.commands.compare import CompareConfig
from soatfast.commands.train import CLASSES as TRAINED
from soatfast.evaluate import standard_attacks
from soatfast.train.subject import Subject

assert "newest" in CompareConfig(attacks=("clean", "pgd40", "newest")).attacks
assert type(standard_attacks(eps=0.1)["newest"]) is NewOne
assert AttackConfig(attack="newest", subject=Subject(weights="w")).chosen.label == "New"
assert CLASSES["new-one"] is TRAINED["new-one"] is NewOne
"""


def test_an_attack_in_the_catalogue_alone_is_known_to_every_command():
    done = subprocess.run([sys.executable, "-c", ADDED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_catalogues_need_no_run():
    code = "import sys, soatfast.losses.catalogue; print({'accelerate', 'soatfast.runs'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "set()\n", done.stdout + done.stderr
