"""benchmarks.two_trees: which process gives which figure, and that every row runs."""

from pathlib import Path

import pytest

from benchmarks import tree_calls, two_trees


def test_the_tree_beside_itself(tmp_path, capsys):
    tree = Path(two_trees.__file__).parents[1]
    two_trees.main(two_trees.Options(before=tree, pairs=2, only="making", run_dir=tmp_path))
    text = capsys.readouterr().out
    assert "making PGD" in text and (tmp_path / "two_trees.md").read_text() in text


def test_ratios_are_of_pairs_and_after_over_before():
    class Given:
        def __init__(self, *seconds):
            self.seconds_left = [0.1, *seconds]

        def seconds(self, name, times):
            return self.seconds_left.pop(0)

    found = two_trees.row("x", Given(2.0, 4.0, 3.0), Given(4.0, 4.0, 9.0), pairs=3)
    assert found["ratio"] == 2 and found["least"] == 2 and found["before"] == 3000 and found["after"] == 4000


@pytest.mark.parametrize("name", [name for name in tree_calls.WORK if "batch 1" in name.split(", ")])
def test_rows_run(name):
    tree_calls.call(name)()
