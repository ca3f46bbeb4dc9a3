"""TRADES (Zhang et al. 2019, arXiv 1901.08573): accuracy against the divergence from the clean prediction."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from soatfast.attacks import NearPGD
from soatfast.attacks.base import check_noise
from soatfast.gradients.checks import check_batch
from soatfast.gradients.engine import Name
from soatfast.gradients.objectives import DivergenceFrom, Named, Objective, kl_divergence
from soatfast.gradients.oracle import Mode
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.precision import wide
from soatfast.losses.base import MemoryLoss, Step, attack_passes, attacked, check_memory, fields_of, mean
from soatfast.memory.store import PerturbationMemory
from soatfast.ops.arguments import Bounds, check_number


@dataclass(frozen=True, kw_only=True, eq=False)
class TRADES(MemoryLoss):
    r"""Clean loss plus the largest divergence from the clean prediction in the ball.

        mean_i [ l_i(x) + beta KL( p(x_i) || p(x'_i) ) ],   x' = argmax of KL( p(x) || p(x') ) in the ball

    p = softmax(f), KL in nats over the classes. x' is sought by :class:`~soatfast.attacks.NearPGD` with p(x) fixed,
    computed once; it carries no gradient. In the loss the gradient flows through p(x) and p(x') both. (The paper's
    multi-class objective and Algorithm 1, with beta = 1/lambda and the KL in the direction of the authors' code.)

    With ``mode="keep"`` (the attack sees the model exactly as the training forward does: right for a network without
    batch norm and dropout) the clean forward of the loss gives the attack's p(x) as well.

    Args:
        eps, p, bounds, steps, generator: of the attack; p is inf or 2.
        beta: weight of the divergence, >= 0.
        step_size: None means the paper's, in proportion to eps / steps: 0.007 at Linf 0.031, 2 eps / steps for L2.
        noise: standard deviation of the start around x. It may not be 0: at x' = x the divergence has no gradient.
        mode: of the attack: "eval" (the authors'), "train" or "keep". The loss itself takes the caller's mode.
        engine: of the attack's passes; the loss's are the caller's.
        memory: with it x' is sought from the sample's perturbation of its last visit, ``loss(model, x, y, index)``, as
            ATTA does for TRADES (Zheng et al. 2020): one or two steps then serve. step_size None: eps / (steps + 1).

    Defaults: the paper's CIFAR-10 setting, eps = 0.031, 10 steps of 0.007, beta = 6. For MNIST it has eps = 0.3,
    40 steps of 0.01, beta = 1.

    Raises:
        TypeError, ValueError: a field or the batch is wrong, as the message says; see Attack for the batch.

    Passes: K + 1 forwards and K backwards to the input, then 2 forwards and 1 backward to the parameters: 13 forwards
    at K = 10, where the authors' code makes 2K + 3 = 23. With ``mode="keep"``: K + 2 forwards.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = TRADES(eps=0.1, beta=6.0)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (13, 10, 1)
    >>> from soatfast.memory import PerturbationMemory
    >>> loss = TRADES(eps=0.1, steps=1, memory=PerturbationMemory(1000, (1, 2, 2), torch.int8))
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), torch.tensor([17, 4, 999])).backward()
    >>> loss.passes().forward, loss.memory.visits[17].item()
    (4, 1)
    """

    eps: float | Tensor = 0.031
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    steps: int = 10
    step_size: float | Tensor | None = None
    noise: float | Tensor = 0.001
    beta: float = 6.0
    mode: Mode = "eval"
    engine: Name = "eager"
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)
    memory: PerturbationMemory | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.beta, "beta", above=False)
        check_noise(self.noise, "noise")
        if not isinstance(self.noise, Tensor) and self.noise == 0:
            raise ValueError("noise must be > 0, as the divergence has no gradient at x' = x, got 0")
        check_memory(self.memory, self._attack("ce"))  # making the attack checks the rest

    def _attack(self, objective: Named | Objective) -> NearPGD:
        return fields_of(NearPGD, self, objective=objective)

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        clean: Tensor | None = None,
        index: Tensor | None = None,
        moves: Tensor | None = None,
    ) -> Tensor:
        """The attacked batch x', like x, without gradient. y serves the checks only; index and moves the memory.

        K forwards and backwards to the input, and 1 forward for the logits at x where ``clean`` (B, K) is not given.
        """
        check_batch(x, y, self.bounds, self._labels)
        if len(x) == 0:
            return x.detach().clone()
        if clean is None:
            with self._attack(self.objective).oracle(model) as oracle:
                oracle.loss(x, y)
                clean = oracle.logits
        assert clean is not None
        attack = self._attack(DivergenceFrom(wide(clean.detach())))
        return attacked(attack, self.memory, model, x, y, index, moves)

    def _step_of(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None, moves: Tensor | None = None
    ) -> Step:
        if self.mode == "keep":
            check_batch(x, y, self.bounds, self._labels)
            clean = self._logits(model, x, y)
            x_adv = self.perturb(model, x, y, clean, index, moves)
        else:
            x_adv = self.perturb(model, x, y, None, index, moves)
            clean = self._logits(model, x, y)
        adversarial = self._logits(model, x_adv, y)
        value = mean(self._values(clean, y) + self.beta * kl_divergence(clean, adversarial))
        return value, adversarial

    def passes(self, batch: int = 1) -> Passes:
        target = 0 if self.mode == "keep" else 1
        attack = attack_passes(self._attack("ce"), self.memory, batch) + passes_of(batch, forward=target)
        return attack + Passes(2, 0, 1, 2 * batch, 0, 2 * batch)  # one backward() through both training forwards

    def with_steps(self, steps: int) -> TRADES:
        """With another number of steps, and the default step size for it."""
        return dataclasses.replace(self, steps=steps, step_size=None)
