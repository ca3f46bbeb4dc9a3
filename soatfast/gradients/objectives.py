"""Per-sample objectives that an attack raises: cross-entropy and (negative) margin, stable for confident samples.

Each is a differentiable function (logits (B, K), labels (B,)) -> (B,), and has a closed form of its derivative by the
logits, so that an attack pass needs no autograd graph behind them. Any callable of that form can stand in for a name.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from soatfast import ops

Objective = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r"""-log softmax(z)_y per sample, as log(1 + sum_{j != y} exp(z_j - z_y)).

    In float32 1 - p_y rounds to 0 for a confident sample while the other p_j survive; this form keeps the value and
    the gradient (dl/dz_y = -sum_{j != y} p_j) exact there. Twice differentiable.

    >>> import torch
    >>> cross_entropy(torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([0]))
    tensor([8.4967e-18])
    """
    label = _column(y)
    others = (logits - logits.gather(1, label)).scatter(1, label, -torch.inf)
    return F.softplus(others.logsumexp(1), threshold=50)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    r"""max_{j != y} z_j - z_y per sample: positive exactly when the prediction is not y. Ties: the lowest class.

    >>> import torch
    >>> margin(torch.tensor([[3.0, 1.0, 0.5]]), torch.tensor([0]))
    tensor([-2.])
    """
    label = _column(y)
    rival = logits.detach().scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    return (logits.gather(1, rival) - logits.gather(1, label)).squeeze(1)


def kl_divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    r"""KL(softmax(clean) || softmax(adversarial)) per sample, of logits (B, K), in nats; differentiable in both.

    sum_k p_k (log p_k - log q_k) in logarithms, so that a p_k that underflows to 0 gives a value and gradients of 0.

    >>> import torch
    >>> kl_divergence(torch.tensor([[0.0, 0.0], [200.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    tensor([0.0000, 0.6931])
    """
    p, q = clean.log_softmax(1), adversarial.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)


def _column(y: Tensor) -> Tensor:
    """Labels of any integer type as an index (B, 1)."""
    return y.long().unsqueeze(1)


def _margin_derivative(logits: Tensor, y: Tensor) -> Tensor:
    label = _column(y)
    rival = logits.scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(logits).scatter_(1, rival, 1.0).scatter_(1, label, -1.0)


def _autograd_derivative(function: Objective) -> Objective:
    def derivative(logits: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            value = function(leaf, y)
            if value.shape != y.shape:
                raise ValueError(f"objective must return shape {tuple(y.shape)}, got {tuple(value.shape)}")
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return slope

    return derivative


OBJECTIVES: dict[str, Objective] = {"ce": cross_entropy, "margin": margin}
_DERIVATIVES: dict[str, Objective] = {"ce": ops.cross_entropy_derivative, "margin": _margin_derivative}


def resolve(objective: str | Objective) -> tuple[Objective, Objective]:
    """The objective (logits, y) -> (B,) as a differentiable function, and its derivative by the logits (B, K)."""
    if isinstance(objective, str) and objective in OBJECTIVES:
        return OBJECTIVES[objective], _DERIVATIVES[objective]
    if callable(objective) and not isinstance(objective, str):
        return objective, _autograd_derivative(objective)
    raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)} or a callable, got {objective!r}")
