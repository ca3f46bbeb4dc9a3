"""What can be said on the command line: every public attack and loss with options; the nearest of a wrong name."""

import dataclasses
import importlib
import math
import re

import pytest

from soatfast import attacks, losses
from soatfast.attacks import Attack
from soatfast.commands import main as cli
from soatfast.commands.options import class_name
from soatfast.losses import FGSMPGI, AdversarialTraining, Loss

UNSAYABLE = {
    "eps", "p", "bounds", "targeted", "forward", "mask", "kernel", "generator", "memory", "state", "return_output"
}  # fmt: skip
"""eps, p: options of the command. bounds, targeted: images in [0, 1], true labels. return_output: for scripts. Else
functions, tensors, state."""
SAID_OTHERWISE = {AdversarialTraining, FGSMPGI}
"""By its attack, named at the end of `soatfast train`; by `--method fgsm-pgi`, as it needs a memory of the data."""


def classes(module, base):
    found = [getattr(module, name) for name in module.__all__]
    return [cls for cls in found if isinstance(cls, type) and issubclass(cls, base) and cls is not base]


ATTACKS, LOSSES = classes(attacks, Attack), classes(losses, Loss)


def parsed(command, *words):
    needed = ["--model", "tests.nets:relu_net"] if command == "attack" else []
    name, config = cli._parse([command, *needed, *words])
    assert name == command
    return config


@pytest.mark.parametrize("command", ["attack", "train"])
@pytest.mark.parametrize("cls", ATTACKS)
def test_every_public_attack_can_be_said(cls, command):
    said = parsed(command, "--eps", "0.1", class_name(cls)).at_end
    assert said.make(0.1, math.inf) == cls(eps=0.1)
    assert {f.name for f in dataclasses.fields(said)} == {f.name for f in dataclasses.fields(cls)} - UNSAYABLE


@pytest.mark.parametrize("cls", [cls for cls in LOSSES if cls not in SAID_OTHERWISE])
def test_every_public_loss_can_be_said(cls):
    said = parsed("train", "--eps", "0.1", class_name(cls)).at_end
    fields = {f.name: f.default for f in dataclasses.fields(cls)}
    given = {"eps": 0.1} if fields.get("eps") is not None else {}
    given |= {"p": math.inf} if "p" in fields else {}
    assert said.make(0.1, math.inf) == cls(**given)
    assert {f.name for f in dataclasses.fields(said)} == fields.keys() - UNSAYABLE


def test_options_of_a_class_count():
    assert parsed("attack", "mifgsm", "--steps", "20").at_end.make(0.1, 2) == attacks.MIFGSM(eps=0.1, p=2, steps=20)
    assert parsed("train", "soar", "--strength", "0.1").at_end.make(0.1, 2) == losses.SOAR(eps=0.1, p=2, strength=0.1)
    penalty = parsed("train", "input-gradient-penalty", "--variant", "dual").at_end.make(0.1, 2)
    assert penalty == losses.InputGradientPenalty(variant="dual", eps=0.1)
    assert parsed("train", "stn", "--noise", "asod").at_end.make(0.1, 2).attack.eps == 0.1


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["attack", "--model", "a:b", "mifgsn"], "there is no attack or loss 'mifgsn'; the nearest are mifgsm"),
        (["train", "soarr"], "there is no attack or loss 'soarr'; the nearest are soar"),
        (["attack", "--model", "a:b", "--attack", "pgd41"], "there is no attack 'pgd41'; the nearest are pgd40"),
        (["train", "--method", "scorpo"], "there is no method 'scorpo'; the nearest are scorpio"),
        (["compare", "--methods", "standard", "tardes"], "there is no method 'tardes'; the nearest are trades"),
        (["compare", "--attacks", "clean", "pgd40", "hat"], "there is no attack 'hat'; the nearest are haat"),
        (["explain", "--attack", "quadrtic"], "there is no attack 'quadrtic'; the nearest are quadratic"),
    ],
)
def test_a_wrong_name_has_near_ones(words, near, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert near in said
    names = re.match(r"[\w-]+(, [\w-]+)*", said.partition("the nearest are ")[2])[0].split(", ")
    assert len(names) == 3, "not all of them"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_command_is_its_file_and_its_row(name):
    file, config = cli.COMMANDS[name]
    module = importlib.import_module(f"soatfast.commands.{file}")
    assert dataclasses.is_dataclass(getattr(module, config)) and callable(module.run)
    same = getattr(module, file, None)
    assert getattr(same, "__module__", None) != module.__name__, "no function of a file has its name"
