"""Fractions on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import tyro

from soatfast.commands.fractions import number, registry
from soatfast.commands.main import main


@dataclass
class Options:
    eps: float = 0.3
    step: float | None = None
    sigmas: tuple[float, ...] = ()


def parsed(*words):
    return tyro.cli(Options, args=words, registry=registry())


def test_fractions():
    assert parsed("--eps", "8/255", "--step", "2/255") == Options(8 / 255, 2 / 255)
    assert parsed("--step", "None", "--sigmas", "1/2", "0.5", "1e-3") == Options(0.3, None, (0.5, 0.5, 1e-3))
    assert number("-1/4") == -0.25 and number(" 3 ") == 3 and math.isinf(number("inf"))


@pytest.mark.parametrize("text", ["8/0", "8/", "/255", "8/2/5", "eps", "", "0x10", "1,5"])
def test_what_is_no_number(text, capsys):
    with pytest.raises(ValueError, match=r"expected a number, such as 0\.03 or 8/255, got"):
        number(text)
    with pytest.raises(SystemExit):
        parsed("--eps", text)
    assert "8/255" in capsys.readouterr().err


def test_help_shows_the_default(capsys):
    with pytest.raises(SystemExit):
        parsed("--help")
    assert "0.3" in capsys.readouterr().out


def test_the_commands_take_them(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--eps", "8/0"])
    assert "8/255" in "".join(capsys.readouterr())
