"""Which engine runs a model's attack passes fastest on this machine: measured, not guessed."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from soatfast.gradients.checks import check_batch
from soatfast.gradients.engine import parse
from soatfast.gradients.objectives import Named, Objective
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.ops.arguments import check_steps

_PLAIN = ("eager", "channels_last", "folded", "channels_last+folded", "compile", "channels_last+compile")
_HALF = ("bf16", "bf16+channels_last", "bf16+channels_last+folded", "bf16+compile", "bf16+channels_last+compile")
_CUDA = ("fp16", "fp16+channels_last", "graph", "bf16+graph", "fp16+graph", "bf16+compile+graph")


@dataclass(frozen=True)
class Timing:
    """One engine: the median milliseconds of a gradient, and what its gradients are worth.

    speed: eager's time over this one's, of the same turns. signs: share of the entries with the sign of eager's
    gradient. cosine: the smallest over the samples between the two gradients. start: seconds that the first turn took
    longer than the others, as to compile. error: why it did not run; the numbers are NaN then.
    """

    engine: str
    milliseconds: float
    speed: float
    signs: float
    cosine: float
    start: float
    error: str = ""

    def job(self, gradients: int) -> float:
        """Seconds of a job of so many gradients, the start among them."""
        return self.start + gradients * self.milliseconds / 1e3

    def earned_back(self, other: Timing) -> float:
        """After how many gradients the start costs no more time than the other engine; infinity: never."""
        gained = (other.milliseconds - self.milliseconds) / 1e3
        if self.start <= other.start:
            return 0 if gained >= 0 else math.inf
        return math.ceil((self.start - other.start) / gained) if gained > 0 else math.inf


def best_for(found: Sequence[Timing], gradients: int) -> Timing:
    """The engine that ends a job of so many gradients first.

    >>> slow, fast = Timing("eager", 10, 1, 1, 1, 0), Timing("compile", 5, 2, 1, 1, 30)
    >>> best_for([fast, slow], 1000).engine, best_for([fast, slow], 10_000).engine, fast.earned_back(slow)
    ('eager', 'compile', 6000)
    """
    return min((t for t in found if not t.error), key=lambda t: t.job(gradients))


def candidates(device: torch.device | str = "cpu") -> tuple[str, ...]:
    """The engines that :func:`tune` tries where none are named; fp16 and graphs on a GPU only."""
    return (*_PLAIN, *_HALF, *(_CUDA if torch.device(device).type == "cuda" else ()))


def tune(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    engines: Sequence[str] | None = None,
    *,
    mode: Mode = "eval",
    objective: Named | Objective = "ce",
    steps: int = 10,
    rounds: int = 7,
    report: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Timing]:
    """Time each engine on the model and this batch; the fastest first, those that did not run last.

    An engine's turn is what an attack of ``steps`` passes asks of it: entering the model, so many gradients, leaving.
    The engines take turns, so that a busy machine slows them alike. The first turn (compilation, caches) does not
    count.

    Args:
        model: as for an attack.
        x: (B, ...) batch, of the size that the attack will have.
        y: (B,) labels.
        engines: names; None: :func:`candidates`. Eager is always among them.
        mode: state of the model in the attack.
        objective: of the attack.
        steps: gradients a turn.
        rounds: turns of each engine that count.
        report: called with the engine's name and how far the work is.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> found = tune(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), ["channels_last"], rounds=1)
    >>> sorted(t.engine for t in found), found[0].signs
    (['channels_last', 'eager'], 1.0)
    """
    check_steps(steps)
    check_steps(rounds, "rounds")
    check_batch(x, y, (-float("inf"), float("inf")))
    if len(x) == 0:
        raise ValueError("x must hold at least one sample, got none")
    names = list(dict.fromkeys(["eager", *(candidates(x.device) if engines is None else engines)]))
    for name in names:
        parse(name)

    def turn(name: str) -> tuple[float, Tensor]:
        start = _now(x.device)
        with InputGradient(model, objective, mode, name) as oracle:
            for _ in range(steps):
                g = oracle.gradient(x, y)
        return _now(x.device) - start, g

    total, done = len(names) * (1 + rounds), 0
    gradients: dict[str, Tensor] = {}
    errors: dict[str, str] = {}
    first: dict[str, float] = {}
    for name in names:
        report(name, done, total)
        done += 1
        try:
            first[name], gradients[name] = turn(name)
        except Exception as error:  # torch.compile without a compiler, an operation without bfloat16: say so, go on
            if name == "eager":
                raise
            errors[name] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    times: dict[str, list[float]] = {name: [] for name in gradients}
    for _ in range(rounds):
        for name, record in times.items():
            report(name, done, total)
            done += 1
            record.append(turn(name)[0] / steps)
    medians = {name: statistics.median(record) for name, record in times.items()}
    eager = gradients["eager"]
    found = [
        Timing(
            name,
            1e3 * seconds,
            medians["eager"] / seconds,
            *_agreement(gradients[name], eager),
            max(0.0, first[name] - steps * seconds),
        )
        for name, seconds in sorted(medians.items(), key=lambda item: item[1])
    ]
    nothing = float("nan")
    return found + [Timing(name, nothing, nothing, nothing, nothing, nothing, error) for name, error in errors.items()]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _agreement(g: Tensor, eager: Tensor) -> tuple[float, float]:
    """(share of equal signs, smallest cosine of a sample); a zero gradient agrees with a zero one."""
    a, b = g.double().flatten(1), eager.double().flatten(1)
    lengths = a.norm(dim=1) * b.norm(dim=1)
    cosine = torch.where(lengths > 0, (a * b).sum(1) / lengths, (a == b).all(1).double())
    return (a.sign() == b.sign()).double().mean().item(), cosine.min().item()
