"""The block ``with sf.profile_passes() as report:``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from soatfast.ops.arguments import check_steps
from soatfast.profile.recorder import Enough, Recorder
from soatfast.profile.report import PassReport


@contextlib.contextmanager
def profile_passes(steps: int | None = None) -> Iterator[PassReport]:
    """Count and time the network passes of whatever runs in the block, step by step of its optimizers.

    The outermost modules with parameters that are called are found by themselves. Of each optimizer step the report
    has the forwards, the backwards to the input and to the weights, with the seconds of each; parameter gradients that
    no optimizer saw; forwards repeated on the same input; forwards that moved batch-norm statistics; and host reads
    between the passes. ``report.estimate()``, after the block, says what the same work takes by soatfast.

    Weights, gradients and random numbers of the block are those it has without the profiler. An optimizer step counts
    if the optimizer holds a parameter of a module that was called. Passes in other processes are not seen.

    Args:
        steps: the block ends after so many optimizer steps, at the end of ``optimizer.step()``. None: it does not.

    >>> import torch
    >>> from soatfast.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> x, y = torch.rand(5, 1, 2, 2), torch.tensor([0, 1, 2, 0, 1])
    >>> with profile_passes() as report:
    ...     x_adv = PGD(eps=0.1, steps=7)(model, x, y)
    ...     torch.nn.functional.cross_entropy(model(x_adv), y).backward()
    ...     optimizer.step()
    >>> report.steps[0].forward, report.steps[0].backward_input, report.steps[0].backward_parameters
    (8, 7, 1)
    """
    if steps is not None:
        check_steps(steps)
    recorder = Recorder(steps)
    report = PassReport(recorder)
    try:
        with recorder:
            yield report
    except Enough as end:
        if end.recorder is not recorder:
            raise
