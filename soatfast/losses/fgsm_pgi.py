"""FGSM-PGI (Jia et al., ECCV 2022, arXiv 2207.08859): one step from the last epoch's perturbation, regularised."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from soatfast.attacks.base import Attack
from soatfast.attacks.region import check_numbers
from soatfast.gradients.checks import check_batch
from soatfast.gradients.passes import Passes
from soatfast.losses.base import MemoryLoss, Step, mean
from soatfast.losses.noise import check_linf, clip, into_box, uniform
from soatfast.memory.store import PerturbationMemory
from soatfast.ops.arguments import Bounds, as_column, check_number, to_multiply


@dataclass(frozen=True, kw_only=True, eq=False)
class FGSMPGI(MemoryLoss):
    r"""Adversarial training with one step from the last epoch's perturbation v, and logits that change little by it.

        mean_i [ l_i(x_i + v'_i) + strength (1/K) ||f(x_i + v'_i) - f(x_i + v_i)||_2^2 ],   f the K logits
        v = the sample's v' of its last visit;   v' = clip(v + step eps sgn(g(x + v)), -eps, eps), and x + v' in the box

    v and v' carry no gradient; both outputs do. At its first visit a sample starts at a random corner, v = +-eps.
    (Paper, FGSM-EP: the prior of the last epoch, and Section 3.3; the authors' code.) FGSM-MEP adds each sample's
    gradient momentum, a second memory as large; it is left out.

    Args:
        memory: keeps each sample's v; ``loss(model, x, y, index)``, and ``moves`` where the data set augments.
        eps: radius of the ball; a number or a tensor of shape () or (B,).
        p: math.inf, the only one.
        bounds: the box of valid inputs.
        step: length of the step in units of eps, > 0.
        strength: lambda, weight of the regulariser, >= 0.
        generator: random numbers of the first corners; on x's device.

    Both passes run in the caller's mode, as one graph needs them to; so running statistics are updated twice a step, as
    the authors do. Defaults: the authors', eps = 8/255, a full step, strength 10.

    Raises:
        TypeError, ValueError: a field, the index or the batch is wrong, as the message says.

    Passes: 2 forwards, 1 backward to the input, and 1 backward to the parameters that goes through both forwards.

    >>> import torch
    >>> from soatfast.memory import PerturbationMemory
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = FGSMPGI(PerturbationMemory(10, (1, 2, 2), torch.int8), eps=0.1)
    >>> loss(model, torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), torch.tensor([7, 3])).backward()
    >>> loss.memory.visits.nonzero().squeeze(1), loss.passes().forward
    (tensor([3, 7]), 2)
    """

    memory: PerturbationMemory = field(compare=False, kw_only=False)
    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    step: float = 1.0
    strength: float = 10.0
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.memory, PerturbationMemory):
            raise TypeError(f"memory must be a PerturbationMemory, got {type(self.memory).__name__}")
        Attack(eps=self.eps, bounds=self.bounds)  # has the checks of these
        check_linf(self)
        check_numbers(self.eps, self.bounds, type(self).__name__)
        check_number(self.step, "step")
        check_number(self.strength, "strength", above=False)

    def _step_of(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None, moves: Tensor | None = None
    ) -> Step:
        check_batch(x, y, self.bounds, self._labels)
        if index is None:
            raise ValueError("with a memory the index of each sample is needed: loss(model, x, y, index)")
        if len(x) == 0:
            return self._trained(model, x, y)
        wide = x.detach() if x.dtype.itemsize > 2 else x.detach().float()
        eps = to_multiply(self.eps, "eps", wide)
        with self.memory.visit(index, x, moves) as visit:
            start = self._start(visit.start(wide, self.eps, self.bounds), wide, eps, index).to(x.dtype)
            start.requires_grad_()
            before = self._logits(model, start, y)
            (g,) = torch.autograd.grad(self._values(before, y).sum(), start, retain_graph=True)
            v = start.detach().to(wide) - wide + self.step * eps * g.to(wide).sign()
            x_adv = into_box(wide + clip(v, eps), self.bounds)
            visit.put(x_adv - wide, math.inf, self.eps)
        after = self._logits(model, x_adv.to(x.dtype), y)
        change = (after - before).square().flatten(1).mean(1)
        return mean(self._values(after, y) + self.strength * change), after

    def _start(self, start: Tensor, x: Tensor, eps: float | Tensor, index: Tensor) -> Tensor:
        """A random corner of the ball for samples that were never visited."""
        new = self.memory.visits[index.to(self.memory.device) - self.memory.first].to(x.device) == 0
        corner = into_box(x + eps * uniform(x, self.generator).sign(), self.bounds)
        return torch.where(as_column(new, x), corner, start)

    def passes(self, batch: int = 1) -> Passes:
        return Passes(2, 1, 1, 2 * batch, batch, 2 * batch)

    def with_eps(self, eps: float | Tensor) -> FGSMPGI:
        return dataclasses.replace(self, eps=eps)
