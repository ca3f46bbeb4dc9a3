"""The table of systems: complete, with oracle tests that exist, and passes that are the counted ones."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import systems
from benchmarks.systems import ATTACKS, LOSSES
from soatfast import attacks, losses
from soatfast.attacks import PGD, Attack, catalogue
from soatfast.attacks.catalogue import AttackRow
from soatfast.gradients.passes import Passes
from soatfast.losses import AdversarialTraining, Loss
from soatfast.losses import catalogue as catalogue_of_losses

ROOT = Path(__file__).parents[2]
SYSTEMS = (*LOSSES, *ATTACKS)
PGD40 = next(row for row in ATTACKS if row.name == "pgd40")


def public(module, base):
    found = (getattr(module, name) for name in module.__all__)
    return {item for item in found if isinstance(item, type) and issubclass(item, base) and item is not base}


def test_every_public_loss_and_attack_has_a_row():
    assert {type(systems.made(row)) for row in LOSSES} == public(losses, Loss)
    # Those whose passes hang on the samples have rows without counts; FAB's row is its targeted form.
    rows = {type(made) for row in catalogue.ATTACKS if isinstance(made := systems.made(row), Attack)}
    assert rows | {attacks.FAB} == public(attacks, Attack)
    assert {name.lower() for name in attacks.named.NAMED} <= {row.name for row in ATTACKS}


def test_names_and_labels_are_unique():
    for rows in (catalogue.ATTACKS, catalogue_of_losses.LOSSES):
        for field in ("name", "label"):
            assert len({getattr(row, field) for row in rows}) == len(rows)


@pytest.mark.parametrize("row", SYSTEMS, ids=lambda row: row.label)
def test_formula_declared_and_counted_passes_agree(row):
    declared, counted = systems.declared_and_counted(row)
    assert declared == counted
    assert systems.of_formula(row) == (declared.forward, declared.backward_input, declared.backward_parameters)


@pytest.mark.parametrize("row", SYSTEMS, ids=lambda row: row.label)
def test_the_oracle_test_exists_and_speaks_of_it(row):
    text = (ROOT / "tests" / row.facts.oracle).read_text(encoding="utf-8")
    one = systems.made(row)
    words = [row.label if row.label in attacks.named.NAMED else type(one).__name__]
    if isinstance(row, AttackRow):
        words.append("def test_")
    if isinstance(one, AdversarialTraining):
        words.append(type(one.attack).__name__)
    assert all(re.search(rf"\b{word}", text) for word in words), (row.name, words)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"passes": ("K", "K + 1", "0")}, "formula"), ({"oracle": "attacks/test_none.py"}, "there is no tests/attacks/")],
)
def test_a_wrong_row_is_an_error(change, text, capsys):
    wrong = dataclasses.replace(PGD40, facts=dataclasses.replace(PGD40.facts, **change))
    with mock.patch.object(systems, "ATTACKS", (wrong,)):
        assert systems.main(systems.Options()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: pgd40: ") and text in error


def test_a_wrong_declaration_is_an_error():
    with (
        mock.patch.object(PGD, "passes", lambda self, batch=1: Passes(1, 1)),
        pytest.raises(systems.MismatchError, match="pgd40: formula"),
    ):
        systems.check(PGD40)


def test_the_page_is_the_present_table():
    """docs/systems.md names every system, with the passes of today; its accuracies are of the run that wrote it."""
    text = (ROOT / "docs" / "systems.md").read_text(encoding="utf-8")
    assert "smoke run, not a ranking" in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| `")]
    expected = []
    for row in SYSTEMS:
        shown = systems.shown_formula(row)
        expected.append([f"`{row.name}`", row.label, systems.kind(row), row.facts.paper, shown, *systems.check(row)])
    assert [row[:7] for row in rows] == expected
    assert all(0 <= float(row[-1]) <= 100 for row in rows)


def test_the_page_is_written_from_figures():
    options = systems.Options(epochs=1, train_samples=50, test_samples=20)
    figures = {row.name: {"clean": 90.0, "pgd40": 12.3} for row in LOSSES}
    text = systems.page(options, figures, 91.0, {row.name: 45.6 for row in ATTACKS})
    assert "1 epoch on 50 digits" in text and text.count("12.3") == len(LOSSES) and text.count("45.6") == len(ATTACKS)
