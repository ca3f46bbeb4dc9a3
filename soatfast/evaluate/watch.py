"""The model as an attack sees it while it is evaluated: what is fooled is noted, and leaves the passes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soatfast import ops
from soatfast.attacks import Attack
from soatfast.attacks.region import is_needed
from soatfast.gradients import objectives
from soatfast.gradients.outputs import logits_of
from soatfast.gradients.passes import unwrap

_SLACK = 1e-5  # rounding of a projection, relative to eps


@dataclass
class Standing:
    """Where each sample of a batch stands: the example that is known of it, on the model's device.

    example (B, ...), its logits (B, K) and norm (B,): the first one that fooled the model, else the last one made.
    correct: no example has fooled it so far.
    """

    logits: Tensor
    y: Tensor
    norm: Tensor
    correct: Tensor
    example: Tensor

    @property
    def prediction(self) -> Tensor:
        return self.logits.argmax(1)

    @property
    def margin(self) -> Tensor:
        """z_y - max_{j != y} z_j: positive where the prediction is right."""
        return -objectives.margin(self.logits, self.y)

    def copy(self) -> Standing:
        return Standing(self.logits.clone(), self.y, self.norm.clone(), self.correct.clone(), self.example.clone())


def can_watch(attack: Any, x: Tensor) -> bool:
    """Whether the predictions of the attack's own passes are those of the evaluation, row for row."""
    if not isinstance(attack, Attack) or not attack.watchable or attack.mode == "train" or attack.engine != "eager":
        return False
    if attack.output is not None or attack.forward is not None or is_needed(attack):  # the points are not the input's
        return False
    parts = getattr(attack, "compact", False) or getattr(attack, "early_stop", False)
    if parts or getattr(attack, "tol", None) is not None:  # asks about parts of the batch
        return False
    return x.dtype in (torch.float32, torch.float64)


class Watch(nn.Module):
    """Stands in for `model` while an attack runs on the batch x (B, ...), and keeps the `standing` of each sample.

    A sample is fooled by the first point at which the attack asks the model that lies in ball and box and is
    classified wrongly, or by the final example (:meth:`finish`). With `compact` a sample that is fooled, or was at the
    start, goes through the model no more: its rows of the logits stay as they were, with a gradient of zero. As the
    others' rows come from the same points either way, it changes what is paid and not what is found.

    forwards, backwards (B,) count the passes of each sample; asked_forward and asked_backward those that the attack
    asked for, all samples together. first (B,): the number of the forward, from 1, that fooled the sample, else 0.
    """

    def __init__(self, model: nn.Module, x: Tensor, standing: Standing, attack: Attack, compact: bool = True) -> None:
        super().__init__()
        self.model = unwrap(model)
        self.x, self.standing, self.compact = x, standing, compact
        self.p, self.eps, self.bounds = attack.p, float(attack.eps), attack.bounds
        self.forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.backwards, self.first = torch.zeros_like(self.forwards), torch.zeros_like(self.forwards)
        self.calls = self.asked_forward = self.asked_backward = 0

    def forward(self, points: Tensor) -> Tensor:
        copies, rest = divmod(len(points), len(self.x))
        if rest:
            raise ValueError(f"a watched attack asks about batches of {len(self.x)}, got {len(points)} rows")
        rows = self._rows(copies)
        logits = self._run(points, rows, copies)
        with torch.no_grad():
            self._note(points.detach(), logits.detach(), rows, inside=True)
        return logits

    @torch.no_grad()
    def finish(self, x_adv: Tensor) -> None:
        """Score the final examples; of samples that no point has fooled they are what is known from now on."""
        rows = self._rows(1)
        logits = self._run(x_adv, rows, 1)
        kept = self.standing.correct.clone()
        self.standing.logits[kept] = logits[kept].to(self.standing.logits.dtype)
        self.standing.norm[kept] = _norm(x_adv[kept] - self.x[kept], self.p).to(self.standing.norm.dtype)
        self.standing.example[kept] = x_adv[kept].to(self.x.dtype)
        self._note(x_adv, logits, rows, inside=False)

    def _rows(self, copies: int) -> Tensor | None:
        """Which rows go through the model; None: all."""
        active = self.standing.correct
        if not self.compact or bool(active.all()):
            return None
        return active.repeat(copies).nonzero().flatten()

    def _run(self, points: Tensor, rows: Tensor | None, copies: int) -> Tensor:
        self.calls += 1
        self.asked_forward += len(points)
        samples = torch.arange(len(points), device=self.x.device) if rows is None else rows
        samples = samples % len(self.x)
        self.forwards.index_add_(0, samples, torch.ones_like(samples))
        if rows is None:
            logits = logits_of(self.model(points), len(points))
        elif len(rows):
            some = logits_of(self.model(points.index_select(0, rows)), len(rows))
            logits = self.standing.logits.repeat(copies, 1).to(some.dtype).index_copy(0, rows, some)
        else:  # nothing to ask: logits with a gradient of zero
            logits = self.standing.logits.repeat(copies, 1) + 0 * points.flatten(1)[:, :1]
        if logits.requires_grad:
            logits.register_hook(lambda _: self._on_backward(samples, len(points)))
        return logits

    def _on_backward(self, samples: Tensor, asked: int) -> None:
        self.asked_backward += asked
        self.backwards.index_add_(0, samples, torch.ones_like(samples))

    def _note(self, points: Tensor, logits: Tensor, rows: Tensor | None, inside: bool) -> None:
        """Keep the wrong examples of samples that were right so far; `inside`: of those in ball and box."""
        now = self.standing
        size = len(self.x)
        asked = torch.arange(len(points), device=self.x.device) if rows is None else rows
        asked = asked[now.correct[asked % size]]
        wrong = asked[logits[asked].argmax(1) != now.y[asked % size]]
        if not len(wrong):
            return
        found = points[wrong]
        norm = _norm(found - self.x[wrong % size], self.p)
        if inside:
            low, high = self.bounds
            flat = found.flatten(1)
            slack = _SLACK * (high - low)
            ok = (norm <= self.eps * (1 + _SLACK)) & (flat.amin(1) >= low - slack) & (flat.amax(1) <= high + slack)
            wrong, norm = wrong[ok], norm[ok]
        for copy in reversed(range(len(points) // size)):  # of a stacked batch's wrong points the first is kept
            part = wrong // size == copy
            sample = wrong[part] % size
            now.logits[sample] = logits[wrong[part]].to(now.logits.dtype)
            now.norm[sample] = norm[part].to(now.norm.dtype)
            now.example[sample] = points[wrong[part]].to(now.example.dtype)
            now.correct[sample] = False
            self.first[sample] = self.calls


def _norm(delta: Tensor, p: float) -> Tensor:
    return ops.lp_norm(delta, p)


def norm_of(attack: Any) -> float:
    """p of the norm that an attack's records hold: its own, or inf for a plain function."""
    from soatfast.attacks.autoattack import AutoAttack

    return float(attack.p) if isinstance(attack, (Attack, AutoAttack)) else math.inf
