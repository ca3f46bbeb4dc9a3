"""`attack_pgd` with the signature of fast_adversarial's scripts (Wong, Rice and Kolter, ICLR 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from soatfast.attacks import PGD
from soatfast.gradients.checks import check_batch
from soatfast.ops.arguments import Bounds, as_column, check_steps


def attack_pgd(
    model: nn.Module,
    X: Tensor,
    y: Tensor,
    epsilon: float | Tensor,
    alpha: float | Tensor,
    attack_iters: int,
    restarts: int,
    opt: Any = None,
    *,
    bounds: Bounds = (0.0, 1.0),
) -> Tensor:
    r"""The perturbation (B, ...) with the highest cross-entropy of ``restarts`` attempts: ``model(X + delta)``.

    An attempt is Linf PGD from a uniform start, in which a sample that is misclassified stays where it is:
    ``PGD(early_stop=True, mode="keep")``. A script that has the original in its utils needs ``from
    soatfast.compat.fast_adversarial import attack_pgd`` instead. It gets what it had, up to rounding, under the same
    seed. Of attempts with equal loss the last one counts, as in the original.

    The model is asked in the mode that the caller left it in. Misclassified samples leave the passes, but for a model
    with batch norm in train mode. Different from the original: no parameter gradients are computed, running statistics
    are not moved, and X outside the bounds or with NaN raises. For CIFAR-10 the original draws channel i from
    (-eps_i, eps_0), which leaves the ball; here it is (-eps_i, eps_i).

    Args:
        model: maps (B, ...) to logits (B, K).
        X: images (B, ...) within ``bounds``.
        y: labels (B,).
        epsilon, alpha: radius and step, numbers or, for images normalised outside the model, tensors (C, 1, 1).
        attack_iters, restarts: at least 1.
        opt: not used; the original scales its loss for it.
        bounds: the original's lower_limit and upper_limit: numbers or tensors (C, 1, 1). Bind the script's by
            ``functools.partial(attack_pgd, bounds=(lower_limit, upper_limit))``.

    Raises:
        TypeError, ValueError: an argument is wrong, as the message says.

    Passes: at most restarts (attack_iters + 1) forwards and restarts attack_iters backwards to the input.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> X = torch.rand(3, 1, 2, 2)
    >>> delta = attack_pgd(model, X, torch.tensor([0, 1, 0]), 0.3, 0.01, 40, 2)
    >>> bool(delta.abs().max() <= 0.3 + 1e-6), delta.requires_grad
    (True, False)
    """
    check_steps(attack_iters, "attack_iters")
    check_steps(restarts, "restarts")
    channels = isinstance(epsilon, Tensor) and epsilon.dim() == 3
    attack = _OfficialPGD(
        eps=epsilon,
        step_size=alpha,
        steps=attack_iters,
        bounds=bounds,
        early_stop=True,
        mode="keep",
        by_channel=channels and X.dim() == 4,
    )
    check_batch(X, y, attack.bounds)
    strongest = torch.zeros_like(X, requires_grad=False)
    if len(X) == 0:
        return strongest
    highest = torch.zeros(len(X), dtype=X.dtype if X.dtype == torch.float64 else torch.float32, device=X.device)
    with attack.oracle(model) as oracle:
        for _ in range(restarts):
            x_adv = attack.run(oracle, X, y)
            loss = oracle.loss(x_adv, y).to(highest)
            strongest = torch.where(as_column(loss >= highest, X), x_adv - X.detach(), strongest)
            highest = torch.maximum(highest, loss)
    return strongest


@dataclass(frozen=True, kw_only=True, eq=False)
class _OfficialPGD(PGD):
    """PGD whose start draws its random numbers as the scripts do: a channel after the other where eps has channels."""

    by_channel: bool = False

    def _start(self, x: Tensor) -> Tensor:
        if not self.by_channel:
            return super()._start(x)
        noise = torch.empty_like(x)
        for channel in range(x.shape[1]):
            noise[:, channel].uniform_(-1, 1)
        return (x + self.eps * self._free(noise)).clamp(*self.bounds)  # type: ignore[arg-type]
