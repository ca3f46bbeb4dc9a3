"""The contrastive explanations method, CEM (Dhurandhar et al. 2018, arXiv 1802.07623)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from soatfast.attacks.base import Model
from soatfast.explain.elastic_net import fista
from soatfast.explain.explanation import Explanation, Role
from soatfast.gradients.checks import check_batch
from soatfast.gradients.objectives import margin
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.outputs import Forward, Output
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import widened
from soatfast.ops.arguments import as_column, check_fields, check_number, check_steps


@dataclass(frozen=True, kw_only=True)
class _CEM:
    role: ClassVar[Role]
    kappa: float = 0.0
    beta: float = 0.1
    c: float = 10.0
    searches: int = 9
    steps: int = 1000
    step_size: float = 0.01
    base: float = 0.0
    bounds: tuple[float, float] = (0.0, 1.0)
    mode: Mode = "eval"
    engine: str = "eager"
    output: Output = None
    forward: Forward | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("kappa", "beta"):
            check_number(getattr(self, name), name, above=False)
        for name in ("c", "step_size"):
            check_number(getattr(self, name), name)
        check_steps(self.searches, "searches")
        check_steps(self.steps)
        if len(self.bounds) != 2 or not self.bounds[0] < self.bounds[1]:
            raise ValueError(f"bounds must be (lower, upper) with lower < upper, got {self.bounds!r}")
        if not self.bounds[0] <= self.base <= self.bounds[1]:
            raise ValueError(f"base must lie in bounds {self.bounds}, got {self.base!r}")
        self.oracle(torch.nn.Identity())  # these have one place where they are checked

    def oracle(self, model: Model) -> InputGradient:
        return InputGradient(
            model, self._hinge, self.mode, self.engine, output=self.output, forward=self.forward, classes=True
        )

    def __call__(self, model: Model, x: Tensor, y: Tensor | None = None) -> Explanation:
        """Explain x (B, ...), images in ``bounds``: why the class y (B,), by default the one that the model predicts.

        Raises:
            TypeError: x is no floating tensor, y no integer tensor.
            ValueError: lengths or devices differ, x has NaN or lies outside the bounds, labels are out of range,
                the model returns something else than (B, K). On CUDA the checks of values are device assertions.
        """
        label: Any = y
        if y is None and isinstance(x, Tensor) and x.dim():
            label = x.new_zeros(len(x), dtype=torch.long)
        check_batch(x, label, self.bounds)
        with self.oracle(model) as oracle, widened(oracle, x) as wide:
            oracle.loss(wide, label)
            assert oracle.logits is not None
            label = oracle.logits.argmax(1) if y is None else y
            origin, lower, upper = self._space(wide)
            best = self._search(oracle, origin, lower, upper, label)
        return Explanation(
            self.role,
            label,
            best.delta.to(x.dtype),
            (origin + best.delta).clamp(*self.bounds).to(x.dtype),
            best.predictions,
            best.confidence,
            best.success,
            self.passes(len(x)),
        )

    def _search(self, oracle: InputGradient, origin: Tensor, lower: Tensor, upper: Tensor, y: Tensor) -> _Best:
        """FISTA for each weight c of the loss: ten times it until one succeeds, then halving between the two."""
        c = torch.full((len(origin),), float(self.c), dtype=origin.dtype, device=origin.device)
        low, high = torch.zeros_like(c), torch.full_like(c, math.inf)
        start = torch.zeros_like(origin)
        best = _Best(start)
        for _ in range(self.searches):
            found = torch.zeros_like(best.success)

            def offer(delta: Tensor, found: Tensor = found) -> None:
                assert oracle.logits is not None
                success = self._succeeds(oracle.logits, y)
                best.offer(delta, oracle.logits, success, self.beta)
                found |= success

            def gradient(delta: Tensor, c: Tensor = c) -> Tensor:
                slope = oracle.gradient(self._image(origin, delta), y)
                offer(delta)
                return as_column(c, delta) * slope

            last = fista(gradient, start, self.steps, self.step_size, self.beta, 1.0, lower, upper)
            oracle.loss(self._image(origin, last), y)
            offer(last)
            high = torch.where(found, torch.minimum(high, c), high)
            low = torch.where(found, low, torch.maximum(low, c))
            c = torch.where(high.isinf(), 10 * c, (low + high) / 2)
        return best

    def _image(self, origin: Tensor, delta: Tensor) -> Tensor:
        return (origin + delta).clamp(*self.bounds)

    def _hinge(self, logits: Tensor, y: Tensor) -> Tensor:
        """What is lowered, beside the elastic net: -kappa where the prediction is as wanted with kappa to spare."""
        wrong = margin(logits, y) if self.role == "positive" else -margin(logits, y)
        return wrong.clamp_min(-self.kappa)

    def _succeeds(self, logits: Tensor, y: Tensor) -> Tensor:
        as_wanted = (logits.argmax(1) == y) == (self.role == "positive")
        return as_wanted & (margin(logits.float(), y).abs() >= self.kappa)

    def _space(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(origin, lower, upper): delta lies between the two, and is added to the origin."""
        raise NotImplementedError

    def passes(self, batch: int = 1) -> Passes:
        """Passes of one call on a batch of this size, as :func:`~soatfast.gradients.count_passes` counts them."""
        return passes_of(batch, forward=1 + self.searches * (self.steps + 1), backward_input=self.searches * self.steps)


class PertinentNegative(_CEM):
    r"""The least that, added to an image, makes the model say another class.

    min_delta c max(z_y - max_{j != y} z_j, -kappa) + beta ||delta||_1 + ||delta||_2^2,  z = f(x + delta),

    where delta only adds: it moves a pixel away from ``base``, inside the box. The weight c is searched for each
    sample; of all points on the way that succeed, the one with the smallest elastic net is kept.

    Args:
        kappa: margin of the logits that the other class is to have.
        beta: weight of the L1 norm. The objective is taken at its word: the threshold of a step a is a beta. CEM's code
            cuts at beta whatever the step, so its 0.1 at steps of 0.01 is sparse as 10 would be here.
        c: first weight of the loss; ten times it while nothing is found, then the middle of failure and success.
        searches: how many weights are tried.
        steps: FISTA's steps for each.
        step_size: of the first step; it falls as sqrt(1 - k / steps).
        base: the value of a pixel that says nothing: 0 for a black background.
        bounds: the box of valid inputs; the model is shown no point outside of it.
        mode, engine, output, forward: as of :class:`~soatfast.attacks.Attack`.

    Defaults: CEM's code (kappa 0, beta 0.1, c 10, 9 searches, 1000 steps of 0.01). Its term gamma ||x - AE(x)||^2 of an
    autoencoder, off by default there, is left out. Where nothing is found delta is 0.

    Passes: 1 + searches (steps + 1) forwards, searches steps backwards to the input. CEM's code makes a forward more in
    each step: here the point where the gradient is taken is the one that is judged.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> model.weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> found = PertinentNegative(steps=100)(model, torch.tensor([[0.5, 0.25]]))
    >>> found.predictions.tolist(), [round(v, 2) for v in found.delta[0].tolist()]
    ([1], [0.0, 0.25])
    """

    role = "negative"

    def _space(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        lower = torch.where(x > self.base, 0, self.bounds[0] - x).clamp_max(0)
        upper = torch.where(x < self.base, 0, self.bounds[1] - x).clamp_min(0)
        return x, lower, upper


class PertinentPositive(_CEM):
    r"""The least of an image that, alone on a background of ``base``, keeps the model's class.

    min_delta c max(max_{j != y} z_j - z_y, -kappa) + beta ||delta||_1 + ||delta||_2^2,  z = f(base + delta),

    where each entry of delta lies between 0 and x - base. Arguments, defaults and passes: as
    :class:`PertinentNegative`. Where the empty image itself is of the class, delta is 0 and a success; where nothing is
    found, 0 as well, and none.

    >>> import torch
    >>> model = torch.nn.Linear(2, 2)
    >>> model.weight.data, model.bias.data = torch.eye(2), torch.tensor([0.0, 0.25])
    >>> found = PertinentPositive(steps=100)(model, torch.tensor([[1.0, 0.5]]))
    >>> found.predictions.tolist(), [round(v, 2) for v in found.delta[0].tolist()]
    ([0], [0.25, 0.0])
    """

    role = "positive"

    def _space(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        part = x - self.base
        return torch.full_like(x, self.base), part.clamp_max(0), part.clamp_min(0)


class _Best:
    """The explanation with the smallest elastic net of each sample so far, chosen without asking the device."""

    def __init__(self, start: Tensor):
        self.delta = start
        self.net = torch.full((len(start),), math.inf, dtype=start.dtype, device=start.device)
        self.success = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        self._logits: Tensor | None = None

    def offer(self, delta: Tensor, logits: Tensor, success: Tensor, beta: float) -> None:
        flat = delta.flatten(1)
        net = beta * flat.abs().sum(1) + flat.square().sum(1)
        better = success & (net < self.net)
        self.delta = torch.where(as_column(better, delta), delta, self.delta)
        self.net = torch.where(better, net, self.net)
        self.success = self.success | success
        # The first ones are of delta = 0.
        self._logits = logits if self._logits is None else torch.where(better[:, None], logits, self._logits)

    @property
    def predictions(self) -> Tensor:
        assert self._logits is not None
        return self._logits.argmax(1)

    @property
    def confidence(self) -> Tensor:
        assert self._logits is not None
        return self._logits.float().softmax(1).amax(1)
