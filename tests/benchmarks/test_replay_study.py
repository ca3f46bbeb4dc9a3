"""The study's tables and curves, from a made-up run folder."""

import json
from unittest import mock

import pytest
from matplotlib.axes import Axes

from benchmarks.replay_study import Study, results, tables, write


def one(seconds, pgd40, epochs, passes, **others):
    training = {"seconds": seconds, "passes": {"backward_input": passes}, "history": [{}] * epochs}
    figures = {"clean": 0.9, "pgd40": pgd40, **others}
    return {"training": training, "evaluation": {name: {"accuracy": value} for name, value in figures.items()}}


@pytest.fixture
def study(tmp_path):
    made = {
        "eps-0.3": {
            "pgd10": [one(40, 0.62, 15, 10), one(50, 0.64, 15, 10)],
            "replay": [one(10, 0.6, 15, 1, autoattack=0.5), one(10, 0.64, 15, 1, autoattack=0.6)],
        },
        "eps-0.3-60": {"replay": [one(36, 0.7, 60, 1), one(45, 0.7, 60, 1)]},
        "eps-0.3-5": {"replay": [one(3, 0.25, 2, 1)]},  # as --epochs 2 --seeds 1 leaves it
    }
    for setting, methods in made.items():
        (tmp_path / setting).mkdir()
        found = {"methods": {method: {"runs": runs} for method, runs in methods.items()}}
        (tmp_path / setting / "results.json").write_text(json.dumps(found))
    return Study(run_dir=tmp_path)


def test_results_are_read_a_seed_at_a_time(study):
    found = results(study)
    assert list(found) == ["eps-0.3", "eps-0.3-60", "eps-0.3-5"]
    row = found["eps-0.3"]["replay"]
    assert (row["epochs"], row["seconds"], row["passes"]) == ([15, 15], [10, 10], [1, 1])
    assert row["pgd40"] == [60, 64] and row["autoattack"] == [50, 60]
    assert "autoattack" not in found["eps-0.3-5"]["replay"]


def test_tables(study):
    lines = tables(results(study)).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "### Linf 0.3, 15 epochs",
        "### Linf 0.3, 60 epochs",
        "### Linf 0.3, 2 epochs",  # those trained, not those of the setting
    ]
    rows = [line for line in lines if line.startswith("| ") and "training s" not in line]
    assert rows == [
        "| PGD-10 training | 10 | 45.0 ± 7.1 | 1.00 | 90.0 ± 0.0 | 63.0 ± 1.4 | – |",
        "| FW replay, 1 step | 1 | 10.0 ± 0.0 | 0.23 | 90.0 ± 0.0 | 62.0 ± 2.8 | 55.0 ± 7.1 |",
        "| FW replay, 1 step | 1 | 40.5 ± 6.4 | 0.90 | 90.0 ± 0.0 | 70.0 ± 0.0 | – |",
        "| FW replay, 1 step | 1 | 3.0 | – | 90.0 | 25.0 | – |",
    ]


def test_curves_are_marked_with_the_epochs_trained(study):
    with mock.patch.object(Axes, "annotate", autospec=True) as annotate:
        write(study)
    assert [call.args[1] for call in annotate.call_args_list] == ["2", "15", "60"]  # one method has several points
    assert (study.run_dir / "study.png").stat().st_size > 5_000
    assert (study.run_dir / "study.md").read_text(encoding="utf-8") == tables(results(study))
