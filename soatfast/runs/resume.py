"""How a command starts: it resumes the run that its folder holds, unless an option says otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from soatfast.runs.errors import UserError

# There is no --no-resume: it would read like --fresh, and mean the default.
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclass(frozen=True, kw_only=True)
class Start:
    """The options of every command that takes long: by default it resumes where it can, and otherwise starts."""

    resume: Flag = False
    """Fail unless run_dir holds a run to resume. By default: resume if possible, otherwise start."""
    fresh: Flag = False
    """Start again, and replace what this command left in run_dir."""

    def check_start(self, folder: Path, *traces: str) -> None:
        """Raise UserError for --resume where there is nothing to resume, and for both flags at once.

        traces: patterns of the files in `folder` that an earlier run leaves there.
        """
        if self.resume and self.fresh:
            raise UserError("expected --resume, which continues a run, or --fresh, which starts again; got both")
        if self.resume and not any(any(folder.glob(trace)) for trace in traces):
            raise UserError(
                f"--resume: {folder} holds no run to resume (there is no {' or '.join(traces)}); the same command "
                "without --resume starts one"
            )
