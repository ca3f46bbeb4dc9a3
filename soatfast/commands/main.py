"""The command `soatfast`: a command is its file and its row in COMMANDS.

The file has a configuration, a frozen dataclass whose fields are the options, and ``run(config, progress)``. What run
returns is shown: tables or text. It tells ``progress.wrote`` which files it wrote. What a user can mend ends in one
line on stderr.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Union

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train", "TrainingConfig"),
    "attack": ("attack", "AttackConfig"),
    "evaluate": ("evaluate", "EvaluateConfig"),
    "compare": ("compare", "CompareConfig"),
    "curvature": ("curvature", "CurvatureConfig"),
    "explain": ("explain", "ExplainConfig"),
    "report": ("report", "ReportConfig"),
    "tune": ("tune", "TuneConfig"),
    "bench": ("bench", "BenchConfig"),
    "profile": ("profile", "ProfileConfig"),
    "doctor": ("doctor", "DoctorConfig"),
}
"""Name -> (file, its configuration). Only the file of the command that is run is imported."""
_ABOUT = "Second-order adversarial training. --debug or SOATFAST_DEBUG=1 shows the traceback of an error."


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line; exit status 0, 1 an error, 2 wrong usage, 130 Ctrl-C, 143 SIGTERM in a training."""
    words = list(sys.argv[1:] if args is None else args)
    at = _script(words)
    debug = "--debug" in words[:at] or os.environ.get("SOATFAST_DEBUG", "0") not in ("", "0")
    try:
        return _run([word for word in words[:at] if word != "--debug"], words[at:])
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted; the same command (without --fresh) resumes", file=sys.stderr)
        return 130
    except SystemExit as end:
        if end.code != 143:
            raise
        print("terminated; the same command (without --fresh) resumes", file=sys.stderr)
        return 143
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at exit
        return 1
    except ImportError as error:
        from soatfast.runs.errors import extra_of

        text = extra_of(error)
        if debug or not text:
            raise
        print(f"error: {text.replace('soatfast[train]', 'soatfast[cli]')}", file=sys.stderr)
        return 1
    except Exception as error:
        if debug or not _is_users(error):
            raise
        if not _is_said_elsewhere(error):
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
        return 1


def _script(words: list[str]) -> int:
    """Where the script that `profile` runs begins: the words from there on are the script's."""
    at = next((i for i, word in enumerate(words) if word != "--debug"), 0)
    if words[at : at + 1] != ["profile"]:
        return len(words)
    at += 1
    while at < len(words) and words[at].startswith("-"):
        alone = words[at] in ("--debug", "--help", "-h") or "=" in words[at]
        at += 1 if alone else 2  # an option and its value
    return min(at, len(words))


def _is_said_elsewhere(error: Exception) -> bool:
    from soatfast.runs.errors import ElsewhereError

    return isinstance(error, ElsewhereError)


def _is_users(error: Exception) -> bool:
    from soatfast.runs.errors import UserError

    return isinstance(error, (UserError, ValueError, OSError, MemoryError))


def _run(words: list[str], script: list[str]) -> int:
    """Run the command; its exit status."""
    # Imported here: importing takes seconds, and an interruption or error in it is handled as any other.
    from rich.console import Console

    name, config = _parse([*words, "--", *script] if script else words)
    module = _module(name)
    from soatfast.gradients.allocator import keep_memory
    from soatfast.runs.progress import Progress, make_progress

    unchanged = name == "profile"  # what it runs meets no bars, no warnings of ours and no other malloc
    if not unchanged:
        keep_memory()
    first = os.environ.get("RANK", "0") == "0"  # which every launcher of several processes sets
    console = Console(quiet=not first)
    with Progress() if unchanged else make_progress(console) as progress, warnings.catch_warnings():
        if not unchanged:
            warnings.showwarning = _one_line(warnings.showwarning)
        found = module.run(config, progress)
    if first:
        for result in found if isinstance(found, list) else [found]:
            _show(result, console)
        if progress.files:
            print(f"written to {progress.files}")
    return progress.status


def _module(name: str) -> Any:
    return importlib.import_module(f"soatfast.commands.{COMMANDS[name][0]}")


def _parse(words: list[str]) -> tuple[str, Any]:
    """The command's name and its configuration."""
    import tyro

    from soatfast.commands.fractions import registry

    how: Any = {"config": (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes), "registry": registry()}
    if words and words[0] in COMMANDS:
        name, *rest = words
        module = _module(name)
        kind = getattr(module, COMMANDS[name][1])
        how |= {"prog": f"soatfast {name}", "args": rest}
        if name in ("compare", "train"):  # a preset changes their defaults
            how["default"] = importlib.import_module("soatfast.commands.presets").defaults([name, *rest])
        _check_class(rest, getattr(module, "CLASSES", None), kind, how)
        return name, tyro.cli(kind, **how)
    kinds = {name: getattr(_module(name), config) for name, (_, config) in COMMANDS.items()}
    choices: Any = Union[tuple(Annotated[kind, tyro.conf.subcommand(name)] for name, kind in kinds.items())]  # noqa: UP007
    found: Any = tyro.cli(choices, args=words, prog="soatfast", description=_ABOUT, **how)
    return next(name for name, kind in kinds.items() if isinstance(found, kind)), found


def _check_class(words: list[str], classes: Any, kind: Any, how: dict[str, Any]) -> None:
    """End as a usage error where the line ends in the name of an attack or loss that does not exist."""
    import tyro

    from soatfast.commands.options import nearest

    if classes is None or "--help" in words or "-h" in words:
        return
    _, unknown = tyro.cli(kind, return_unknown_args=True, **how)
    if unknown and not unknown[0].startswith("-"):
        try:
            nearest("attack or loss", unknown[:1], classes)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def _show(result: Any, console: Any) -> None:
    from soatfast.runs.table import Table

    if isinstance(result, str):
        print(result)
    elif isinstance(result, Table) and console.is_terminal:
        console.print(result.to_rich())
    elif isinstance(result, Table):
        print(result.to_markdown())


def _one_line(usual: Any) -> Any:
    """A warning of soatfast's without the place in the code that it comes from; others as usual."""

    def show(message: Any, category: type[Warning], *where: Any) -> None:
        if category.__module__.startswith("soatfast."):
            print(f"warning: {message}", file=sys.stderr)
        else:
            usual(message, category, *where)

    return show


if __name__ == "__main__":
    sys.exit(main())
