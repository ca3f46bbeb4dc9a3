"""The command `soatfast report`."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soatfast.commands.report.sections import (
    RESULTS,
    FileReader,
    Section,
    comparison,
    evaluation,
    sections,
    trainings,
    unfinished,
)
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.folder import OPTIONS
from soatfast.runs.progress import Progress

PAGE = "report.html"


@dataclass(frozen=True)
class ReportConfig:
    """Write one page of what a run folder holds; it needs no network and no other file."""

    run_dir: Path = Path("runs/demo")
    """Folder that soatfast compare or train wrote. What curvature, evaluate and explain added is shown too."""


def run(config: ReportConfig, progress: Progress | None = None) -> Path:
    """Write report.html, and its pictures as report/*.png, into the run folder; return the page.

    An unfinished comparison gives a page of what there is, which says so. A damaged file costs what it holds, and is
    named on the page.

    Raises UserError where nothing can be shown, and, with the page written, where a file is damaged.
    """
    folder = config.run_dir
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: soatfast compare --run-dir {folder} makes one")
    missing = unfinished(folder)
    if not (folder / RESULTS).is_file() and any(folder.glob("*/seed-*")):
        missing.append("the comparison")
    reader = FileReader()
    parts = list(sections(folder, reader))
    if not parts and reader.problems:
        raise UserError(reader.problems[0])
    if not parts:
        begun = f"not finished: {', '.join(missing)}" if missing else "no run was begun in it"
        raise UserError(f"{folder} has nothing to report: {begun}")
    files.make_writable(folder / "report")
    for section in parts:
        for picture in section.pictures:
            files.write_bytes(folder / "report" / f"{picture.name}.png", picture.png)
    files.write_text(folder / PAGE, page(folder, parts, missing, reader.problems))
    if reader.problems:
        rest = f" (and {len(reader.problems) - 1} more)" if len(reader.problems) > 1 else ""
        raise UserError(f"{reader.problems[0]}{rest}; {folder / PAGE} shows all the rest")
    (progress or Progress()).wrote(folder, PAGE)
    return folder / PAGE


def page(folder: Path, parts: list[Section], missing: list[str], problems: list[str]) -> str:
    """The HTML of the sections; every text is escaped."""
    import jinja2

    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    again = FileReader()  # what is wrong is known already
    results = comparison(folder, again)
    return environment.from_string(template).render(
        title=f"soatfast: {folder.resolve().name}",
        about=_about(results, dict(trainings(folder, again))),
        unfinished=missing,
        damaged=problems,
        sections=parts,
        details=_details(folder, results, again),
    )


def _about(results: dict[str, Any], runs: dict[str, Any]) -> str:
    if not runs and not results:
        return "Of a model that was trained elsewhere."
    words = [f"{len(runs)} finished training{'s' if len(runs) != 1 else ''}"]
    if results:
        versions = results["installation"].get("versions", {})
        words += [f"{name} {versions[name]}" for name in ("soatfast", "torch") if name in versions]
        words += [str(results["device"].get("name", "unknown device"))]
        if "seed" in (train := results["config"].get("train", {})):
            words.append(f"seed {train['seed']}")
    return ", ".join(words) + "."


def _details(folder: Path, results: dict[str, Any], reader: FileReader) -> dict[str, str]:
    def text(value: Any) -> str:
        return json.dumps(value, indent=2, ensure_ascii=False)

    found = evaluation(folder, reader)
    extra = {"Evaluation": text({key: value for key, value in found.items() if key != "tables"})} if found else {}
    if results:
        shown = {"Options": results["config"], "Attacks": results["attacks"], "Installation": results["installation"]}
        losses = {name: method.get("loss") for name, method in results["methods"].items()}
        return {name: text(value) for name, value in {**shown, "Losses": losses}.items()} | extra
    paths = [folder / OPTIONS, *sorted(folder.glob(f"*/seed-*/{OPTIONS}"))]
    listed = {
        str(p.parent.relative_to(folder.parent)): p.read_text(encoding="utf-8", errors="replace")
        for p in paths
        if p.is_file()
    }
    return listed | extra
