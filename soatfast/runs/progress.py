"""Showing a long run: rich progress bars on a terminal, plain lines elsewhere, nothing by default."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Progress:
    """What a long command reports. This base class shows nothing; use as a context manager."""

    files: str = ""
    """What :meth:`wrote` was told."""
    status: int = 0
    """Exit status of the command: that of a script which it ran."""

    def wrote(self, folder: Path, *names: str) -> None:
        """The command is done, and its results are these files of the folder."""
        self.files = f"{folder}: {', '.join(names)}"

    def report(self, name: str, done: int, total: int | None) -> None:
        """`done` batches of `total` are done, this one by `name`: what :func:`soatfast.evaluate.suite` tells."""

    def stage(self, name: str, index: int, total: int) -> None:
        """Piece of work `index` (0-based) of `total` begins."""

    def begin(self, epochs: int, steps: int, done: int) -> None:
        """A training of `epochs` x `steps` begins, or resumes after `done` epochs."""

    def step(self, loss: Tensor) -> None:
        """One training step is done. The loss is read only now and then: reading it waits for a GPU."""

    def epoch(self, row: dict[str, Any]) -> None:
        """One epoch is done (a row of TrainResult.history)."""

    def note(self, text: str) -> None:
        """A remark worth a line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class PlainProgress(Progress):
    """One line a stage, an epoch and a remark: for log files and pipes."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.name, self.epochs = "", 0

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stage(self, name: str, index: int, total: int) -> None:
        self.name = name
        self._line(f"[{index + 1}/{total}] {name}")

    def report(self, name: str, done: int, total: int | None) -> None:
        if name != self.name:
            self.name = name
            self._line(f"{name}")

    def begin(self, epochs: int, steps: int, done: int) -> None:
        self.epochs = epochs

    def epoch(self, row: dict[str, Any]) -> None:
        eps = f"  eps {row['eps']:.3g}" if isinstance(row["eps"], float) else ""
        count = f"{row['epoch']:>{len(str(self.epochs))}}/{self.epochs}"
        self._line(f"  {self.name}: epoch {count}  loss {row['loss']:.4f}{eps}  {row['seconds']:.1f} s")

    def note(self, text: str) -> None:
        self._line(f"  {self.name}: {text}")


class RichProgress(Progress):
    """Two bars: all pieces of work, and the training under way with its epoch, loss and remaining time."""

    def __init__(self, console: Console) -> None:
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self.console = console
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            refresh_per_second=4,
        )
        self.overall: TaskID | None = None
        self.training: TaskID | None = None
        self.name, self.epochs, self.steps, self.done = "", 0, 1, 0
        self._read = 0.0

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self.overall is not None:
            self.bars.update(self.overall, completed=self.bars.tasks[0].total, description="done", status="")
        self._drop_training()
        self.bars.stop()

    def _drop_training(self) -> None:
        if self.training is not None:
            self.bars.remove_task(self.training)
            self.training = None

    def stage(self, name: str, index: int, total: int) -> None:
        self.name = name
        self._drop_training()
        if self.overall is None:
            self.overall = self.bars.add_task("", total=total, status="")
        self.bars.update(self.overall, completed=index, description=name, status="")

    def report(self, name: str, done: int, total: int | None) -> None:
        if self.overall is None:
            self.overall = self.bars.add_task("", total=total, status="")
        self.bars.update(self.overall, completed=done, total=total, description=name)

    def begin(self, epochs: int, steps: int, done: int) -> None:
        self._drop_training()
        self.epochs, self.steps, self.done = epochs, steps, done * steps
        self.training = self.bars.add_task("  steps", total=epochs * steps, completed=self.done, status="")

    def step(self, loss: Tensor) -> None:
        if self.training is None:
            return
        self.done += 1
        now = time.monotonic()
        if now - self._read < 0.25:
            return
        self._read = now
        epoch = min(self.epochs, (self.done - 1) // self.steps + 1)
        status = f"epoch {epoch}/{self.epochs}  loss {float(loss.detach()):.3f}"
        self.bars.update(self.training, completed=self.done, status=status)

    def note(self, text: str) -> None:
        self.bars.console.print(f"{self.name}: {text}", highlight=False, markup=False)


def make_progress(console: Console) -> Progress:
    """Bars where `console` is a terminal, else plain lines."""
    return RichProgress(console) if console.is_terminal else PlainProgress(console)


Report = Callable[[str, int, int | None], None]


@contextlib.contextmanager
def progress_bar(console: Console | None = None) -> Iterator[Report]:
    """A bar on the terminal: ``with progress_bar() as progress: suite(model, loader, progress=progress)``."""
    from rich.console import Console

    with RichProgress(console or Console()) as bars:
        yield bars.report
