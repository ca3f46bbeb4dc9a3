"""Contrastive explanations by the loss's highest and lowest point in a ball (the SCORPIO paper, arXiv 2009.04923)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from soatfast.attacks import PGD
from soatfast.attacks.base import Model
from soatfast.explain.explanation import Explanation, Role
from soatfast.gradients.checks import check_batch
from soatfast.gradients.engine import Name
from soatfast.gradients.oracle import Mode
from soatfast.gradients.outputs import Forward, Output
from soatfast.gradients.passes import Passes, passes_of
from soatfast.ops.arguments import as_column, check_fields, check_radius, check_steps


@dataclass(frozen=True)
class Contrast:
    """What :class:`ContrastivePair` found for B samples.

    negative, positive: the pertinent negatives and positives; labels are the true ones. correct: (B,) bool, whether
    the model is right about x. predictions, confidence: (B,) what it says of x. passes: of all of it.
    """

    negative: Explanation = field(repr=False)
    positive: Explanation = field(repr=False)
    correct: Tensor
    predictions: Tensor = field(repr=False)
    confidence: Tensor = field(repr=False)
    passes: Passes


def roles(correct: bool) -> tuple[Role, Role]:
    """The roles of (delta_max, delta_min). Raising the true label's loss argues against a right prediction only.

    This is what the paper's text says and its Figure 6 shows; a small table of it has the two exchanged.

    >>> roles(True), roles(False)
    (('negative', 'positive'), ('positive', 'negative'))
    """
    return ("negative", "positive") if correct else ("positive", "negative")


@dataclass(frozen=True, kw_only=True)
class ContrastivePair:
    r"""delta_max = argmax_{||d||_2 <= eps} l(x + d, y) and delta_min = argmin, by PGD (equations 13 and 14).

    y is the true label. Where the model is right, delta_max is the pertinent negative (what would change its mind) and
    delta_min the pertinent positive; where it is wrong the two change places. A pertinent negative is a success if the
    prediction becomes another one, a positive if it stays.

    Args:
        eps: radius of the L2 ball, in input units; a number or a tensor of shape () or (B,).
        steps: PGD steps, from x itself.
        step_size: None means 2.5 eps / steps.
        best: keep the strongest point of the path, not the last one: of those with the wanted prediction (delta_max:
            another one than y, delta_min: y), else of all, that of the highest (lowest) loss.
        bounds, mode, engine, output, forward: as of :class:`~soatfast.attacks.Attack`.

    Defaults: eps 4 and 20 steps of the paper; it gives no step size.

    Passes: 2 steps forwards and backwards to the input, 3 forwards for the predictions, and 2 more with ``best``.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.eye(2)
    >>> x, y = torch.tensor([[0.6, 0.4], [0.6, 0.4]]), torch.tensor([0, 1])  # right, wrong
    >>> found = ContrastivePair(eps=0.2)(model, x, y)
    >>> found.negative.delta.mul(100).round().tolist(), found.negative.predictions.tolist()
    ([[-14.0, 14.0], [-14.0, 14.0]], [1, 1])
    """

    eps: float | Tensor = 4.0
    steps: int = 20
    step_size: float | Tensor | None = None
    best: bool = True
    bounds: tuple[float, float] = (0.0, 1.0)
    mode: Mode = "eval"
    engine: Name = "eager"
    output: Output = None
    forward: Forward | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_radius(self.eps)
        check_steps(self.steps)
        self._attack(False)  # checks the rest

    def _attack(self, targeted: bool) -> PGD:
        return PGD(
            eps=self.eps,
            p=2,
            steps=self.steps,
            step_size=self.step_size,
            random_start=False,
            best=self.best,
            targeted=targeted,
            bounds=self.bounds,
            mode=self.mode,
            engine=self.engine,
            output=self.output,
            forward=self.forward,
        )

    def __call__(self, model: Model, x: Tensor, y: Tensor) -> Contrast:
        """Explain the predictions for x (B, ...) with true labels y (B,).

        Raises:
            TypeError: x is no floating tensor, y no integer tensor.
            ValueError: lengths or devices differ, x has NaN or lies outside the bounds, labels are out of range,
                the model returns something else than (B, K). On CUDA the checks of values are device assertions.
        """
        check_batch(x, y, self.bounds)
        highest, lowest = self._attack(False)(model, x, y), self._attack(True)(model, x, y)
        clean, *shown = self._logits(model, (x, highest, lowest), y)
        predictions = clean.argmax(1)
        correct = predictions == y
        passes = self.passes(len(x))

        def explanation(role: Role) -> Explanation:
            raised = correct if roles(True)[0] == role else ~correct  # whether delta_max has this role
            image = torch.where(as_column(raised, x), highest, lowest)
            logits = torch.where(raised[:, None], shown[0], shown[1])
            said = logits.argmax(1)
            success = (said == predictions) == (role == "positive")
            return Explanation(role, y, image - x.detach(), image, said, _confidence(logits), success, passes)

        return Contrast(
            explanation("negative"), explanation("positive"), correct, predictions, _confidence(clean), passes
        )

    def _logits(self, model: Model, points: tuple[Tensor, ...], y: Tensor) -> list[Tensor]:
        found = []
        with self._attack(False).oracle(model) as oracle:
            for point in points:
                oracle.loss(point, y)
                assert oracle.logits is not None
                found.append(oracle.logits)
        return found

    def passes(self, batch: int = 1) -> Passes:
        """Passes of one call on a batch of this size, as :func:`~soatfast.gradients.count_passes` counts them."""
        return 2 * self._attack(False).passes(batch) + passes_of(batch, forward=3)


def _confidence(logits: Tensor) -> Tensor:
    return logits.float().softmax(1).amax(1)
