"""The command `soatfast report`."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soatfast.commands.report.sections import (
    RESULTS,
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

    An unfinished comparison gives a page of what there is, which says so.

    Raises UserError where nothing is finished yet, RunFolderError where a file is damaged.
    """
    folder = config.run_dir
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: soatfast compare --run-dir {folder} makes one")
    missing = unfinished(folder)
    if not (folder / RESULTS).is_file() and any(folder.glob("*/seed-*")):
        missing.append("the comparison")
    parts = list(sections(folder))
    if not parts:
        begun = f"not finished: {', '.join(missing)}" if missing else "no run was begun in it"
        raise UserError(f"{folder} has nothing to report: {begun}")
    files.make_writable(folder / "report")
    for section in parts:
        for picture in section.pictures:
            files.write_bytes(folder / "report" / f"{picture.name}.png", picture.png)
    files.write_text(folder / PAGE, page(folder, parts, missing))
    (progress or Progress()).wrote(folder, PAGE)
    return folder / PAGE


def page(folder: Path, parts: list[Section], missing: list[str]) -> str:
    """The HTML of the sections; every text is escaped."""
    import jinja2

    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    results = comparison(folder)
    return environment.from_string(template).render(
        title=f"soatfast: {folder.resolve().name}",
        about=_about(results, dict(trainings(folder))),
        unfinished=missing,
        sections=parts,
        details=_details(folder, results),
    )


def _about(results: dict[str, Any], runs: dict[str, Any]) -> str:
    if not runs and not results:
        return "Of a model that was trained elsewhere."
    words = [f"{len(runs)} finished training{'s' if len(runs) != 1 else ''}"]
    if results:
        versions = results["installation"]["versions"]
        words += [f"soatfast {versions['soatfast']}", f"torch {versions['torch']}", results["device"]["name"]]
        words.append(f"seed {results['config']['train']['seed']}")
    return ", ".join(words) + "."


def _details(folder: Path, results: dict[str, Any]) -> dict[str, str]:
    def text(value: Any) -> str:
        return json.dumps(value, indent=2, ensure_ascii=False)

    found = evaluation(folder)
    extra = {"Evaluation": text({key: value for key, value in found.items() if key != "tables"})} if found else {}
    if results:
        shown = {"Options": results["config"], "Attacks": results["attacks"], "Installation": results["installation"]}
        losses = {name: method["loss"] for name, method in results["methods"].items()}
        return {name: text(value) for name, value in {**shown, "Losses": losses}.items()} | extra
    paths = [folder / OPTIONS, *sorted(folder.glob(f"*/seed-*/{OPTIONS}"))]
    listed = {str(p.parent.relative_to(folder.parent)): p.read_text(encoding="utf-8") for p in paths if p.is_file()}
    return listed | extra
