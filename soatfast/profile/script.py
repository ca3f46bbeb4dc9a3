"""Running somebody's script under the profiler, as Python would run it."""

from __future__ import annotations

import os
import sys
import traceback
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from soatfast.profile.block import profile_passes
from soatfast.profile.report import PassReport
from soatfast.runs.errors import UserError


@dataclass(frozen=True)
class Ended:
    """How a script ended. status: the exit status it had, or 0 where the profiler ended it."""

    how: str
    status: int = 0


def run_script(words: Sequence[str], steps: int) -> tuple[PassReport, Ended]:
    """Run ``words``, a script and its arguments, for so many optimizer steps; what was counted, and how it ended.

    It runs in this process as ``__main__``, with its folder first in the module path. Its own exit, its exceptions
    (printed with its own traceback) and Ctrl-C end it as they do without the profiler.

    Raises:
        UserError: there is no such file.
    """
    path = Path(words[0])
    if not path.is_file():
        raise UserError(f"there is no script {path}; expected soatfast profile [options] script.py [its arguments]")
    pid = os.getpid()
    kept = sys.argv, sys.path[:], sys.modules.get("__main__")
    report = None
    sys.argv, sys.path[0:1] = list(words), [str(path.resolve().parent)]
    try:
        with profile_passes(steps) as report:
            _execute(path)
        ended = Ended(f"after {steps} optimizer steps" if len(report.steps) >= steps else "by itself")
    except SystemExit as stop:
        ended = Ended(f"by sys.exit({stop.code!r})", _status(stop))
    except KeyboardInterrupt:
        ended = Ended("by Ctrl-C", 130)
    except BaseException as error:
        _print(error, path)
        ended = Ended(f"by {type(error).__name__}: {' '.join(str(error).split())}", 1)
    finally:
        sys.argv, sys.path[:] = kept[0], kept[1]
        if kept[2] is not None:
            sys.modules["__main__"] = kept[2]
    if os.getpid() != pid:  # a process that the script has forked, at the script's end
        raise SystemExit(ended.status)
    assert report is not None
    return report, ended


def _execute(path: Path) -> None:
    module = types.ModuleType("__main__")
    module.__dict__.update({"__file__": str(path), "__builtins__": __builtins__, "__spec__": None})
    sys.modules["__main__"] = module  # as workers and pickle look it up
    with open(path, "rb") as file:
        code = compile(file.read(), str(path), "exec")
    exec(code, module.__dict__)


def _status(stop: SystemExit) -> int:
    """The exit status of sys.exit; its message, where it has one, is printed as Python does."""
    if stop.code is None or isinstance(stop.code, int):
        return int(stop.code or 0)
    print(stop.code, file=sys.stderr)
    return 1


def _print(error: BaseException, path: Path) -> None:
    """The traceback from the script on, as if Python had run it."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename != str(path):
        frames = frames.tb_next
    sys.stdout.flush()
    traceback.print_exception(type(error), error, frames)
