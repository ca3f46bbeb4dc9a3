"""The page of a run folder: whole, self-contained, escaped, readable in a browser."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from soatfast.commands import main as cli
from soatfast.commands import papers
from soatfast.commands.compare import CompareConfig
from soatfast.commands.compare import run as compare
from soatfast.commands.curvature import CurvatureConfig
from soatfast.commands.curvature import run as curvature
from soatfast.commands.report import ReportConfig
from soatfast.commands.report import run as report
from soatfast.commands.report.sections import FileReader, sections, trainings, unfinished
from soatfast.evaluate import Column, Table
from soatfast.runs.errors import UserError
from soatfast.train import TrainConfig

TRAIN = TrainConfig(epochs=2, batch_size=30)
CONFIG = CompareConfig(methods=("standard", "pgd4"), train_samples=60, test_samples=20, seeds=2, train=TRAIN)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mlxtend")
    folder = tmp_path_factory.mktemp("runs") / "a & <b>"
    compare(dataclasses.replace(CONFIG, run_dir=folder))
    curvature(CurvatureConfig(run_dir=folder, samples=10, max_dim=3))
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / made.name))


class Reader(html.parser.HTMLParser):
    """What a page refers to, its cells, and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: dict[str, list[str]] = {"td": [], "h2": [], "title": [], "pre": []}
        self.tag = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "img":
            self.images.append(found)
        self.tag = tag
        if tag in self.words:
            self.words[tag].append("")

    def handle_data(self, data: str) -> None:
        if self.tag in self.words:
            self.words[self.tag][-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.tag = ""


def read(path: Path) -> Reader:
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def test_the_page_holds_everything_and_refers_to_nothing(run: Path) -> None:
    path = report(ReportConfig(run_dir=run))
    page = read(path)
    assert path == run / "report.html"
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in page.sources)
    assert [h.strip() for h in page.words["h2"]][:-1] == ["Comparison", "Accuracy by attack", "Training", "Curvature"]
    assert page.words["title"] == ["soatfast: a & <b>"], "escaped, so it reads as it was"
    assert "<b>" not in path.read_text(encoding="utf-8").replace("&lt;b&gt;", "")
    results = json.loads((run / "results.json").read_text())
    accuracy = results["table"]["rows"][0]["clean"]
    assert f"{accuracy['mean']:.1f} ± {accuracy['spread']:.1f}" in page.words["td"]
    assert all(image["alt"] for image in page.images) and len(page.images) == 4
    assert {p.name for p in (run / "report").glob("*.png")} == {
        "comparison.png",
        "accuracy.png",
        "training.png",
        "curvature.png",
    }
    assert json.loads(page.words["pre"][0])["train"]["epochs"] == 2, "the options"
    assert not path.read_text(encoding="utf-8").count("Unfinished")


def test_explanations_are_shown(run: Path) -> None:
    (run / "explain").mkdir()
    shutil.copy(run / "curvature.png", run / "explain" / "saliency-pgd4.png")
    page = read(report(ReportConfig(run_dir=run)))
    assert page.images[-1]["alt"] == "saliency pgd4" and "Explanations" in page.words["h2"]


def test_the_papers_claims_are_a_section_of_the_preset_tables_alone(run: Path) -> None:
    papers.write(run)
    assert "The papers' claims" not in [s.title for s in sections(run, FileReader())], "of an earlier comparison"
    results = json.loads((run / "results.json").read_text())
    results["config"]["preset"] = "tables"
    (run / "results.json").write_text(json.dumps(results))
    page = read(report(ReportConfig(run_dir=run)))
    assert page.words["h2"][2] == "The papers' claims"
    assert "not measured" in page.words["td"] and "[9]" in page.words["td"]
    (run / "papers.json").write_text("{}")
    with pytest.raises(UserError, match=r"papers\.json: .* --preset tables writes it again"):
        report(ReportConfig(run_dir=run))


def test_an_unfinished_run_says_so(run: Path) -> None:
    (run / "results.json").unlink()
    (run / "pgd4" / "seed-1" / "result.json").unlink()
    text = report(ReportConfig(run_dir=run)).read_text(encoding="utf-8")
    assert "Unfinished: pgd4/seed-1, the comparison." in text
    assert len(dict(trainings(run, FileReader()))) == 3 and unfinished(run) == ["pgd4/seed-1"]
    assert [s.title for s in sections(run, FileReader())] == ["Training", "Curvature"]


def test_an_unfinished_evaluation_shows_no_figures_of_an_earlier_one(run: Path) -> None:
    table = Table("old figures", [Column("name", "attack")], [{"name": "pgd40"}])
    (run / "evaluation.json").write_text(json.dumps({"tables": [table.to_json()]}))
    (run / "evaluation.npz").write_bytes(b"")
    assert unfinished(run) == ["the evaluation"] and "Evaluation" not in [s.title for s in sections(run, FileReader())]
    assert "Unfinished: the evaluation." in report(ReportConfig(run_dir=run)).read_text(encoding="utf-8")
    (run / "evaluation.md").write_text("")  # written when the last record is
    assert unfinished(run) == [] and "Evaluation" in [s.title for s in sections(run, FileReader())]


def test_an_evaluation_alone_names_its_options(tmp_path: Path) -> None:
    table = Table("figures", [Column("name", "attack")], [{"name": "pgd40"}])
    written = {"config": {"eps": 0.125}, "installation": {"versions": {}}, "tables": [table.to_json()]}
    (tmp_path / "evaluation.json").write_text(json.dumps(written))
    (tmp_path / "evaluation.md").write_text("")
    path = report(ReportConfig(run_dir=tmp_path))
    assert "Of a model that was trained elsewhere." in path.read_text(encoding="utf-8")
    page = read(path)
    assert "pgd40" in page.words["td"]
    (details,) = page.words["pre"]
    assert json.loads(details) == {"config": {"eps": 0.125}, "installation": {"versions": {}}}


def test_a_single_training(run: Path) -> None:
    page = read(report(ReportConfig(run_dir=run / "pgd4" / "seed-0")))
    assert [h.strip() for h in page.words["h2"]] == ["Training", "Options and versions"]


def test_bad_folders_say_what_is_wrong(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        report(ReportConfig(run_dir=tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing to report: no run was begun in it"):
        report(ReportConfig(run_dir=tmp_path / "empty"))
    (tmp_path / "begun").mkdir()
    shutil.copy(run / "pgd4" / "seed-0" / "options.json", tmp_path / "begun")
    with pytest.raises(UserError, match="nothing to report: not finished: begun"):
        report(ReportConfig(run_dir=tmp_path / "begun"))
    whole = (run / "results.json").read_text()
    (run / "results.json").write_text(whole[:100])
    with pytest.raises(UserError, match=r"results\.json is damaged"):
        report(ReportConfig(run_dir=run))
    results = json.loads(whole)
    (run / "results.json").write_text(json.dumps({**results, "table": [{"method": "standard"}]}))
    with pytest.raises(UserError, match=r"results\.json: no table of this version"):
        report(ReportConfig(run_dir=run))
    for other in ([], {}, *({k: v for k, v in results.items() if k != part} for part in results)):
        (run / "results.json").write_text(json.dumps(other))
        missing = next(part for part in results if part not in other) if other else "config, .*, table"
        with pytest.raises(UserError, match=rf"results\.json: no comparison, as it has no {missing}; soatfast compare"):
            report(ReportConfig(run_dir=run))
    (run / "results.json").write_text(whole)
    for other in ("[]", "{}", '{"history": [{"loss": 1.0}]}'):
        (run / "pgd4" / "seed-1" / "result.json").write_text(other)
        with pytest.raises(UserError, match=r"seed-1/result\.json: no epochs of a training"):
            report(ReportConfig(run_dir=run))


def test_the_folder_at_hand_has_its_name(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "pgd4" / "seed-0")
    page = read(report(ReportConfig(run_dir=Path("."))))
    assert page.words["title"] == ["soatfast: seed-0"]
    (run / "pgd4" / "seed-0" / "result.json").unlink()
    with pytest.raises(UserError, match="nothing to report: not finished: seed-0"):
        report(ReportConfig(run_dir=Path(".")))


def test_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "--run-dir", str(run)]) == 0
    assert capsys.readouterr().out == f"written to {run}: report.html\n"
    assert cli.main(["report", "--run-dir", str(tmp_path / "nothing")]) == 1
    assert capsys.readouterr().err.startswith("error: there is no folder")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_it_without_scrolling_sideways(run: Path, tmp_path: Path, width: int) -> None:
    page = report(ReportConfig(run_dir=run))
    probe = """<script>addEventListener("load", () => {
      const images = [...document.images];
      parent.postMessage(JSON.stringify({
        shown: images.filter(i => i.complete && i.naturalWidth > 100).length, images: images.length,
        sideways: document.documentElement.scrollWidth > innerWidth, width: innerWidth,
        requests: performance.getEntriesByType("resource").filter(r => !r.name.startsWith("data:")).length}), "*");
    });</script></body>"""
    # A frame as wide as a phone: a headless window cannot be made as narrow.
    inner = page.read_text(encoding="utf-8").replace("</body>", probe)
    (tmp_path / "inner.html").write_text(inner, encoding="utf-8")
    frame = f"""<iframe src="inner.html" style="width: {width}px; height: 800px; border: 0"></iframe><script>
      addEventListener("message", e => {{ document.body.innerHTML = "<p>" + e.data + "</p>"; }})</script>"""
    (tmp_path / "outer.html").write_text(f"<!doctype html><html><body>{frame}</body></html>", encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [str(CHROMIUM), *flags.split(), "--disable-component-update", "--disable-sync", "--dump-dom"]
    command += ["--virtual-time-budget=5000", f"--user-data-dir={tmp_path / 'user'}"]
    shown = subprocess.run(
        [*command, (tmp_path / "outer.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    found = json.loads(shown.split("<p>")[1].split("</p>")[0])
    assert found == {"shown": 4, "images": 4, "sideways": False, "width": width, "requests": 0}
