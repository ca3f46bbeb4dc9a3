"""What was counted: steps, medians, tables, JSON and a picture."""

from __future__ import annotations

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from soatfast.profile.advice import changes
from soatfast.profile.estimate import Estimate, estimate
from soatfast.profile.recorder import Recorder
from soatfast.profile.steps import Step
from soatfast.runs.figures import PALETTE, clear_axes, figure
from soatfast.runs.table import Column, Table

_WARM = 3  # from so many steps on, the first, which warms up, does not count in medians


class PassReport:
    """What :func:`profile_passes` yields: readable at any time; whole after the block.

    steps: one :class:`Step` an optimizer step. rest: what came after the last one; where there is none, everything.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._estimate: Estimate | None = None

    @property
    def steps(self) -> list[Step]:
        return self._recorder.steps

    @property
    def rest(self) -> Step:
        return self._recorder.rest

    @property
    def models(self) -> list[str]:
        """The outermost modules that were called: class, and how its passes are run."""
        return [f"{w.name}: {w.formats}" for w in self._recorder.models.values() if w.forward]

    @property
    def places(self) -> list[str]:
        """Lines of the script that call the model for passes of an attack."""
        return self._recorder.places

    @property
    def doubts(self) -> list[str]:
        """Why counts are not known, where they are not."""
        found = sorted(self._recorder.unseen)
        for watched in self._recorder.models.values():
            module = watched.module()
            reason = watched.doubt(module) if module is not None else None
            if reason is not None:
                found.append(f"the numbers of passes of {watched.name} are not known: {reason}")
        return found

    def typical(self) -> Step:
        """The median of each figure over the steps; from three steps on without the first, which warms up."""
        steps = self.steps[1:] if len(self.steps) >= _WARM else self.steps
        if not steps:
            return self.rest
        medians: dict[str, Any] = {}
        for field in dataclasses.fields(Step):
            value = statistics.median([getattr(step, field.name) for step in steps])
            medians[field.name] = value if isinstance(field.default, float) else round(value)
        return Step(**medians)

    def estimate(self, *, keep_memory: bool = False) -> Estimate:
        """What a step takes by soatfast, from passes timed now on the model of the script; see :class:`Estimate`.

        The model, its statistics and the random numbers are as before afterwards. keep_memory: call
        :func:`soatfast.keep_memory`, which is for the rest of the process, and time what it saves.
        """
        if self._estimate is None or keep_memory:
            self._estimate = estimate(self.typical(), self._recorder.call, keep_memory)
        return self._estimate

    # ------------------------------------------------------------------------------------------ shown

    def table(self) -> Table:
        """A typical step: numbers and seconds of each kind of pass."""
        step = self.typical()
        whole = step.seconds or 1.0
        rows: list[dict[str, Any]] = [
            {"what": "forwards", "number": step.forward, "seconds": step.forward_seconds},
            {"what": "backwards to the input", "number": step.backward_input, "seconds": step.backward_input_seconds},
            {
                "what": "backwards to the weights",
                "number": step.backward_parameters,
                "seconds": step.backward_parameters_seconds,
            },
            {"what": "between the passes", "number": None, "seconds": step.between_seconds},
            {"what": "whole step", "number": None, "seconds": step.seconds},
        ]
        for row in rows:
            row["share"] = 100 * row["seconds"] / whole
        rows += [
            {"what": "passes of an attack, forward and backward", "number": step.attack_passes},
            {"what": "parameter gradients computed and thrown away", "number": step.unused_gradients},
            {"what": "forwards repeated on the same input", "number": step.repeated},
            {"what": "forwards that move batch-norm statistics", "number": step.statistics},
            {"what": "host reads between the passes", "number": step.host_reads},
        ]
        columns = [
            Column("what", "a step"),
            Column("number", "number", 0),
            Column("seconds", "seconds", 4),
            Column("share", "% of the step", 1),
        ]
        count = len(self.steps)
        counted = f"Medians of {count} optimizer steps" if count else "No optimizer step: everything that ran"
        warm = ", without the first" if count >= _WARM else ""
        return Table("passes", columns, rows, "\n".join([f"{counted}{warm}.", *self.models, *self.doubts]))

    def lines(self) -> list[str]:
        """What to change in the script."""
        return changes(self.typical(), self._recorder.call, self.places)

    def to_json(self) -> dict[str, Any]:
        """In JSON's terms; with the estimate where it was made."""
        return {
            "steps": [step.to_json() for step in self.steps],
            "rest": self.rest.to_json(),
            "typical": self.typical().to_json(),
            "models": self.models,
            "places": self.places,
            "doubts": self.doubts,
            "estimate": None if self._estimate is None else self._estimate.to_json(),
        }

    def picture(self, path: str | Path) -> None:
        """Write a PNG: a bar a step, of its forwards, its backwards and the time between."""
        steps = self.steps or [self.rest]
        numbers = range(1, len(steps) + 1)
        parts = {
            "forward": [step.forward_seconds for step in steps],
            "backward to the input": [step.backward_input_seconds for step in steps],
            "backward to the weights": [step.backward_parameters_seconds for step in steps],
            "between": [step.between_seconds for step in steps],
        }
        drawn = figure((8.0, 4.5), "passes of each step")
        axes = drawn.subplots()
        bottom = [0.0] * len(steps)
        for (name, seconds), colour in zip(parts.items(), PALETTE, strict=False):
            axes.bar(numbers, seconds, bottom=bottom, label=name, color=colour)
            bottom = [a + b for a, b in zip(bottom, seconds, strict=True)]
        axes.set_xlabel("optimizer step" if self.steps else "no optimizer step")
        axes.set_ylabel("seconds")
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        clear_axes(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=4, frameon=False, fontsize=9)
        drawn.savefig(path, format="png")

    def __str__(self) -> str:
        return self.table().to_markdown()

    def __repr__(self) -> str:
        return f"PassReport({len(self.steps)} steps, {self.typical().forward} forwards a step)"
