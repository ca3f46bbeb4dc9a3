"""Per-sample objectives that an attack raises: cross-entropy, (negative) margin and DLR, stable for confident samples.

Each is a differentiable function (logits (B, K), labels (B,)) -> (B,), and has a closed form of its derivative by the
logits, so that an attack pass needs no autograd graph behind them. Any callable can stand in for a name: it gets what
the model returned, of any shape (B, ...), and y as it is, of any dtype and shape, and returns (B,).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from soatfast import ops
from soatfast.gradients.outputs import as_classes

Objective = Callable[[Tensor, Tensor], Tensor]
Named = Literal["ce", "margin", "dlr"]


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    r"""-log softmax(z)_y per sample, as log(1 + sum_{j != y} exp(z_j - z_y)).

    In float32 1 - p_y rounds to 0 for a confident sample while the other p_j survive; this form keeps the value and
    the gradient (dl/dz_y = -sum_{j != y} p_j) exact there. Twice differentiable.

    >>> import torch
    >>> cross_entropy(torch.tensor([[40.0, 0.0, 0.0]]), torch.tensor([0]))
    tensor([8.4967e-18])
    """
    label = _column(y)
    # The least number and not -inf for y: where all others are -inf, logsumexp would have a gradient of NaN.
    others = (logits - logits.gather(1, label)).scatter(1, label, torch.finfo(logits.dtype).min)
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


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    r"""(max_{j != y} z_j - z_y) / (z_(1) - z_(3) + 1e-12) per sample, z_(1) >= z_(2) >= ... the sorted logits; K >= 3.

    The difference of logits ratio (Croce and Hein 2020, eq. 6): it does not change where all logits are shifted or
    multiplied by one number, so that no sample is too confident for a gradient.

    >>> import torch
    >>> dlr(torch.tensor([[3.0, 1.0, 0.5], [30.0, 10.0, 5.0]]), torch.tensor([0, 0]))
    tensor([-0.8000, -0.8000])
    """
    top = _largest(logits, 3, "dlr").values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_towards(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    r"""(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2 + 1e-12) per sample, t the target (B,); K >= 4 (eq. 7).

    >>> import torch
    >>> dlr_towards(torch.tensor([[3.0, 1.0, 0.5, 0.5]]), torch.tensor([0]), torch.tensor([2]))
    tensor([-1.])
    """
    top = _largest(logits, 4, "the targeted dlr").values
    gap = logits.gather(1, _column(target)) - logits.gather(1, _column(y))
    return gap.squeeze(1) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def kl_divergence(clean: Tensor, adversarial: Tensor) -> Tensor:
    r"""KL(softmax(clean) || softmax(adversarial)) per sample, of logits (B, K), in nats; differentiable in both.

    sum_k p_k (log p_k - log q_k) in logarithms, so that a p_k that underflows to 0 gives a value and gradients of 0,
    and so does a class whose logit is -inf in both. (B,) and (B, 1) are one sigmoid unit's. (B, K, H, W), as of a
    segmentation: the mean over the positions.

    >>> import torch
    >>> kl_divergence(torch.tensor([[0.0, 0.0], [200.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 0.0]]))
    tensor([0.0000, 0.6931])
    """
    p, q = as_classes(clean).log_softmax(1), as_classes(adversarial).log_softmax(1)
    return _by_class(p.exp(), p - q)


def soft_cross_entropy(clean: Tensor, adversarial: Tensor) -> Tensor:
    """-sum_k softmax(clean)_k log softmax(adversarial)_k per sample, of logits as :func:`kl_divergence` takes them.

    >>> import torch
    >>> soft_cross_entropy(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[0.0, -torch.inf]]))
    tensor([0.])
    """
    return _by_class(as_classes(clean).softmax(1), -as_classes(adversarial).log_softmax(1))


class DivergenceFrom:
    r"""KL(softmax(clean) || softmax(.)) as an objective, clean held fixed; whatever y is.

    Its derivative by logits (B, K) is softmax(logits) - softmax(clean).
    """

    def __init__(self, clean: Tensor):
        with torch.inference_mode(False), torch.no_grad():  # autograd saves it, also under a caller's inference mode
            self._target = as_classes(clean).softmax(1)
            self._absent = self._target == 0
            self._slope = -self._target  # by log softmax
            self._by_autograd = _autograd_derivative(self)

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        q = as_classes(logits).log_softmax(1).masked_fill(self._absent, 0.0)
        return _over_positions(F.kl_div(q, self._target, reduction="none").sum(1))

    def derivative(self, logits: Tensor, y: Tensor) -> Tensor:
        like = self._target
        if logits.dim() != 2 or logits.shape != like.shape or logits.dtype != like.dtype:  # a sigmoid unit, positions
            return self._by_autograd(logits, y)
        # By autograd's own kernel: near clean, where the divergence is least, rounding decides many signs.
        return torch.ops.aten._log_softmax_backward_data(self._slope, logits.log_softmax(1), 1, logits.dtype)


def _by_class(p: Tensor, values: Tensor) -> Tensor:
    """sum_k p_k values_k (B,), 0 where p_k is 0; the mean over further dimensions."""
    return _over_positions((p * values.masked_fill(p == 0, 0.0)).sum(1))


def _over_positions(terms: Tensor) -> Tensor:
    return terms if terms.dim() == 1 else terms.flatten(1).mean(1)


def _column(y: Tensor) -> Tensor:
    """Labels of any integer type as an index (B, 1)."""
    return y.long().unsqueeze(1)


def _margin_derivative(logits: Tensor, y: Tensor) -> Tensor:
    label = _column(y)
    rival = logits.scatter(1, label, -torch.inf).argmax(1, keepdim=True)
    return torch.zeros_like(logits).scatter_(1, rival, 1.0).scatter_(1, label, -1.0)


def _dlr_derivative(logits: Tensor, y: Tensor) -> Tensor:
    top = _largest(logits, 3, "dlr")
    width = (top.values[:, :1] - top.values[:, 2:]) + 1e-12
    ratio = margin(logits, y).unsqueeze(1) / width
    ends = torch.cat((-ratio, ratio), 1) / width
    return (_margin_derivative(logits, y) / width).scatter_add_(1, top.indices[:, ::2], ends)


def _largest(logits: Tensor, count: int, name: str) -> torch.return_types.topk:
    if logits.shape[1] < count:
        raise ValueError(f'{name} compares {count} logits, and the model has {logits.shape[1]}: take "ce" or "margin"')
    return logits.topk(count, 1)


def _autograd_derivative(function: Objective) -> Objective:
    def derivative(logits: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            value = function(leaf, y)
            check_values(value, len(logits))
            (slope,) = torch.autograd.grad(value.sum(), leaf)
        return slope

    return derivative


def check_values(value: object, samples: int) -> None:
    """Raise ValueError unless an objective returned (samples,)."""
    if not isinstance(value, Tensor) or value.shape != (samples,):
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"objective must return shape ({samples},), one value a sample, got {came}")


OBJECTIVES: dict[str, Objective] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}
_DERIVATIVES: dict[str, Objective] = {
    "ce": ops.cross_entropy_derivative,
    "margin": _margin_derivative,
    "dlr": _dlr_derivative,
}


def resolve(objective: str | Objective) -> tuple[Objective, Objective]:
    """The objective (logits, y) -> (B,) as a differentiable function, and its derivative by the logits (B, K)."""
    if isinstance(objective, str) and objective in OBJECTIVES:
        return OBJECTIVES[objective], _DERIVATIVES[objective]
    if isinstance(objective, DivergenceFrom):
        return objective, objective.derivative
    if callable(objective) and not isinstance(objective, str):
        return objective, _autograd_derivative(objective)
    raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)} or a callable, got {objective!r}")
