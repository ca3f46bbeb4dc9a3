"""`soatfast profile`: what the adversarial part of somebody's training script costs, and what soatfast would save."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tyro

from soatfast.profile.report import PassReport
from soatfast.profile.script import Ended, run_script
from soatfast.runs import files
from soatfast.runs.errors import UserError
from soatfast.runs.progress import Progress
from soatfast.runs.table import Table


@dataclass(frozen=True)
class ProfileConfig:
    """Run a training script unchanged for some optimizer steps; count and time its passes; say what soatfast saves.

    soatfast profile [options] script.py [its arguments]. The script runs in this process. Its weights, files and random
    numbers are those it has without the profiler. Ctrl-C ends it; what was counted until then is shown.
    """

    script: tyro.conf.Positional[tuple[str, ...]] = ()
    """The script and its arguments. Options of soatfast stand before it."""
    steps: int = 20
    """Number of optimizer steps after which the script is ended."""
    run_dir: Path = Path("runs/profile")
    """Output folder."""

    def __post_init__(self) -> None:
        if not self.script:
            raise ValueError("a script is needed: soatfast profile [options] script.py [its arguments]")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")


def run(config: ProfileConfig, progress: Progress | None = None) -> list[str | Table]:
    """Run the script; write profile.json, profile.md and profile.png into the run folder; return the tables.

    Raises UserError: there is no such script, or it ended before it called a module.
    """
    progress = progress or Progress()
    folder = config.run_dir.resolve()  # the script may change the working folder
    report, ended = run_script(config.script, config.steps)
    progress.status = ended.status
    if not report.models:
        why = "; ".join(report.doubts) or "there is nothing to profile"
        raise UserError(
            f"{config.script[0]} ended {ended.how} before it called a module with parameters in this process: {why}"
        )
    shown = _shown(report, ended, config.script[0])
    if os.environ.get("RANK", "0") == "0":
        files.make_writable(folder)
        found = {"script": list(config.script), "ended": ended.how, **report.to_json(), "lines": report.lines()}
        files.write_json(folder / "profile.json", found)
        texts = (part if isinstance(part, str) else part.to_markdown() for part in shown)
        files.write_text(folder / "profile.md", "\n".join(texts) + "\n")
        report.picture(folder / "profile.png")
        progress.wrote(folder, "profile.md", "profile.json", "profile.png")
    return shown


def _shown(report: PassReport, ended: Ended, script: str) -> list[str | Table]:
    shown: list[str | Table] = [f"{script} ended {ended.how}", report.table()]
    try:
        shown.append(report.estimate(keep_memory=True).table())
    except KeyboardInterrupt:
        shown.append("The estimate was interrupted.")
    if report.lines():
        shown.append("\n".join(["The lines to change:", "", *report.lines()]))
    return shown
