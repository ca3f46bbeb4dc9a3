"""SCORPIO (Tsiligkaridis and Roberts 2020, arXiv 2009.04923): second-order regularisation by the quadratic attack."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks import FrankWolfe
from soatfast.gradients.checks import check_batch
from soatfast.gradients.engine import Name
from soatfast.gradients.oracle import Mode
from soatfast.gradients.passes import Passes, passes_of
from soatfast.gradients.state import is_sharded
from soatfast.losses.base import MemoryLoss, Step, attack_passes, attacked, check_memory, fields_of
from soatfast.memory.store import PerturbationMemory
from soatfast.ops import Init
from soatfast.ops.arguments import Bounds, check_number
from soatfast.solvers.hessian import Scheme

PAPER = {
    ("cifar10", math.inf, "fe", 3): (1.05, 1.05),
    ("cifar10", math.inf, "fe", 1): (0.95, 1.05),
    ("cifar10", math.inf, "cd", 3): (0.95, 1.15),
    ("cifar10", math.inf, "cd", 1): (0.95, 1.15),
    ("cifar10", 2, "fe", 3): (1.15, 1.05),
    ("cifar10", 2, "fe", 1): (1.15, 1.05),
    ("cifar10", 2, "cd", 3): (0.95, 0.999),
    ("cifar10", 2, "cd", 1): (1.25, 0.999),
    ("svhn", math.inf, "fe", 3): (1.5, 1.25),
    ("svhn", 2, "fe", 3): (1.25, 0.99),
}
"""The paper's (h, r) by data set, norm, scheme and steps (its supplement)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SCORPIO(MemoryLoss):
    r"""Second-order regularisation by the quadratic attack v (:class:`~soatfast.attacks.FrankWolfe`).

        mean_i [ l_i(x) + r (l_i(x + v_i) - l_i(x)) ],   r = strength

    At r = 1 this is adversarial training on v, and the clean loss is not computed. At r > 1 the clean
    loss has the weight 1 - r < 0, as in the paper. v carries no gradient; x + v is clamped to ``bounds``.

    With ``mode="keep"`` (the attack sees the model exactly as the training forward does: right for a network without
    batch norm and dropout) the clean pass is shared: one forward and one backward give l(x), g(x) and the clean
    parameter gradient together. ``recycle=False`` turns that off. A float16 batch is never shared, nor a model under
    FSDP, whose parameters get their gradients in its own backward only. Where autocast runs part of the pass in float16
    the forward alone is shared: the parameters' gradients wait for the GradScaler's scale, and g(x) has a backward of
    its own.

    With a memory (``loss(model, x, y, index)``) v goes on from the sample's last visit by ``steps`` Frank-Wolfe steps
    on the loss itself, as :class:`~soatfast.attacks.FrankWolfe` says; nothing is shared then, as no gradient at x is
    needed.

    Args:
        eps, p, bounds, steps, scheme, h, gamma, init, in_box, tol, mode, engine: of the attack. The training
            forwards, and the clean pass where it is shared, are run as the caller has them.
        strength: r > 0; the paper tunes it in 0.5..1.5.
        recycle: share the clean pass where the mode allows it.
        memory: keep each sample's v from visit to visit.

    Defaults: the paper's CIFAR-10 Linf setting FE(3): eps = 8/255, h = r = 1.05. Its others: :meth:`paper`.

    Passes, FE(N): N+1 forwards and backwards to the input, then 2 forwards and 1 backward to the parameters (1 forward
    at r = 1). Shared: N+2 forwards, N backwards to the input, 2 backwards to the parameters. With ``tol`` these are
    the most. With a memory: N forwards and backwards to the input in place of N+1.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> loss = SCORPIO(eps=0.1, steps=3)
    >>> loss(model, torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 0])).backward()
    >>> loss.passes().forward, loss.passes().backward_input, loss.passes().backward_parameters
    (6, 4, 1)
    """

    eps: float | Tensor = 8 / 255
    p: float = math.inf
    bounds: Bounds = (0.0, 1.0)
    steps: int = 3
    scheme: Scheme = "fe"
    h: float | None = None
    gamma: float | None = None
    init: Init = "scaled"
    in_box: bool | None = None
    tol: float | None = None
    mode: Mode = "eval"
    engine: Name = "eager"
    strength: float = 1.05
    recycle: bool = True
    memory: PerturbationMemory | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self.strength, "strength")
        check_memory(self.memory, self.attack)  # making the attack checks the rest

    @classmethod
    def paper(
        cls, data: str = "cifar10", p: float = math.inf, scheme: Scheme = "fe", steps: int = 3, **fields: Any
    ) -> SCORPIO:
        """The paper's settings for a data set ("cifar10" or "svhn"), norm, scheme and number of steps.

        fields: any other field. eps is the paper's where it is not given: 8/255 for p = inf, 0.5 for p = 2.

        Raises:
            ValueError: the paper has no such setting.

        >>> loss = SCORPIO.paper(p=2)
        >>> loss.eps, loss.h, loss.strength
        (0.5, 1.15, 1.05)
        """
        found = PAPER.get((data, p, scheme, steps))
        if found is None:
            has = ", ".join(f"{d} p = {q:g} {s}({n})" for d, q, s, n in PAPER)
            raise ValueError(f"the paper has no setting for {data!r}, p = {p!r}, {scheme}({steps}); it has {has}")
        ball = {"in_box": False} if p == 2 else {}  # the paper's maximiser knows no box
        given = {"eps": 0.5 if p == 2 else 8 / 255, "h": found[0], "strength": found[1], **ball, **fields}
        return cls(p=p, scheme=scheme, steps=steps, **given)

    @property
    def attack(self) -> FrankWolfe:
        """The quadratic attack that gives v."""
        return fields_of(FrankWolfe, self)

    @property
    def _shares(self) -> bool:
        useful = self.mode == "keep" and self.scheme != "exact" and self.strength != 1
        return self.recycle and useful and self.memory is None

    def _step_of(
        self, model: nn.Module, x: Tensor, y: Tensor, index: Tensor | None = None, moves: Tensor | None = None
    ) -> Step:
        attack = self.attack
        half = x.dtype == torch.float16  # whose derivatives need rescaling
        if not self._shares or len(x) == 0 or half or is_sharded(model):
            x_adv = attacked(attack, self.memory, model, x, y, index, moves)
            adversarial, output = self._trained(model, x_adv, y)
            if self.strength == 1:
                return adversarial, output
            clean, _ = self._trained(model, x, y)
        else:
            check_batch(x, y, self.bounds, self._labels)
            with attack.oracle(model) as oracle:
                total, g0 = oracle.shared(x, y)
                x_adv = attack.run(oracle, x, y, g0)
            clean = total / len(x)
            adversarial, output = self._trained(model, x_adv, y)
        return clean + self.strength * (adversarial - clean), output

    def passes(self, batch: int = 1) -> Passes:
        if self._shares:
            shared = passes_of(batch, forward=1, backward_parameters=1)
            probes = self.attack.passes(batch) + passes_of(batch, forward=1, backward_input=1) * -1
            return shared + probes + passes_of(batch, forward=1, backward_parameters=1)
        trained = 1 if self.strength == 1 else 2
        # One backward() goes back through all training forwards.
        both = Passes(trained, 0, 1, trained * batch, 0, trained * batch)
        return attack_passes(self.attack, self.memory, batch) + both
