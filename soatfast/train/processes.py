"""What the processes of a training tell each other: that one of them failed, or that the system wants the machine.

Schedulers take a machine away by SIGTERM: it is noted, agreed on by all processes, and obeyed between two batches.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from soatfast.runs.errors import ElsewhereError, UserError

T = TypeVar("T")

_PAUSE = 1.0  # seconds between two questions to the other processes


def on_cpu() -> bool:
    """Whether a launcher started several processes on a machine without an accelerator: they then meet on the CPU."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available()


def accelerator_of(precision: str) -> Accelerator:
    """The Accelerator of a training; UserError where the launcher's processes have not met each other in it."""
    made = Accelerator(mixed_precision=precision, cpu=on_cpu())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if made.num_processes != launched:
        raise UserError(f"the launcher started {launched} processes, but {made.num_processes} train together")
    return made


@contextlib.contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM came since the block began; a second one ends the process at once.

    Only in the main thread, and only where the program does nothing about SIGTERM itself; else the answer is no.
    """
    came = threading.Event()

    def note(number: int, frame: FrameType | None) -> None:
        came.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def agreed(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """work()'s result; an error that a user can mend, in any process, ends all of them."""
    problem: Exception | None = None
    try:
        result = work()
    except (UserError, OSError) as error:
        problem = error
    if accelerator.num_processes > 1:
        texts = gather_object([problem and str(problem)])
        if problem is None and any(texts):
            raise ElsewhereError(next(filter(None, texts)))
    if problem is not None:
        raise problem
    return result


class Stop:
    """Whether any process was asked to stop: the same answer on all, which call it equally often.

    The processes ask each other about once a second; in between the answer is no. A process alone asks nobody.
    """

    def __init__(self, accelerator: Accelerator, asked: Callable[[], bool]) -> None:
        self.accelerator, self.asked = accelerator, asked
        self.calls, self.every, self.since = 0, 1, time.monotonic()

    def __call__(self) -> bool:
        if self.accelerator.num_processes == 1:
            return self.asked()
        self.calls += 1
        if self.calls % self.every:
            return False
        seconds = time.monotonic() - self.since
        ours = torch.tensor([float(self.asked()), seconds], device=self.accelerator.device)
        asked, total = self.accelerator.reduce(ours, "sum").tolist()  # type: ignore[union-attr]
        mean = total / self.accelerator.num_processes / self.every
        self.calls, self.every, self.since = 0, min(100, max(1, int(_PAUSE / max(mean, 1e-6)))), time.monotonic()
        return bool(asked)
