"""`soatfast bench` on a small checkout that the test writes, and the short timing."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from soatfast.commands import bench
from soatfast.commands import main as cli
from soatfast.commands.bench import BenchConfig
from soatfast.runs.errors import UserError
from soatfast.runs.progress import Progress

pytest.importorskip("pytest_benchmark")
ROOT = Path(__file__).parents[2]
TINY = """
def test_race(benchmark):
    benchmark(lambda: sum(range(10)))
    benchmark.extra_info.update(
        title="{name}", torch="0", threads=1, microseconds={{"soatfast": 1.0, "eager": 2.0}}, ratios={{"eager": 2.0}}
    )
"""


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / "checkout" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    shutil.copy(ROOT / "benchmarks" / "report.py", folder)
    for name in ("one", "two"):
        (folder / f"bench_{name}.py").write_text(TINY.format(name=name))
    return folder.parent


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Stages(Progress):
    def __init__(self, stop=None):
        self.stop, self.names = stop, []

    def stage(self, name, index, total):
        self.names.append(name)
        if name == self.stop:
            raise KeyboardInterrupt


def test_a_checkouts_benchmarks_file_by_file(tmp_path, checkout):
    config = BenchConfig(run_dir=tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        bench.run(config, Stages("bench_two"), checkout)
    kept = tmp_path / "run" / "parts" / "one.json"
    before = kept.stat().st_mtime_ns
    text = bench.run(config, checkout=checkout)
    assert "| one | 1 | eager 2.00 |" in text and "| two | 1 | eager 2.00 |" in text
    assert kept.stat().st_mtime_ns == before, "what was done is done again"
    assert (tmp_path / "run" / "bench.md").read_text() == text
    assert len(json.loads((tmp_path / "run" / "bench.json").read_text())["benchmarks"]) == 2
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    assert options["command"] == "bench" and options["versions"] and options["machine"]["threads"] >= 1
    stages = Stages()
    bench.run(BenchConfig(run_dir=tmp_path / "run", only=("two",), fresh=True), stages, checkout)
    assert stages.names == ["bench_two"] and not kept.exists()


def test_mistakes(tmp_path, checkout):
    with pytest.raises(UserError, match="only must be some of one, two, got three"):
        bench.run(BenchConfig(run_dir=tmp_path / "run", only=("three",)), checkout=checkout)
    (checkout / "benchmarks" / "bench_one.py").write_text("import no_such_package\n")
    with pytest.raises(UserError, match=r"bench_one failed: .*no_such_package"):
        bench.run(BenchConfig(run_dir=tmp_path / "run"), checkout=checkout)
    with pytest.raises(UserError, match="only chooses among a checkout's benchmarks"):
        bench.run(BenchConfig(run_dir=tmp_path / "run", only=("one",)), checkout=tmp_path)
    with pytest.raises(ValueError, match="without quick, got one"):
        BenchConfig(only=("one",), quick=True)


def test_short_timing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "_ROUNDS", 1)
    assert cli.main(["bench", "--quick", "--run-dir", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| lmo, p = inf, (128, 3072)" in out and "its bare passes" in out
    assert len(json.loads((tmp_path / "bench.json").read_text())["races"]) == 8
    monkeypatch.setattr(bench, "_CHECKOUT", tmp_path)
    assert "PyTorch" in bench.run(BenchConfig(run_dir=tmp_path), checkout=tmp_path), "where there is no checkout"
    (tmp_path / "options.json").write_text("{}")
    assert cli.main(["bench", "--quick", "--run-dir", str(tmp_path), "--fresh"]) == 1
    assert "does not hold benchmarks" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert cli.main(["bench", "--quick", "--run-dir", str(tmp_path / "file" / "x")]) == 1
    assert "cannot be written" in capsys.readouterr().err
