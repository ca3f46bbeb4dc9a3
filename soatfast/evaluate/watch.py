"""The model as an attack sees it while it is evaluated: what is fooled is noted, and leaves the passes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soatfast import ops
from soatfast.attacks import Attack
from soatfast.attacks.region import asks_about_parts
from soatfast.evaluate import reading
from soatfast.gradients import engine as engines
from soatfast.gradients import objectives, outputs
from soatfast.gradients.checks import per_entry
from soatfast.gradients.outputs import logits_of
from soatfast.gradients.passes import unwrap
from soatfast.ops.arguments import as_column

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
    if not isinstance(attack, Attack) or not attack.watchable or attack.mode == "train":
        return False
    if engines.parse(attack.engine).precision is not None:
        return False
    if asks_about_parts(attack) or getattr(attack, "early_stop", False) or outputs.changes_input(attack.forward):
        return False
    return x.dtype in (torch.float32, torch.float64)


class Ball:
    """Ball, box and mask of an attack around x (B, ...), in the input's space; rounding is no reason to be outside."""

    def __init__(self, attack: Attack, x: Tensor) -> None:
        self.p, self.low, self.high = attack.p, *(_entries(b, x, "bounds") for b in attack.bounds)
        eps = _entries(attack.eps, x, "eps")
        self.norm = eps if isinstance(eps, float) else math.inf  # the radius of the norm
        self.each: Tensor | None = None  # the largest change of each entry, for a mask and for a radius an entry
        if attack.mask is not None:
            mask = per_entry(attack.mask, x, "mask", samples=True)
            self.each = torch.where(mask, torch.as_tensor(eps, dtype=x.dtype, device=x.device), 0.0)
        elif isinstance(eps, Tensor):
            self.each = eps

    def holds(self, points: Tensor, delta: Tensor, norm: Tensor, samples: Tensor) -> Tensor:
        """(n,) bool for points (n, ...), their delta = points - x and its norm (n,), of these samples of the batch."""
        slack = _SLACK * (self.high - self.low)
        inside = (points >= self.low - slack) & (points <= self.high + slack)
        if self.each is not None:
            each = self.each if len(self.each) == 1 else self.each[samples]
            inside &= delta.abs() <= each + _SLACK * self.each.amax()
        return inside.flatten(1).all(1) & (norm <= self.norm * (1 + _SLACK))


def _entries(value: float | Tensor, x: Tensor, name: str) -> float | Tensor:
    """A number, or a tensor of a number for each entry."""
    return per_entry(value, x, name) if isinstance(value, Tensor) and value.dim() else float(value)


class Watch(nn.Module):
    """Stands in for `model` while an attack runs on the batch x (B, ...), and keeps the `standing` of each sample.

    A sample is fooled by the first point at which the attack asks the model that lies in ball, box and mask and is
    classified wrongly, or by the final example (:meth:`finish`). With `compact` a sample that is fooled, or was at the
    start, goes through the model no more: its rows of the logits stay as they were, with a gradient of zero. As the
    others' rows come from the same points either way, it changes what is paid and not what is found.

    The model is called and read as the evaluation does (:mod:`soatfast.evaluate.reading`). An attack that has an
    output= of its own follows that part of the same forward; what is classified stays the evaluation's part.

    forwards, backwards (B,) count the passes of each sample; asked_forward and asked_backward those that the attack
    asked for, all samples together. first (B,): the number of the forward, from 1, that fooled the sample, else 0.
    """

    def __init__(self, model: nn.Module, x: Tensor, standing: Standing, attack: Attack, compact: bool = True) -> None:
        super().__init__()
        inner, self.output, self.call = reading.parts(model)
        self.call = self.call if attack.forward is None else attack.forward
        self.model = unwrap(inner)
        self.engine = engines.parse(attack.engine)
        whole = isinstance(attack.objective, str) and attack.output in (None, self.output)
        self.followed = None if whole else (self.output if attack.output is None else attack.output,)
        self.x, self.standing, self.compact = x, standing, compact
        self.ball = Ball(attack, x)
        self.forwards = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        self.backwards, self.first = torch.zeros_like(self.forwards), torch.zeros_like(self.forwards)
        self.calls = self.asked_forward = self.asked_backward = 0
        self._shape: torch.Size | None = None  # of a sample's entry of what the attack follows, where not the logits

    def run(self, attack: Attack, y: Tensor) -> None:
        """The whole attack on x. The model is compiled in here, and what a CUDA graph would record runs eagerly."""
        layout = dataclasses.replace(self.engine, precision=None, compile=False, graph=False).name
        if (attack.output, attack.forward, attack.engine) != (None, None, layout):
            attack = dataclasses.replace(attack, output=None, forward=None, engine=layout)  # type: ignore[arg-type]
        self.finish(attack(self, self.x, y))

    def forward(self, points: Tensor) -> Tensor:
        copies, rest = divmod(len(points), len(self.x))
        if rest:
            raise ValueError(f"a watched attack asks about batches of {len(self.x)}, got {len(points)} rows")
        rows = self._rows(copies)
        logits, followed = self._run(points, rows, copies)
        with torch.no_grad():
            self._note(points.detach(), logits.detach(), rows, inside=True)
        return followed

    @torch.no_grad()
    def finish(self, x_adv: Tensor) -> None:
        """Score the final examples; of samples that no point has fooled they are what is known from now on."""
        rows = self._rows(1)
        logits = self._run(x_adv, rows, 1)[0]
        kept = self.standing.correct.clone()
        self.standing.logits[kept] = logits[kept].to(self.standing.logits.dtype)
        self.standing.norm[kept] = ops.lp_norm(x_adv[kept] - self.x[kept], self.ball.p).to(self.standing.norm.dtype)
        self.standing.example[kept] = x_adv[kept].to(self.x.dtype)
        self._note(x_adv, logits, rows, inside=False)

    def _rows(self, copies: int) -> Tensor | None:
        """Which rows go through the model; None: all."""
        active = self.standing.correct
        if not self.compact or bool(active.all()):
            return None
        return active.repeat(copies).nonzero().flatten()

    def _run(self, points: Tensor, rows: Tensor | None, copies: int) -> tuple[Tensor, Tensor]:
        """(logits that are classified, what the attack follows), both with all rows of the points."""
        self.calls += 1
        self.asked_forward += len(points)
        samples = torch.arange(len(points), device=self.x.device) if rows is None else rows
        samples = samples % len(self.x)
        self.forwards.index_add_(0, samples, torch.ones_like(samples))
        if rows is None:
            logits, followed = self._ask(points)
        elif len(rows):
            logits, followed = (self._filled(t, rows, copies) for t in self._ask(points.index_select(0, rows)))
        else:  # nothing to ask: logits with a gradient of zero
            logits = self.standing.logits.repeat(copies, 1) + 0 * points.flatten(1)[:, :1]
            followed = logits
            if self._shape is not None:
                zeros = points.new_zeros(len(points), *self._shape)
                followed = zeros + 0 * as_column(points.flatten(1)[:, 0], zeros)
        if followed.requires_grad:
            followed.register_hook(lambda _: self._on_backward(samples, len(points)))
        return logits, followed

    def _ask(self, points: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        with contextlib.ExitStack() as stack:
            if self.engine.compile and not engines.is_compiled(model):
                stack.enter_context(engines.compiled_forward(model))
            returned = model(points) if self.call is None else self.call(model, points)
        logits = logits_of(returned, len(points), self.output)
        if self.followed is None:
            return logits, logits
        followed = outputs.read(returned, len(points), self.followed[0])
        self._shape = followed.shape[1:]
        return logits, followed

    def _filled(self, some: Tensor, rows: Tensor, copies: int) -> Tensor:
        """`some` in its rows; elsewhere the logits that are known, of another shape zeros."""
        known = self.standing.logits
        rest = known if known.shape[1:] == some.shape[1:] else some.new_zeros(len(known), *some.shape[1:])
        return rest.repeat(copies, *(1,) * (rest.dim() - 1)).to(some.dtype).index_copy(0, rows, some)

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
        delta = found - self.x[wrong % size]
        norm = ops.lp_norm(delta, self.ball.p)
        if inside:
            ok = self.ball.holds(found, delta, norm, wrong % size)
            wrong, norm = wrong[ok], norm[ok]
        for copy in reversed(range(len(points) // size)):  # of a stacked batch's wrong points the first is kept
            part = wrong // size == copy
            sample = wrong[part] % size
            now.logits[sample] = logits[wrong[part]].to(now.logits.dtype)
            now.norm[sample] = norm[part].to(now.norm.dtype)
            now.example[sample] = points[wrong[part]].to(now.example.dtype)
            now.correct[sample] = False
            self.first[sample] = self.calls


def norm_of(attack: Any) -> float:
    """p of the norm that an attack's records hold: its own, or inf for a plain function."""
    from soatfast.attacks.autoattack import AutoAttack

    return float(attack.p) if isinstance(attack, (Attack, AutoAttack)) else math.inf
