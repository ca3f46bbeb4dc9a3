"""The command `soatfast`: `soatfast compare`, `curvature`, `report` and `doctor`.

Options are the fields of the configuration dataclasses. What a user can mend ends in one line on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

if TYPE_CHECKING:
    from rich.console import Console

    from soatfast.evaluate.table import Table
    from soatfast.train.compare import CompareConfig
    from soatfast.train.curvature import CurvatureConfig

_ABOUT = "Second-order adversarial training. --debug or SOATFAST_DEBUG=1 shows the traceback of an error."


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices, and which kernel serves each operation and why another does not."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 1 for an error, 130 after Ctrl-C (usage errors exit with 2)."""
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words or os.environ.get("SOATFAST_DEBUG", "0") not in ("", "0")
    try:
        _run([word for word in words if word != "--debug"])
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted; the same command (without --fresh) resumes", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at exit
        return 1
    except Exception as error:
        if debug or not _is_users(error):
            raise
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _is_users(error: Exception) -> bool:
    from soatfast.train.errors import UserError

    return isinstance(error, (UserError, ValueError, OSError))


def _run(words: list[str]) -> None:
    # Imported here: importing takes seconds, and an interruption or error in it is handled as any other.
    import tyro

    import soatfast
    from soatfast.report import ReportConfig
    from soatfast.train.compare import CompareConfig
    from soatfast.train.curvature import CurvatureConfig
    from soatfast.train.presets import defaults

    compare = Annotated[CompareConfig, tyro.conf.subcommand("compare", default=defaults(words))]
    curvature = Annotated[CurvatureConfig, tyro.conf.subcommand("curvature")]
    report = Annotated[ReportConfig, tyro.conf.subcommand("report")]
    doctor = Annotated[Doctor, tyro.conf.subcommand("doctor")]
    command = tyro.cli(
        compare | curvature | report | doctor,  # type: ignore[operator]
        args=words,
        prog="soatfast",
        description=_ABOUT,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if isinstance(command, CompareConfig):
        _compare(command)
    elif isinstance(command, CurvatureConfig):
        _curvature(command)
    elif isinstance(command, ReportConfig):
        from soatfast.report import report as write_report

        print(f"written: {write_report(command)}")
    else:
        print(soatfast.show_config())


def _show(table: Table, console: Console) -> None:
    if console.is_terminal:
        console.print(table.to_rich())
    else:
        print(table.to_markdown())


def _curvature(config: CurvatureConfig) -> None:
    from rich.console import Console

    from soatfast.train.curvature import curvature
    from soatfast.train.progress import make_progress

    console = Console()
    with make_progress(console) as progress:
        table = curvature(config, progress)
    _show(table, console)
    print(f"written to {config.run_dir}: curvature.md, curvature.json, curvature.png")


def _compare(config: CompareConfig) -> None:
    from rich.console import Console

    from soatfast.train.compare import compare
    from soatfast.train.progress import make_progress

    console = Console()
    with make_progress(console) as progress:
        table = compare(config, progress)
    _show(table, console)
    names = ["results.md", "results.json", "comparison.png"]
    names += ["papers.md", "papers.json"] if config.preset == "tables" else []
    files = ", ".join(name for name in names if (config.run_dir / name).is_file())
    print(f"written to {config.run_dir}: {files}, and a folder per method")


if __name__ == "__main__":
    sys.exit(main())
