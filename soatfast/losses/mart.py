"""MART (Wang et al., ICLR 2020): adversarial training that presses on what the model gets wrong without any attack."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soatfast.attacks import NearPGD
from soatfast.attacks.base import Model, check_noise
from soatfast.gradients.checks import check_batch, check_labels
from soatfast.gradients.engine import Name
from soatfast.gradients.objectives import cross_entropy, kl_divergence
from soatfast.gradients.oracle import Mode
from soatfast.gradients.outputs import as_classes
from soatfast.gradients.passes import Passes
from soatfast.losses.base import MemoryLoss, Step, attack_passes, attacked, check_memory, fields_of, mean
from soatfast.memory.store import PerturbationMemory
from soatfast.ops.arguments import Bounds, check_number


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r"""BCE(p, y) = -log p_y - log(1 - max_{k != y} p_k) per sample, p = softmax(logits) of shape (B, K).

    With r the strongest wrong class (ties: the lowest), 1 - p_r is the sum of the other probabilities, so that
    -log(1 - p_r) = softplus(z_r - logsumexp_{j != r} z_j): exact also where p_r rounds to 1.

    >>> import torch
    >>> boosted_cross_entropy(torch.tensor([[0.0, 0.0], [0.0, 50.0]]), torch.tensor([0, 0]))
    tensor([  1.3863, 100.0000])
    """
    return cross_entropy(logits, y) + _confidence_elsewhere(logits, y)


def _confidence_elsewhere(logits: Tensor, y: Tensor) -> Tensor:
    """-log(1 - max_{k != y} p_k) (B,)."""
    rival = logits.detach().scatter(1, y.long().unsqueeze(1), -torch.inf).argmax(1, keepdim=True)
    others = logits.scatter(1, rival, -torch.inf).logsumexp(1)
    return F.softplus(logits.gather(1, rival).squeeze(1) - others, threshold=50)


@dataclass(frozen=True, kw_only=True, eq=False)
class MART(MemoryLoss):
    r"""Adversarial training that weighs samples the model is unsure of more; x' is the PGD example of x.

        mean_i [ BCE(p(x'_i), y_i) + beta KL( p(x_i) || p(x'_i) ) (1 - p(x_i)_{y_i}) ]
        BCE(q, y) = -log q_y - log(1 - max_{k != y} q_k)

    KL in nats over the classes; beta is the paper's lambda. x' raises
    the cross-entropy (:class:`~soatfast.attacks.NearPGD`, a start of 0.001 N(0, I) as in the authors' code) and carries
    no gradient; the gradient of the loss flows through p(x), p(x') and the weight. (The paper's loss and Algorithm 1.)
    The authors' code adds 1e-12 to 1e-4 inside the logarithms; here they are exact and need nothing.

    Args:
        eps, p, bounds, steps, noise, generator: of the attack; p is inf or 2.
        beta: weight of the divergence, >= 0.
        step_size: None means the paper's 0.007 at Linf 0.031 and 10 steps, in proportion to eps / steps; 2 eps / steps
            for L2 (the choice of TRADES; MART itself has Linf only).
        mode: of the attack: "eval" (the authors'), "train" or "keep". The loss itself takes the caller's mode.
        engine: of the attack's passes; the loss's are the caller's.
        memory: with it x' is sought from the sample's perturbation of its last visit, ``loss(model, x, y, index)``: one
            or two steps then serve. step_size None means eps / (steps + 1).

    Defaults: the authors' CIFAR-10 script: eps = 0.031, 10 steps of 0.007, beta = 5.

    Raises:
        TypeError, ValueError: a field or the batch is wrong, as the message says; see Attack for the batch.

    Passes: K forwards and backwards to the input, then 2 forwards and 1 backward to the parameters.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = MART(eps=0.1)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (12, 10, 1)
    >>> from soatfast.memory import PerturbationMemory
    >>> loss = MART(eps=0.1, steps=1, memory=PerturbationMemory(1000, (1, 2, 2), torch.int8))
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), torch.tensor([17, 4, 999])).backward()
    >>> loss.passes().forward, loss.memory.visits[17].item()
    (3, 1)
    """

    eps: float | Tensor = 0.031
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    steps: int = 10
    step_size: float | Tensor | None = None
    noise: float | Tensor = 0.001
    beta: float = 5.0
    mode: Mode = "eval"
    engine: Name = "eager"
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)
    memory: PerturbationMemory | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.beta, "beta", above=False)
        check_noise(self.noise, "noise")
        check_memory(self.memory, self.attack)  # making the attack checks the rest

    @property
    def attack(self) -> NearPGD:
        """The attack that gives x'."""
        return fields_of(NearPGD, self)

    def _step_of(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None, moves: Tensor | None = None
    ) -> Step:
        check_batch(x, y, self.bounds)  # labels, whatever the objective
        x_adv = attacked(self.attack, self.memory, model, x, y, index, moves)
        clean = self._logits(model, x, y)
        adversarial = self._logits(model, x_adv, y)
        wrong = -torch.expm1(-cross_entropy(as_classes(clean), y))  # 1 - p_y, without cancellation
        boosted = self._values(adversarial, y) + _confidence_elsewhere(as_classes(adversarial), y)
        return mean(boosted + self.beta * wrong * kl_divergence(clean, adversarial)), adversarial

    def _logits(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        logits = super()._logits(model, x, y)
        if as_classes(logits).dim() != 2:
            raise ValueError(f"MART weighs by the class of y and needs logits (B, K), got {tuple(logits.shape)}")
        check_labels(y, as_classes(logits).shape[1])
        return logits

    def passes(self, batch: int = 1) -> Passes:
        both = Passes(2, 0, 1, 2 * batch, 0, 2 * batch)  # one backward() goes through both
        return attack_passes(self.attack, self.memory, batch) + both

    def with_steps(self, steps: int) -> MART:
        """With another number of steps, and the default step size for it."""
        return dataclasses.replace(self, steps=steps, step_size=None)
