"""Adversarial training (Madry et al. 2018) with any attack."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from torch import Tensor, nn

from soatfast.attacks import PGD, Attack
from soatfast.gradients.passes import Passes, passes_of
from soatfast.losses.base import MemoryLoss, Step, attack_passes, attacked, check_memory
from soatfast.memory.store import PerturbationMemory


@dataclass(frozen=True, kw_only=True, eq=False)
class AdversarialTraining(MemoryLoss):
    r"""Training on adversarial examples only: mean_i l_i(attack(x)_i), l the cross-entropy or ``objective``.

    Args:
        attack: any attack of :mod:`soatfast.attacks`. Default PGD(10) at Linf 8/255. It raises ``objective`` as well,
            unless its own is another than "ce"; output and forward are the attack's where they are not given.
        memory: with it, each sample's perturbation goes on from where its last visit, an epoch ago, left it, so that
            one or two steps train as ten do: FrankWolfe(steps=1) or PGD(steps=1), and ``loss(model, x, y, index)``.

    Passes: the attack's (with a memory one forward and backward to the input a step), plus 1 forward and 1 backward to
    the parameters.

    >>> import torch
    >>> from soatfast.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = AdversarialTraining(attack=PGD(eps=0.1, steps=7))
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().backward_input, loss.passes().backward_parameters
    (7, 1)
    >>> loss = AdversarialTraining(PGD(eps=0.1, steps=7), return_output=True)  # for the training accuracy
    >>> value, output = loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]))
    >>> output.shape, output.requires_grad
    (torch.Size([3, 2]), False)
    >>> from soatfast.attacks import FrankWolfe
    >>> from soatfast.memory import PerturbationMemory
    >>> memory = PerturbationMemory(1000, (1, 2, 2), torch.int8)
    >>> loss = AdversarialTraining(FrankWolfe(eps=0.1, steps=1), memory=memory)
    >>> index = torch.tensor([17, 4, 999])
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0]), index).backward()
    >>> loss.passes().backward_input, memory.visits[17].item()
    (1, 1)
    """

    attack: Attack = field(default_factory=PGD, kw_only=False)
    memory: PerturbationMemory | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attack, Attack):
            raise TypeError(f"attack must be one of soatfast.attacks, got {type(self.attack).__name__}")
        for name in ("output", "forward"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(self.attack, name))
        check_memory(self.memory, self.attack)

    def _step_of(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None, moves: Tensor | None = None
    ) -> Step:
        x_adv = attacked(self._inner, self.memory, model, x, y, index, moves)
        return self._trained(model, x_adv, y)

    @property
    def _inner(self) -> Attack:
        """The attack, asking the model as this loss does."""
        asked = self._asked
        if self.attack.objective != "ce":
            del asked["objective"]
        changed = {name: value for name, value in asked.items() if getattr(self.attack, name) is not value}
        return dataclasses.replace(self.attack, **changed) if changed else self.attack

    def passes(self, batch: int = 1) -> Passes:
        return attack_passes(self.attack, self.memory, batch) + passes_of(batch, forward=1, backward_parameters=1)

    def with_eps(self, eps: float | Tensor) -> AdversarialTraining:
        return dataclasses.replace(self, attack=self.attack.with_eps(eps))

    def with_steps(self, steps: int) -> AdversarialTraining:
        return dataclasses.replace(self, attack=self.attack.with_steps(steps))
