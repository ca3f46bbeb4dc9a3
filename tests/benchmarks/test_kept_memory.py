"""benchmarks.kept_memory: which process gives which figure, and that every row runs."""

import pytest

from benchmarks import kept_memory


def test_table(monkeypatch, tmp_path, capsys):
    made = []

    def child(name, kept):
        made.append(kept)
        return {"ms": (10.0 if kept else 20.0) + len(made), "peak": 300.0 + kept}

    monkeypatch.setattr(kept_memory, "_child", child)
    kept_memory.main(kept_memory.Options(rounds=2, only="batch 512", run_dir=tmp_path))
    assert made == [False, True, True, False]
    text = capsys.readouterr().out
    assert (tmp_path / "kept_memory.md").read_text() in text
    row = kept_memory.row("PGD-10, small CNN, batch 512", 2)
    assert row["ratio"] == [pytest.approx(16 / 25), pytest.approx(17 / 28)]
    assert row["ms False"] == [25, 28] and row["ms True"] == [16, 17] and row["peak True"] == [301, 301]


@pytest.mark.parametrize("name", [name for name in kept_memory.WORK if "small CNN" in name])
def test_rows_run(name, monkeypatch):
    monkeypatch.setitem(kept_memory.WORK, name, 1)
    monkeypatch.setattr(kept_memory, "keep_memory", lambda: True)
    found = kept_memory.measure(name, kept=True)
    assert found["ms"] > 0 and found["peak"] > 50


def test_a_setting_that_does_nothing_is_an_error(monkeypatch):
    monkeypatch.setattr(kept_memory, "keep_memory", lambda: False)
    with pytest.raises(RuntimeError, match="needs glibc"):
        kept_memory.measure("PGD-10, small CNN, batch 128", kept=True)
