"""The command `soatfast`: train, attack, evaluate, compare, curvature, explain, report, tune, bench and doctor.

Options are the fields of the configuration dataclasses. What a user can mend ends in one line on stderr.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Union

if TYPE_CHECKING:
    from rich.console import Console

    from soatfast.commands.attack import AttackConfig
    from soatfast.commands.bench import BenchConfig
    from soatfast.commands.compare import CompareConfig
    from soatfast.commands.curvature import CurvatureConfig
    from soatfast.commands.evaluate import EvaluateConfig
    from soatfast.commands.explain import ExplainConfig
    from soatfast.commands.report import ReportConfig
    from soatfast.commands.train import TrainingConfig
    from soatfast.commands.tune import TuneConfig
    from soatfast.runs.table import Table

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
    from soatfast.runs.errors import UserError

    return isinstance(error, (UserError, ValueError, OSError))


def _run(words: list[str]) -> None:
    # Imported here: importing takes seconds, and an interruption or error in it is handled as any other.
    import tyro

    from soatfast.commands.attack import AttackConfig
    from soatfast.commands.bench import BenchConfig
    from soatfast.commands.compare import CompareConfig
    from soatfast.commands.curvature import CurvatureConfig
    from soatfast.commands.evaluate import EvaluateConfig
    from soatfast.commands.explain import ExplainConfig
    from soatfast.commands.presets import defaults
    from soatfast.commands.report import ReportConfig
    from soatfast.commands.train import TrainingConfig
    from soatfast.commands.tune import TuneConfig
    from soatfast.gradients.allocator import keep_memory

    commands: dict[str, tuple[type, Callable[[Any], None]]] = {
        "train": (TrainingConfig, _train),
        "attack": (AttackConfig, _attack),
        "evaluate": (EvaluateConfig, _evaluate),
        "compare": (CompareConfig, _compare),
        "curvature": (CurvatureConfig, _curvature),
        "explain": (ExplainConfig, _explain),
        "report": (ReportConfig, _report),
        "tune": (TuneConfig, _tune),
        "bench": (BenchConfig, _bench),
        "doctor": (Doctor, _doctor),
    }
    given: dict[str, dict[str, Any]] = {"compare": {"default": defaults(words)}}  # a preset changes them
    choices: Any = Union[  # noqa: UP007
        tuple(
            Annotated[kind, tyro.conf.subcommand(name, **given.get(name, {}))] for name, (kind, _) in commands.items()
        )
    ]
    command: Any = tyro.cli(
        choices,
        args=words,
        prog="soatfast",
        description=_ABOUT,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
    keep_memory()
    next(run for kind, run in commands.values() if isinstance(command, kind))(command)


def _show(table: Table, console: Console) -> None:
    if console.is_terminal:
        console.print(table.to_rich())
    else:
        print(table.to_markdown())


def _train(config: TrainingConfig) -> None:
    from accelerate import PartialState
    from rich.console import Console

    from soatfast.commands.train import training
    from soatfast.runs.progress import make_progress

    console = Console(quiet=not PartialState().is_main_process)
    with make_progress(console) as progress:
        table = training(config, progress)
    if PartialState().is_main_process:
        _show(table, console)
        print(f"written to {config.run_dir}: model.safetensors, options.json, result.json, accuracy.json")


def _with_bar(run: Callable[[Any, Any], Any], config: Any) -> Any:
    """run(config, progress) below a progress bar; a table that it returns is shown."""
    from rich.console import Console

    from soatfast.runs.progress import make_progress
    from soatfast.runs.table import Table

    console = Console()
    with make_progress(console) as progress:
        result = run(config, progress)
    if isinstance(result, Table):
        _show(result, console)
    return result


def _attack(config: AttackConfig) -> None:
    from soatfast.commands.attack import attack

    _with_bar(attack, config)
    print(f"written to {config.run_dir}: adversarial.npz, options.json, attack.json, attack.md")


def _bench(config: BenchConfig) -> None:
    from soatfast.commands.bench import bench

    print(_with_bar(bench, config))
    print(f"written to {config.run_dir}: bench.md, bench.json, options.json")


def _tune(config: TuneConfig) -> None:
    from soatfast.commands.tune import tune_command

    _with_bar(tune_command, config)
    print(f"written to {config.run_dir}: tune.md, tune.json, options.json")


def _curvature(config: CurvatureConfig) -> None:
    from soatfast.commands.curvature import curvature

    _with_bar(curvature, config)
    print(f"written to {config.run_dir}: curvature.md, curvature.json, curvature.png")


def _explain(config: ExplainConfig) -> None:
    from soatfast.commands.explain import explain

    _with_bar(explain, config)
    print(f"written to {config.run_dir}: explain.md, explain.json, and the pictures in {config.run_dir / 'explain'}")


def _evaluate(config: EvaluateConfig) -> None:
    from rich.console import Console

    from soatfast.commands.evaluate import evaluate
    from soatfast.evaluate import progress_bar

    console = Console()
    with progress_bar(console) as report, _one_line_warnings():
        tables = evaluate(config, report)
    for table in tables:
        _show(table, console)
    pictures = ", curves.png, plateau.png, masking.png" if config.analysis else ""
    print(f"written to {config.run_dir}: evaluation.npz, evaluation.md, evaluation.json{pictures}")


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Warnings about the model, without the place in the code that they come from."""
    from soatfast.evaluate import EvaluationWarning

    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if issubclass(category, EvaluationWarning):
                print(f"warning: {message}", file=sys.stderr)
            else:
                usual(message, category, *where)

        warnings.showwarning = show  # type: ignore[assignment]  # the places are passed on as they come
        yield


def _report(config: ReportConfig) -> None:
    from soatfast.commands.report import report

    print(f"written: {report(config)}")


def _doctor(config: Doctor) -> None:
    import soatfast

    print(soatfast.show_config())


def _compare(config: CompareConfig) -> None:
    from soatfast.commands.compare import compare

    _with_bar(compare, config)
    names = ["results.md", "results.json", "comparison.png"]
    names += ["papers.md", "papers.json"] if config.preset == "tables" else []
    files = ", ".join(name for name in names if (config.run_dir / name).is_file())
    print(f"written to {config.run_dir}: {files}, and a folder per method")


if __name__ == "__main__":
    sys.exit(main())
