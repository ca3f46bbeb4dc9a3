"""benchmarks.report: the table in a file, and the picture where races belong to a plot."""

import json

from benchmarks import report


def record(batch: int, ratio: float, series: str | None = "PGD-10, net") -> dict:
    info = {"title": f"race {batch}", "torch": "0", "threads": 1}
    info |= {"microseconds": {"soatfast": 1.0, "rival": ratio}, "ratios": {"soatfast": 1.0, "rival": ratio}}
    return {"extra_info": info | ({} if series is None else {"series": series, "at": batch})}


def write(path, records):
    path.write_text(json.dumps({"machine_info": {"cpu": {}}, "benchmarks": records}))


def test_table_and_picture(tmp_path, capsys):
    path = tmp_path / "bench.json"
    write(path, [record(1, 1.5), record(8, 2.5), record(3, 9.0, series=None), {"extra_info": {}}])
    assert report.main([str(path)]) == 0
    text = (tmp_path / "bench.md").read_text()
    assert text == capsys.readouterr().out and "| race 8 | 1 | rival 2.50 |" in text
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_what_a_plot_holds():
    assert report.plots([record(8, 2.5), record(1, 1.5), record(3, 9.0, series=None)]) == {
        "PGD-10, net": {"rival": [(8, 2.5), (1, 1.5)]}
    }


def test_no_picture_without_a_plot(tmp_path):
    write(tmp_path / "bench.json", [record(3, 9.0, series=None)])
    assert report.main([str(tmp_path / "bench.json")]) == 0
    assert not (tmp_path / "bench.png").exists()
