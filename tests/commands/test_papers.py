"""The papers' numbers and claims: data that fits this package, verdicts against SciPy, and the page."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
from scipy import stats

from soatfast.commands.compare import CompareConfig, TrainConfig
from soatfast.commands.compare import run as compare
from soatfast.commands.methods import COLUMNS, METHODS
from soatfast.commands.papers import CLAIMS, FLAGS, TABLES, Measured, measured, record, words, write
from soatfast.commands.papers.measured import Cost
from soatfast.commands.papers.page import page
from soatfast.commands.papers.verdicts import FAILS, HOLDS, MISSING, OPEN, Cheaper, Part, difference, together
from soatfast.commands.presets import TABLES_ATTACKS, TABLES_METHODS
from soatfast.runs import files

SEEDS = 3


def made_up(methods=TABLES_METHODS, attacks=TABLES_ATTACKS, seeds=SEEDS, **figures) -> Measured:
    """Every accuracy is 50 and a little more with each seed, but for those given as method__attack=value."""
    accuracy = {name: {key: [50 + 0.1 * i for i in range(seeds)] for key in attacks} for name in methods}
    for cell, value in figures.items():
        name, key = cell.replace("_0_", "-").split("__")
        accuracy[name][key] = [value + 0.1 * i for i in range(seeds)]
    return Measured(
        setting="a small net on digits, Linf 0.2, 15 epochs",
        seeds=seeds,
        labels={name: METHODS[name].label for name in methods},
        headers={key: COLUMNS[key].label for key in attacks},
        accuracy=accuracy,
        training={name: Cost(5, 5 if name.startswith("scorpio") else 11) for name in methods},
        attacks={key: Cost(10, 10) for key in attacks if key != "clean"},
    )


def claim(name):
    return next(c for c in CLAIMS if c.name == name)


def test_tables_fit_this_package():
    for table in TABLES:
        assert set(table.columns) <= set(COLUMNS), table.name
        for row in table.rows:
            assert row.method in METHODS and len(row.values) == len(table.columns), (table.name, row.label)
            assert all(0 <= value <= 100 for value in row.values)
        for number, row, column in table.flags:
            assert number in FLAGS and row in ("", *(r.label for r in table.rows)) and column in ("", *table.columns)
    cells = [(figure.table, figure.row, figure.column) for table in TABLES for figure in table.figures()]
    assert len(cells) == len(set(cells)) == 3 * 5 + 2 * 6 * 5 + 2 * 5 * 5 + 4 * 7 * 6 + 5 * 4


@pytest.mark.parametrize(
    ("table", "row", "column", "value", "flags"),
    [
        ("SCORPIO, table 1", "AT PGD-3", "um100", 62.81, (9,)),
        ("SCORPIO, table 2b", "SCORPIO FE N=3", "ul", 50.5, ()),
        ("SCORPIO, table 7a", "CURE", "tm", 84.3, ()),
        ("SOAE, table I, ResNet18", "SOAT", "autoattack", 39.10, (1, 2)),
        ("SOAE, table II, ResNet18", "SOAR", "pgd20", 56.06, (1, 7)),
        ("SOAE, table II, ResNet18", "SOAT", "soae", 49.27, (5,)),
        ("SOAE, table II, WideResNet", "SOAR", "fgsm", 67.15, (1,)),
        ("SOAE, table III", "SOAT", "autoattack", 52.99, (6,)),
    ],
)
def test_figures_carry_their_flags(table, row, column, value, flags):
    (found,) = [f for t in TABLES for f in t.figures() if (f.table, f.row, f.column) == (table, row, column)]
    assert (found.value, found.flags) == (value, flags) and found.source.startswith("arXiv")


def test_claims_fit_this_package_and_the_preset():
    assert len({c.name for c in CLAIMS}) == len(CLAIMS)
    for one in CLAIMS:
        assert one.cost in ("training", "attack") and set(one.flags) <= set(FLAGS)
        for method, attack in words.cells(one.parts):
            assert method in TABLES_METHODS and attack in ("", "autoattack", *TABLES_ATTACKS), one.name
    assert set(TABLES_METHODS) >= {row.method for table in TABLES for row in table.rows}
    assert {*TABLES_ATTACKS, "autoattack"} >= {column for table in TABLES for column in table.columns}


@pytest.mark.parametrize("b", [[1.0, 2.5, 2.0], [1.0, 2.5], [7.0, 7.5, 7.0]])
def test_welch_interval_is_scipys(b):
    a = [3.0, 5.0, 4.5]
    expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert difference(a, b, paired=False) == pytest.approx((expected.low, expected.high))


def test_paired_interval_is_scipys():
    a, b = [3.0, 5.0, 4.5], [2.0, 4.5, 3.0]
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert difference(a, b, paired=True) == pytest.approx((expected.low, expected.high))


def test_one_seed_tells_nothing_and_no_spread_tells_all():
    assert difference([90.0], [10.0], paired=False) == (-math.inf, math.inf)
    assert difference([0.0, 0.0], [0.0, 0.0], paired=False) == (0, 0)
    assert difference([3.0, 4.0], [1.0, 2.0], paired=True) == (2, 2)


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (60, 0, math.inf, HOLDS),
        (40, 0, math.inf, FAILS),
        (50, 0, math.inf, OPEN),
        (49, -3, math.inf, HOLDS),
        (46, -3, 3, FAILS),
        (54, -3, 3, FAILS),
        (50, -3, 3, HOLDS),
        (53, -3, 3, OPEN),
        (40, -math.inf, 0, HOLDS),
        (60, -math.inf, 0, FAILS),
    ],
)
def test_verdict_of_a_part(value, low, high, expected):
    part = Part(("haat", "pgd20"), ("pgd10", "pgd20"), low, high)
    assert part.verdict(made_up(haat__pgd20=value)) == expected


def test_passes_need_no_seeds():
    found = made_up(seeds=1)
    assert Cheaper("scorpio-ball", "pgd10").verdict(found) == HOLDS
    assert Cheaper("pgd10", "scorpio-ball").verdict(found) == FAILS
    assert Cheaper("pgd10", "pgd7").verdict(found) == FAILS, "as many are not fewer"
    assert Cheaper("pgd10", "mart").verdict(found) == MISSING


def test_one_failing_part_decides_then_a_missing_one():
    assert together([HOLDS, OPEN, MISSING, FAILS]) == FAILS
    assert together([HOLDS, OPEN, MISSING]) == MISSING
    assert together([HOLDS, OPEN]) == OPEN
    assert together([HOLDS, HOLDS]) == HOLDS


def test_a_claim_that_holds_gives_figures_and_passes():
    found = made_up(scorpio_0_ball__ul=49.0, scorpio_0_ball__um=49.0)
    near = claim("scorpio-near-pgd10")
    assert near.verdict(found) == HOLDS
    assert near.here(found) == (
        "UL: SCORPIO FE(3) 49.1 ± 0.1, PGD-10 training 50.1 ± 0.1; UM: SCORPIO FE(3) 49.1 ± 0.1, PGD-10 training "
        "50.1 ± 0.1; backward passes: SCORPIO FE(3) 5, PGD-10 training 11"
    )
    assert near.sentence(found).endswith("forward + backward a sample: SCORPIO FE(3) 5 + 5, PGD-10 training 5 + 11.")


def test_a_claim_that_fails_marks_the_parts():
    defences = ("pgd7", "trades", "soar", "stn", "scorpio-ball", "soat-newton")
    weaker = {f"{name.replace('-', '_0_')}__soae": 40 for name in defences}
    soae = claim("soae-over-pgd")
    assert soae.verdict(made_up(**weaker)) == HOLDS
    found = made_up(**{**weaker, "stn__soae": 60})
    assert soae.verdict(found) == FAILS
    assert "SOAR: 40.1 ± 0.1 under SOAE Newton, 50.1 ± 0.1 under PGD-20; STN: 60.1 ± 0.1 under SOAE Newton, " in (
        soae.here(found)
    )
    assert soae.here(found).count("(no)") == 1 and "50.1 ± 0.1 under PGD-20 (no); SCORPIO" in soae.here(found)
    assert "Passes of the attack, forward + backward a sample: SOAE Newton 10 + 10, PGD-20 10 + 10." in (
        soae.sentence(found)
    )


def test_what_was_not_run_is_named():
    found = made_up(methods=("pgd10", "haat"), attacks=("clean", "pgd40"))
    assert claim("haat-as-pgd").sentence(found).endswith("Not measured: attack pgd20.")
    assert claim("soat-under-autoattack").verdict(made_up()) == MISSING
    partly = made_up(methods=("soat-newton", "pgd7"), soat_0_newton__soae=40)
    under = claim("soat-under-soae")
    assert under.verdict(partly) == FAILS
    assert under.here(partly).endswith(
        "PGD-7 training 50.1 ± 0.1 (no); not measured: methods trades, soar, stn, scorpio-ball"
    )


def test_attacks_that_found_nothing_to_attack_have_no_passes():
    found = dataclasses.replace(made_up(), attacks={})
    assert claim("soae-over-pgd").passes(found) == "no model had a right answer to attack"


def test_the_page_has_every_claim_once_and_every_flag():
    text = page(made_up())
    assert all(text.count(f"- {c.statement} (") == 1 for c in CLAIMS)
    assert all(f"- [{number}] {words}" in text for number, words in FLAGS.items())
    assert all(f"\n### {table.name}\n" in text for table in TABLES)
    assert "One seed has no spread" not in text and "One seed has no spread" in page(made_up(seeds=1))
    assert page(made_up(seeds=1)).startswith("# The papers' claims, on small data\n\n**Of 13 claims of the papers: ")


def test_the_record_is_json_with_every_figure():
    written = json.loads(json.dumps(record(made_up()), allow_nan=False))
    assert [c["verdict"] for c in written["claims"]].count(MISSING) == 1
    assert {"table", "row", "column", "value", "flags", "source"} == set(written["figures"][0])
    assert len(written["tables"]) == len(TABLES)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    pytest.importorskip("sklearn")
    config = CompareConfig(
        preset="tables",
        run_dir=tmp_path_factory.mktemp("runs"),
        methods=("pgd10", "scorpio-ball", "scorpio-cd", "stn"),
        attacks=("clean", "pgd40", "ul", "tl", "um", "tm"),
        seeds=2,
        data="digits8",
        width=4,
        train_samples=60,
        test_samples=30,
        train=TrainConfig(epochs=1, batch_size=30, eps_ramp_epochs=1),
    )
    compare(config)
    return config.run_dir


def test_passes_are_those_of_the_steps_and_of_the_attacks_alone(run):
    found = measured(files.read_json(run / "results.json"))
    assert found.training == {
        "pgd10": Cost(11, 11),
        "scorpio-ball": Cost(5, 5),
        "scorpio-cd": Cost(8, 8),
        "stn": Cost(2, 2),
    }
    assert found.attacks == {"pgd40": Cost(40, 40), **dict.fromkeys(("ul", "tl", "um", "tm"), Cost(10, 10))}
    assert found.setting == "small-cnn on digits8, Linf 0.2, 1 epochs"


def test_a_batch_is_no_larger_than_the_training_set(run):
    results = files.read_json(run / "results.json")
    expected = measured(results).training
    assert results["config"]["train_samples"] == 60
    results["config"]["train"]["batch_size"] = 100
    for method in results["methods"].values():  # of a step on all 60 samples, not on 30
        passes = method["runs"][0]["training"]["passes"]
        passes.update({key: 2 * value for key, value in passes.items() if key.endswith("samples")})
    assert measured(results).training == expected


def test_compare_writes_them_beside_its_results(run):
    assert (run / "papers.md").is_file()
    tables = {t["title"]: t for t in json.loads((run / "papers.json").read_text())["tables"]}
    rows = [(row["row"], row["who"]) for row in tables["SCORPIO, table 2b"]["rows"]]
    assert rows[-2:] == [("AT PGD-10", "paper"), ("PGD-10 training", "here")]
    assert ("Standard", "paper") in rows and ("standard", "here") not in rows, "standard was not trained"
    before = (run / "papers.md").read_text()
    (run / "papers.md").unlink()
    write(run)
    assert (run / "papers.md").read_text() == before


def test_other_comparisons_write_none(tmp_path):
    pytest.importorskip("sklearn")
    config = CompareConfig(
        run_dir=tmp_path,
        methods=("standard",),
        data="digits8",
        width=4,
        train_samples=30,
        test_samples=10,
        train=TrainConfig(epochs=1, batch_size=30),
    )
    compare(config)
    assert not (tmp_path / "papers.md").exists()
    with pytest.raises(ValueError, match="haat needs p = inf, got p = 2"):
        dataclasses.replace(config, methods=("haat",), p=2, eps=1.0)
