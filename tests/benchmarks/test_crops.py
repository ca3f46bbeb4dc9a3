"""benchmarks.crops: that a measurement runs and prints both ways."""

import re

from benchmarks import crops


def test_it_measures_and_prints_both_ways(capsys):
    single, whole = crops.measured(crops.Options(batches=2, batch=4, size=8))
    assert single > 0 and whole > 0
    crops.main(crops.Options(batches=1, batch=4, size=8))
    said = capsys.readouterr().out
    assert re.search(r"image by image +[\d.]+ us an image\nwhole batch +[\d.]+ us an image, \d+ times", said)
