"""Curricula: the shares of its full radius eps and finite-difference step h that a loss gets in each epoch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from soatfast.losses import Loss

CURE_H_RAMP = (0.1 / 3, 0.4 / 3, 0.8 / 3, 1.8 / 3)
"""Of the authors of CURE, whose h ends at 3."""


def linear(epoch: int, epochs: int) -> float:
    """Share in epoch `epoch` (0-based) of a ramp over so many epochs: 1/epochs, 2/epochs, .. 1, 1, ..

    >>> [linear(epoch, 4) for epoch in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return min(1.0, (epoch + 1) / max(1, epochs))


def listed(epoch: int, shares: Sequence[float]) -> float:
    """Share in epoch `epoch` (0-based) of a ramp that is written out; 1 after its end.

    >>> [listed(epoch, (0.1, 0.5)) for epoch in range(3)]
    [0.1, 0.5, 1.0]
    """
    return shares[epoch] if epoch < len(shares) else 1.0


def eps_of(loss: Loss) -> float | Tensor | None:
    """The loss's own eps, or that of its attack; None for a loss without one."""
    return getattr(loss, "eps", getattr(getattr(loss, "attack", None), "eps", None))


def scaled(loss: Loss, eps_share: float, h_share: float = 1.0) -> Loss:
    """The loss with these shares of its eps and of its h; what it does not have, or leaves to a default, stays."""
    eps, h = eps_of(loss), getattr(loss, "h", None)
    if eps is not None and eps_share != 1:
        loss = loss.with_eps(eps * eps_share)
    if h is not None and h_share != 1:
        loss = loss.with_h(h * h_share)
    return loss
