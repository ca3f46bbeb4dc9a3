"""The table of systems: complete, with oracle tests that exist, and passes that are the counted ones."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import systems
from benchmarks.system_rows import ATTACKS, LOSSES, AttackSystem
from soatfast import attacks, losses
from soatfast.attacks import PGD, Attack
from soatfast.gradients.passes import Passes
from soatfast.losses import Loss

ROOT = Path(__file__).parents[2]
SYSTEMS = (*LOSSES, *ATTACKS)


def class_of(system):
    return type(system.attack if isinstance(system, AttackSystem) else system.make())


def public(module, base):
    found = (getattr(module, name) for name in module.__all__)
    return {item for item in found if isinstance(item, type) and issubclass(item, base) and item is not base}


def test_every_public_loss_and_attack_has_a_row():
    assert {class_of(system) for system in LOSSES} == public(losses, Loss)
    assert {class_of(system) for system in ATTACKS} == public(attacks, Attack)
    assert {f"named.{name}" for name in attacks.named.NAMED} <= {system.name for system in ATTACKS}
    assert len({system.name for system in SYSTEMS}) == len(SYSTEMS)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_formula_declared_and_counted_passes_agree(system):
    declared, counted = systems.declared_and_counted(system)
    assert declared == counted
    assert system.of_formula() == (declared.forward, declared.backward_input, declared.backward_parameters)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)
def test_the_oracle_test_exists_and_speaks_of_it(system):
    text = (ROOT / "tests" / system.oracle).read_text(encoding="utf-8")
    words = [class_of(system).__name__]
    if system.name.startswith("named."):
        words = [system.name.removeprefix("named.")]
    if isinstance(system, AttackSystem):
        words.append("def test_")
    inner = getattr(getattr(system, "make", lambda: None)(), "attack", None)
    if inner is not None and words == ["AdversarialTraining"]:
        words.append(type(inner).__name__)
    assert all(re.search(rf"\b{word}", text) for word in words), (system.name, words)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"formula": ("K", "K + 1", "0")}, "formula"), ({"oracle": "attacks/test_none.py"}, "there is no tests/attacks/")],
)
def test_a_wrong_row_is_an_error(change, text, capsys):
    wrong = dataclasses.replace(ATTACKS[1], at={"K": 40, "R": 1}, **change)
    with mock.patch.object(systems, "ATTACKS", (wrong,)):
        assert systems.main(systems.Options()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: PGD: ") and text in error


def test_a_wrong_declaration_is_an_error():
    with (
        mock.patch.object(PGD, "passes", lambda self, batch=1: Passes(1, 1)),
        pytest.raises(systems.MismatchError, match="PGD: formula"),
    ):
        systems.check(ATTACKS[1])


def test_the_page_is_the_present_table():
    """docs/systems.md names every system, with the passes of today; its accuracies are of the run that wrote it."""
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    assert "smoke run, not a ranking" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    expected = []
    for system in SYSTEMS:
        declared, counted = systems.check(system)
        expected.append([systems.code(system.name), system.paper, system.shown_formula(), declared, counted])
    assert [row[:5] for row in rows] == expected
    assert all(0 <= float(row[-1]) <= 100 for row in rows)


def test_the_page_is_written_from_figures():
    options = systems.Options(epochs=1, train_samples=50, test_samples=20)
    figures = {system.method: {"clean": 90.0, "pgd40": 12.3} for system in LOSSES}
    text = systems.page(options, figures, 91.0, {system.name: 45.6 for system in ATTACKS})
    assert "1 epoch on 50 digits" in text and text.count("12.3") == len(LOSSES) and text.count("45.6") == len(ATTACKS)
