"""The passes of one optimizer step, and what they were for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from soatfast.gradients.counting import Traversal


@dataclass(eq=False)
class Event:
    """A pass of an outermost module, the ``model``-th that was called."""

    begin: Any
    end: Any
    model: int


@dataclass(eq=False)
class Forward(Event):
    """A call of it. ``given`` names its input: two calls with the same one did the same work."""

    call: int
    given: object = None
    moves: bool = False  # batch-norm statistics
    where: str = ""
    key: Any = None


@dataclass(eq=False)
class Backward(Event):
    """A run of the autograd engine. ``fate`` of its parameter gradients: "none", "used" or "unused"."""

    traversal: Traversal
    fate: str = "none"
    added: bool = False  # they went to the parameters' grad


@dataclass(frozen=True)
class Step:
    """What came before one optimizer step, since the one before.

    forward, backward_input, backward_parameters: numbers of passes; the last reach the parameters, and maybe the input.
    seconds: of the whole step; ``*_seconds``: of the passes of each kind.
    unused_gradients: backwards to the input whose parameter gradients were cleared before an optimizer saw them.
    repeated: forwards on an input, and in a mode, that an earlier forward of the step had; repeated_seconds: theirs,
    and their shares of the training backward.
    statistics: forwards that moved batch-norm statistics. host_reads: numbers read by Python outside the passes.
    attack_passes: backwards to the input that no optimizer step used, each with its forward; attack_seconds: of these
    passes; attack_between: from the first of them to the last, outside any pass.
    """

    forward: int = 0
    backward_input: int = 0
    backward_parameters: int = 0
    seconds: float = 0.0
    forward_seconds: float = 0.0
    backward_input_seconds: float = 0.0
    backward_parameters_seconds: float = 0.0
    unused_gradients: int = 0
    repeated: int = 0
    repeated_seconds: float = 0.0
    statistics: int = 0
    host_reads: int = 0
    attack_passes: int = 0
    attack_seconds: float = 0.0
    attack_between: float = 0.0

    @property
    def backward_seconds(self) -> float:
        return self.backward_input_seconds + self.backward_parameters_seconds

    @property
    def between_seconds(self) -> float:
        """Outside the passes: data, the attack's steps, the optimizer, everything else."""
        return self.seconds - self.forward_seconds - self.backward_seconds

    @property
    def empty(self) -> bool:
        return not (self.forward or self.backward_input or self.backward_parameters)

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "between_seconds": self.between_seconds}


def fold(forwards: Sequence[Forward], backwards: Sequence[Backward], seconds: float, host_reads: int) -> Step:
    """The step that these passes make; their begins and ends are seconds by now."""
    to_input = [b for b in backwards if not b.traversal.reached_parameters]
    to_weights = [b for b in backwards if b.traversal.reached_parameters]
    used = {(b.model, call) for b in to_weights if b.fate != "unused" for call in b.traversal.outputs}
    attack = [b for b in backwards if b.traversal.reached_input and (b in to_input or b.fate == "unused")]
    attack = [b for b in attack if not any((b.model, call) in used for call in b.traversal.outputs)]
    calls = {(b.model, call) for b in attack for call in b.traversal.outputs}
    attacked = [f for f in forwards if (f.model, f.call) in calls]
    repeated = _repeated(forwards)
    extra = sum(_length(f) + _share(f, to_weights) for f in repeated)
    passes: list[Event] = [*attacked, *attack]
    between = 0.0
    if passes:
        first, last = min(p.begin for p in passes), max(p.end for p in passes)
        everything: list[Event] = [*forwards, *backwards]
        inside = sum(_length(p) for p in everything if p.begin >= first and p.end <= last)
        between = max(0.0, last - first - inside)
    return Step(
        len(forwards),
        len(to_input),
        len(to_weights),
        seconds,
        sum(map(_length, forwards)),
        sum(map(_length, to_input)),
        sum(map(_length, to_weights)),
        sum(b.fate == "unused" and b.traversal.reached_input for b in to_weights),
        len(repeated),
        extra,
        sum(f.moves for f in forwards),
        host_reads,
        len(attack),
        sum(map(_length, passes)),
        between,
    )


def attack_places(forwards: Sequence[Forward], backwards: Sequence[Backward]) -> list[str]:
    """Where the script calls the model for passes to the input that no optimizer step uses."""
    calls = {
        (b.model, call)
        for b in backwards
        if b.traversal.reached_input and (b.fate == "unused" or not b.traversal.reached_parameters)
        for call in b.traversal.outputs
    }
    return list(dict.fromkeys(f.where for f in forwards if (f.model, f.call) in calls and f.where))


def _length(event: Event) -> float:
    return event.end - event.begin


def _repeated(forwards: Sequence[Forward]) -> list[Forward]:
    seen: set[object] = set()
    found = []
    for f in forwards:
        if f.given is None:
            continue
        if f.given in seen:
            found.append(f)
        seen.add(f.given)
    return found


def _share(forward: Forward, backwards: Sequence[Backward]) -> float:
    """The part of a training backward that goes through this forward."""
    for b in backwards:
        if b.model == forward.model and forward.call in b.traversal.outputs and b.fate != "unused":
            return _length(b) / len(b.traversal.outputs)
    return 0.0
