"""What a step would take by soatfast: the savings, one by one, from passes timed on the script's own model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks import PGD
from soatfast.gradients import allocator, outputs
from soatfast.gradients.objectives import Named, Objective
from soatfast.gradients.oracle import InputGradient
from soatfast.gradients.state import Mode, ModelState
from soatfast.profile.recorder import Call, Recorder
from soatfast.profile.steps import Step
from soatfast.runs.table import Column, Table

_LONGEST = 10  # passes of a timed attack
_ROUNDS = (3, 9)
_SECONDS = 20.0  # after so long the rounds end

WEIGHTS, FROZEN, CLEAN, FUSED, MEMORY = (
    "no unused parameter gradients",
    "frozen weights in the attack passes",
    "shared clean pass",
    "fused steps between the attack passes",
    "memory that stays",
)
NOTHING = "No pass of an attack was seen beside the training passes: there is no attack to make cheaper."


@dataclass(frozen=True)
class Saving:
    """One saving. seconds: of a step, below 0 where soatfast is slower; exact: the results are the same up to rounding.

    Those that are not exact stand each alone, on top of all exact ones.
    """

    name: str
    seconds: float
    exact: bool = True


@dataclass(frozen=True)
class Estimate:
    """A step of the script, and the same work by soatfast.

    seconds: of the step as it was. savings: see :class:`Saving`. reason: why there is no estimate; "" where there is.
    """

    seconds: float
    savings: tuple[Saving, ...] = ()
    reason: str = ""

    @property
    def after(self) -> float:
        """Seconds of the step by soatfast, results the same."""
        return self.seconds - sum(saving.seconds for saving in self.savings if saving.exact)

    @property
    def speed(self) -> float:
        """Time of the step over that by soatfast."""
        return self.seconds / self.after if self.after > 0 else float("nan")

    def table(self) -> Table:
        """A line a saving, the sum, and what else could be saved."""
        rows: list[dict[str, Any]] = [{"what": "the step as it is", "after": self.seconds, "speed": 1.0}]
        rows += [{"what": s.name, "saved": s.seconds} for s in self.savings if s.exact]
        if self.savings:
            rows.append({"what": "by soatfast, same results", "after": self.after, "speed": self.speed})
        for s in self.savings:
            if not s.exact:
                after = self.after - s.seconds
                speed = self.seconds / after if after > 0 else float("nan")
                rows.append({"what": f"and {s.name}", "saved": s.seconds, "after": after, "speed": speed})
        columns = [
            Column("what", "estimate"),
            Column("saved", "seconds saved", 4),
            Column("after", "seconds a step", 4),
            Column("speed", "time over it", 2),
        ]
        return Table("the same work by soatfast", columns, rows, self.reason or "Timed on this model after the run.")

    def to_json(self) -> dict[str, Any]:
        found = dataclasses.asdict(self)
        return {**found, "after": self.after, "speed": self.speed if self.after > 0 else None}


def estimate(step: Step, call: Call | None, keep_memory: bool = False) -> Estimate:
    """The savings of a typical step; ``call`` is a forward of its attack, or of its training where it has none."""
    clean = [Saving(CLEAN, step.repeated_seconds)] if step.repeated else []
    reason = "" if step.attack_passes or clean else NOTHING
    if call is None:
        return Estimate(step.seconds, tuple(clean), reason)
    try:
        with _undisturbed(call):
            call = _of_last(call)
            savings = _attack_savings(step, call, clean, keep_memory) if step.attack_passes else clean
            if not step.attack_passes and keep_memory and step.backward_parameters:
                savings = [*clean, *_memory_of_training(step, call, sum(saving.seconds for saving in clean))]
            return Estimate(step.seconds, tuple(savings), reason)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        return Estimate(step.seconds, reason=f"No estimate: {' '.join(f'{type(error).__name__}: {error}'.split())}")


def _attack_savings(step: Step, call: Call, clean: list[Saving], keep_memory: bool) -> list[Saving]:
    count = min(step.attack_passes, _LONGEST)
    y, objective = _target(call)
    lower, upper = (float(v) for v in call.x.aminmax())
    bounds = (lower, upper) if upper > lower else (lower, lower + 1)
    mode: Mode = "train" if call.training else "eval"
    attack = PGD(
        eps=(bounds[1] - bounds[0]) / 32, steps=count, bounds=bounds, mode=mode, objective=objective, forward=call
    )

    def gradients() -> None:
        with InputGradient(call.module, objective, mode, forward=call) as oracle:
            for _ in range(count):
                oracle.gradient(call.x, y)

    def run(engine: Any = "eager") -> Callable[[], object]:
        changed = dataclasses.replace(attack, engine=engine)
        return lambda: changed(call.module, call.x, y)

    unused = step.unused_gradients > 0
    plain = functools.partial(_plain, call, y, objective, count, unused)
    watched = _Watch(plain)
    work: dict[str, Callable[[], object]] = {
        "watched": watched,
        "plain": plain,
        "gradients": gradients,
        "attack": run(),
    }
    device = call.x.device
    if call.autocast is None and call.x.dtype == torch.float32:
        work["bf16"] = run("bf16")
    times = _race(work, device)
    # All passes of a step, as long as they took then: the machine may be faster or slower now.
    scale = step.attack_seconds / watched.median()
    attacked = scale * times["attack"]
    cheaper = scale * (times["plain"] - times["gradients"])
    savings = [Saving(WEIGHTS if unused else FROZEN, cheaper), *clean]
    savings.append(Saving(FUSED, step.attack_seconds + step.attack_between - attacked - cheaper))
    after = step.seconds - sum(saving.seconds for saving in savings)
    if "bf16" in times:
        savings.append(Saving("bf16 attack passes", scale * (times["attack"] - times["bf16"]), False))
    if step.attack_passes > 1:
        one = attacked / step.attack_passes
        savings.append(Saving("one attack pass with a memory", attacked - one, False))
    if keep_memory and device.type == "cpu" and allocator.keep_memory():
        watched.clear()
        kept = _race({"watched": watched, "attack": work["attack"]}, device)
        times_over = step.attack_passes / count
        faster = watched.median() * times_over / step.attack_seconds  # of a pass, and so of the rest of the step
        rest = after - attacked
        savings.append(Saving(MEMORY, after - faster * rest - times_over * kept["attack"], False))
    return savings


def _memory_of_training(step: Step, call: Call, saved: float) -> list[Saving]:
    """What :func:`keep_memory` saves in a step that has no attack."""
    if call.x.device.type != "cpu" or not allocator.keep_memory():
        return []
    y, objective = _target(call)
    watched = _Watch(functools.partial(_plain, call, y, objective, 1, True))
    _race({"watched": watched}, call.x.device)
    before = step.forward_seconds / step.forward + step.backward_parameters_seconds / step.backward_parameters
    return [Saving(MEMORY, (step.seconds - saved) * (1 - watched.median() / before), False)]


class _Watch:
    """Runs passes and keeps their seconds, measured as the script's were."""

    def __init__(self, run: Callable[[], object]):
        self._run = run
        self._seconds: list[float] = []

    def __call__(self) -> None:
        with Recorder() as recorder:
            self._run()
        self._seconds.append(recorder.rest.forward_seconds + recorder.rest.backward_seconds)

    def clear(self) -> None:
        self._seconds = []

    def median(self) -> float:
        """Without the first, which warms up."""
        return statistics.median(self._seconds[1:])


class _Last(Call):
    """A call whose output is the last of several, as ART's wrapper returns all layers'."""

    def __call__(self, model: Any, x: Tensor) -> Any:
        return super().__call__(model, x)[-1]


def _of_last(call: Call) -> Call:
    """The call, or that of its last output where several could be the logits."""
    with torch.no_grad(), ModelState(call.module, "keep"):
        returned = call(call.module, call.x)
    try:
        outputs.read(returned, len(call.x))
    except ValueError:
        if isinstance(returned, (list, tuple)):
            return _Last(**vars(call))
    return call


def _target(call: Call) -> tuple[Tensor, Named | Objective]:
    """Labels that the model does not predict, so that gradients are of the usual size; and an objective for them."""
    count = len(call.x)
    with torch.no_grad(), ModelState(call.module, "keep"):
        returned = call(call.module, call.x)
        try:
            return outputs.logits_of(returned, count).argmin(1), "ce"
        except ValueError:
            outputs.read(returned, count)
    return torch.zeros(count, dtype=torch.int64, device=call.x.device), _size


def _size(output: Tensor, y: Tensor) -> Tensor:
    return output.flatten(1).square().mean(1)


def _plain(call: Call, y: Tensor, objective: Named | Objective, count: int, weights: bool) -> None:
    """The passes of an attack in plain PyTorch, as the script's: to the weights as well, or to the input."""
    with ModelState(call.module, "train" if call.training else "eval", freeze=False) as state:
        for _ in range(count):
            x = call.x.clone().requires_grad_()
            output = outputs.read(call(call.module, x), len(x))
            if isinstance(objective, str):
                loss = nn.functional.cross_entropy(outputs.as_classes(output), y)
            else:
                loss = objective(output, y).mean()
            torch.autograd.grad(loss, [x, *state.attached] if weights else x, allow_unused=True)


def _race(work: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Median seconds of each, taking turns; a first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    start = time.perf_counter()
    for turn in range(_ROUNDS[1]):
        if turn >= _ROUNDS[0] and time.perf_counter() - start > _SECONDS:
            break
        for name, run in work.items():
            times[name].append(_timed(run, device))
    return {name: statistics.median(record) for name, record in times.items()}


def _timed(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextlib.contextmanager
def _undisturbed(call: Call) -> Iterator[None]:
    """Random numbers are as before afterwards; passes run under the autocast of the recorded call."""
    kind = call.x.device.type
    with contextlib.ExitStack() as stack:
        devices = [call.x.device] if kind == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if call.autocast is not None:
            stack.enter_context(torch.autocast(kind, dtype=call.autocast))
        yield
