"""SORA (Teymourian et al. 2026, arXiv 2606.00738): one-step adversarial training whose step follows the curvature."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from soatfast import ops
from soatfast.attacks.base import Attack
from soatfast.attacks.region import check_numbers
from soatfast.gradients.checks import check_batch
from soatfast.gradients.oracle import InputGradient, Mode
from soatfast.gradients.passes import Passes
from soatfast.losses.alignment import pert_align
from soatfast.losses.base import Loss, Step, fields_of
from soatfast.losses.noise import into_box, uniform
from soatfast.ops.arguments import Bounds, check_between, check_number, check_radius, to_multiply


class SORAState:
    r"""What SORA carries from one step to the next, and what it shows of the loss's linearity.

        rho = mean_i clip( <d_i, g'_i> / <d_i, g_i>, -1, 1 ),      rho_bar <- decay rho_bar + (1 - decay) rho

    with g the gradient at the random start, d the step's direction and g' the gradient at the end of the step. Both
    figures are 0-d tensors on the training device, so that nothing waits for them:

    Attributes:
        rho: rho_bar, from ``start`` on; 1 means linear.
        pert_align: PertAlign = mean_i cos(g_i, g'_i) of the last step, NaN before the first. A fall foretells
            catastrophic overfitting.

    Args:
        start: of rho_bar, in [-1, 1].
        decay: in [0, 1).

    Defaults: the authors'. A step with gradients that are not finite leaves both figures alone. A sample without a
    gradient counts as 0 in both. Each sample is clipped, not the mean: one with a tiny g then cannot decide rho.
    Each process of a distributed training has its own state; ``soatfast.train`` resumes all with that of rank 0.
    """

    def __init__(self, start: float = 0.99, decay: float = 0.95) -> None:
        for name, value, low in (("start", start, -1), ("decay", decay, 0)):
            check_between(value, name, low, 1)
        if decay == 1:
            raise ValueError("decay must be less than 1, got 1")
        self.start, self.decay = float(start), float(decay)
        self.reset()

    def __repr__(self) -> str:  # the options of a run, which its progress must not change
        return f"SORAState(start={self.start}, decay={self.decay})"

    def reset(self) -> None:
        """Forget all steps."""
        self.rho, self.pert_align = torch.tensor(self.start), torch.tensor(math.nan)

    def state_dict(self) -> dict[str, float]:
        return {"rho": float(self.rho), "pert_align": float(self.pert_align)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rho, self.pert_align = torch.tensor(state["rho"]), torch.tensor(state["pert_align"])

    def to(self, device: torch.device) -> SORAState:
        """Move the figures; nothing where they are there already."""
        self.rho, self.pert_align = self.rho.to(device), self.pert_align.to(device)
        return self

    @torch.no_grad()
    def update(self, g: Tensor, h: Tensor, direction: Tensor) -> None:
        """Take in one step: the gradients (B, ...) of the samples' losses before and after it, and its direction."""
        along = (direction * g).flatten(1).sum(1)
        ratio = (direction * h).flatten(1).sum(1) / torch.where(along > 0, along, 1)
        rho, align = ratio.clamp(-1, 1).mean().to(self.rho), pert_align(g, h).to(self.rho)
        sound = h.isfinite().all() & rho.isfinite()
        self.rho = torch.where(sound, self.decay * self.rho + (1 - self.decay) * rho, self.rho)
        self.pert_align = torch.where(sound, align, self.pert_align)


@dataclass(frozen=True, kw_only=True, eq=False)
class SORA(Loss):
    r"""Adversarial training with one step of adaptive length from a random start: mean_i l_i(x'_i).

        z = clamp(x + eta),   g = g(z),   d = argmax of <g, d> over ||d||_p <= 1  (sgn(g), or g/||g||_2)
        x' = clamp(z + a U d),   a = max_step min(1, gain / (1 - rho_bar)),   U uniform in [0, 1) per entry

    eta is uniform in (-eps, eps) per entry; for p = 2 it has a uniform direction and a radius uniform in (0, eps).
    rho_bar comes from earlier steps (:class:`SORAState`): along d the loss grows by <g, d> a + 1/2 a^2 <d, H d>, which
    is largest at a = a_previous / (1 - rho) for rho < 1. So the step is long while the loss is nearly linear, and short
    where it bends. The gradient at x', which rho needs, is taken from the training backward itself; any factor on the
    loss (accumulation, a GradScaler) is taken out of it. (Re-derived from the paper's maths; the constant ``gain`` in
    the place of a_previous / max_step is the authors'.)

    As the authors do, x' is clamped to ``bounds`` and not to the ball: it can be ``eps + max_step`` away from x.

    Args:
        eps: radius of the random start; a number or a tensor of shape () or (B,).
        p: inf or 2.
        bounds: the box of valid inputs.
        max_step: length of the longest step; None means 2 eps.
        gain: share of max_step that is taken at rho_bar = 0; > 0.
        mode: of the first pass. "keep": as the training forward sees the model, so that g and g' belong to one
            function; "eval" or "train". Running statistics are updated by the training forward alone.
        state: rho_bar and PertAlign.
        generator: random numbers of eta and U; on x's device.

    Defaults: the authors' for CIFAR-10, eps = 8/255, steps up to 2 eps, gain = 0.02, which train in train mode.

    Raises:
        TypeError, ValueError: a field or the batch is wrong, as the message says; see Attack for the batch.

    Passes: 1 forward and 1 backward to the input, then 1 forward and 1 backward to the parameters (and the input).

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = SORA(eps=0.1)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (2, 1, 1)
    >>> round(loss.state.pert_align.item(), 4)  # the gradients of a model of two classes differ in length only
    1.0
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    max_step: float | Tensor | None = None
    gain: float = 0.02
    mode: Mode = "keep"
    state: SORAState = field(default_factory=SORAState, compare=False)
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_numbers(self.eps, self.bounds, "SORA")
        fields_of(Attack, self)  # has the checks of these
        if self.p not in (2, math.inf):
            raise ValueError(f"p must be 2 or math.inf for SORA, got {self.p!r}")
        if self.max_step is not None:
            check_radius(self.max_step, "max_step")
        check_number(self.gain, "gain")
        if not isinstance(self.state, SORAState):
            raise TypeError(f"state must be a SORAState, got {type(self.state).__name__}")

    def _step_of(self, model: nn.Module, x: Tensor, y: Tensor) -> Step:
        check_batch(x, y, self.bounds, self._labels)
        if len(x) == 0:
            return self._trained(model, x, y)
        wide = x.detach() if x.dtype.itemsize > 2 else x.detach().float()
        with InputGradient(model, mode=self.mode, **self._asked) as oracle:
            oracle.input_dtype = x.dtype
            start = self._start(wide)
            g = oracle.gradient(start, y)
            oracle.input_dtype = None
        direction = ops.lmo(g, self.p, 1.0)
        x_adv = self._step(start, direction).to(x.dtype).requires_grad_()
        value, output = self._trained(model, x_adv, y)
        if value.requires_grad:
            factors: list[Tensor] = []
            value.register_hook(factors.append)
            x_adv.register_hook(lambda h: self._update(g, h, direction, factors.pop()))
        return value, output

    def _start(self, x: Tensor) -> Tensor:
        if self.p == math.inf:
            noise = uniform(x, self.generator)
        else:
            radius = torch.empty(len(x), dtype=x.dtype, device=x.device).uniform_(generator=self.generator)
            noise = ops.lmo(torch.empty_like(x).normal_(generator=self.generator), 2, radius)
        return into_box(x + to_multiply(self.eps, "eps", x) * noise, self.bounds)

    def _step(self, start: Tensor, direction: Tensor) -> Tensor:
        share = (self.gain / (1 - self.state.to(start.device).rho)).clamp(max=1.0)  # rho = 1: inf, hence 1
        name = "eps" if self.max_step is None else "max_step"
        longest = to_multiply(2 * self.eps if self.max_step is None else self.max_step, name, start)
        length = torch.empty_like(start).uniform_(generator=self.generator) * longest
        return into_box(start + share.to(start.dtype) * length * direction, self.bounds)

    def _update(self, g: Tensor, h: Tensor, direction: Tensor, factor: Tensor) -> None:
        # The value is the mean of the samples' losses, and backward() began with `factor`.
        self.state.update(g, h.to(g.dtype) * (len(h) / factor.to(g.dtype)), direction)

    def passes(self, batch: int = 1) -> Passes:
        return Passes(2, 1, 1, 2 * batch, batch, batch)

    def with_eps(self, eps: float | Tensor) -> SORA:
        """With another radius and the same state; a given max_step stays as it is."""
        return dataclasses.replace(self, eps=eps)
