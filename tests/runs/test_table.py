"""Tables and pictures."""

import io
import json

import pytest
import torch
from rich.console import Console

from soatfast.runs.figures import Series, comparison
from soatfast.runs.table import Column, Table, mean_and_spread

COLUMNS = [
    Column("name", "method"),
    Column("acc", "PGD-40 %"),
    Column("fwd", "F", 0),
    Column("up", "speed-up", 2, "×"),
]
TABLE = Table(
    "digits",
    COLUMNS,
    [
        {"name": "a|b", "acc": [77.0, 78.0, 79.0], "fwd": 11, "up": [1.0]},
        {"name": "plain", "acc": [0.0], "fwd": 1, "up": None},
    ],
    "A note.",
)


def test_markdown():
    assert TABLE.to_markdown().splitlines() == [
        "# digits",
        "",
        "| method |   PGD-40 % |   F | speed-up |",
        "| ------ | ---------: | --: | -------: |",
        "| a\\|b   | 78.0 ± 1.0 |  11 |    1.00× |",
        "| plain  |        0.0 |   1 |        – |",
        "",
        "A note.",
    ]


def test_json_keeps_every_value():
    described = json.loads(json.dumps(TABLE.to_json()))
    rows = described["rows"]
    assert rows[0]["acc"] == {"mean": 78.0, "spread": 1.0, "values": [77.0, 78.0, 79.0]}
    assert rows[1] == {
        "name": "plain",
        "acc": {"mean": 0.0, "spread": None, "values": [0.0]},
        "fwd": {"mean": 1, "spread": None, "values": [1]},
        "up": None,
    }
    again = Table.from_json(described)
    assert again.to_markdown() == TABLE.to_markdown() and again.to_json() == described
    for other in (None, [], {"title": "t"}, {**described, "rows": [1]}, {**described, "columns": [{"x": 1}]}):
        with pytest.raises(ValueError, match="no table of this version"):
            Table.from_json(other)


def test_rich_table_shows_every_cell():
    out = io.StringIO()
    Console(file=out, width=100).print(TABLE.to_rich())
    for text in ("digits", "PGD-40 %", "78.0 ± 1.0", "1.00×", "A note."):
        assert text in out.getvalue()


def test_spread_is_the_sample_standard_deviation():
    assert mean_and_spread([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
    with pytest.raises(ValueError, match="at least one"):
        mean_and_spread([])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("seeds", [1, 3])
def test_picture(tmp_path, channels, seeds):
    matplotlib_image = pytest.importorskip("matplotlib.image")
    clean, labels = torch.rand(5, channels, 8, 8), torch.arange(5)
    series = [Series(f"method {i}", [10.0 + i] * seeds, [70.0 + i] * seeds, clean, labels.roll(i), i) for i in range(3)]
    comparison(tmp_path / "picture.png", series, clean, labels, "PGD-40", "title")
    pixels = matplotlib_image.imread(tmp_path / "picture.png")
    assert 500 < pixels.shape[0] < 1200
    assert 1500 < pixels.shape[1] < 2000
    assert pixels[..., :3].std() > 0.05
