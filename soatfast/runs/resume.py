"""How a command begins: it goes on with the work that its folder holds, unless it is told otherwise."""

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
    """The options of every command that takes long. Without either it goes on where it can, and else begins."""

    resume: Flag = False
    """Only go on with what run_dir holds, and fail where this command has not begun there. Without it the command goes
    on where it can, and else begins."""
    fresh: Flag = False
    """Begin anew, in place of what this command left in run_dir."""

    def check_start(self, folder: Path, *traces: str) -> None:
        """Raise UserError for --resume where there is nothing to go on with, and for both flags at once.

        traces: patterns of the files in `folder` that tell that the command has begun there.
        """
        if self.resume and self.fresh:
            raise UserError("expected --resume, which goes on, or --fresh, which begins anew; got both")
        if self.resume and not any(any(folder.glob(trace)) for trace in traces):
            raise UserError(
                f"--resume: {folder} holds nothing to go on with (there is no {' or '.join(traces)}); the same command "
                "without --resume begins"
            )
