"""The Hessian of cross-entropy by the input in its low-rank form J^T S J: second-order problems become exact."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from soatfast import ops
from soatfast.gradients import objectives
from soatfast.gradients.oracle import InputGradient


@dataclass(frozen=True)
class GaussNewton:
    r"""H = J^T S J and g = J^T r of each sample, of rank K - 1 at most.

    J (B, K - 1, D) are the gradients of z_k - z_{K-1}, S (B, K - 1, K - 1) = diag(p) - p p^T without the last class,
    and r (B, K - 1) = p - e_y without it: rows of S and r sum to 0 over all classes, so the last class has no part of
    its own. For a piecewise-linear network in eval mode (ReLU, max pooling, batch norm) this is the exact Hessian
    almost everywhere; for smooth activations it leaves the network's own curvature out.
    """

    jacobian: Tensor
    curvature: Tensor
    slope: Tensor

    def __call__(self, v: Tensor) -> Tensor:
        """H v for v (B, D) or of the input's shape: two products with J, no pass."""
        flat = v.flatten(1).to(self.jacobian.dtype)
        inner = self.curvature @ (self.jacobian @ flat.unsqueeze(2))
        return (self.jacobian.transpose(1, 2) @ inner).squeeze(2).view_as(v).to(v.dtype)

    @property
    def gradient(self) -> Tensor:
        """g (B, D)."""
        return (self.slope.unsqueeze(1) @ self.jacobian).squeeze(1)

    def reduced(self) -> tuple[Tensor, Tensor, Tensor]:
        """(V (B, K - 1, D), T (B, K - 1, K - 1), c (B, K - 1)) with H = V^T T V, g = V^T c and orthonormal rows of V.

        What :mod:`soatfast.solvers.quadratic` solves in K - 1 dimensions; its z is v = V^T z in the input's.
        """
        q, r = torch.linalg.qr(self.jacobian.transpose(1, 2))  # (B, D, k), (B, k, k): J^T = q r
        t = r @ self.curvature @ r.transpose(1, 2)
        return q.transpose(1, 2), t, (r @ self.slope.unsqueeze(2)).squeeze(2)


def gauss_newton(oracle: InputGradient, x: Tensor, y: Tensor) -> GaussNewton:
    r"""The Gauss-Newton form of the cross-entropy's Hessian at x (SOAE's Hessian for ReLU networks).

    One forward and K - 1 backwards to the input, however many products follow: fewer passes than m Krylov steps (1 + m)
    where K - 1 < m, more for many classes. Memory: B (K - 1) D numbers.

    Args:
        oracle: an entered :class:`~soatfast.gradients.InputGradient` with objective "ce". A targeted one lowers the
            loss, so H and g have the opposite sign.
        x: (B, ...) batch.
        y: (B,) labels.

    Raises:
        ValueError: another objective.

    >>> import torch
    >>> model = torch.nn.Linear(3, 2, bias=False)
    >>> x, y = torch.rand(1, 3), torch.tensor([0])
    >>> with InputGradient(model) as oracle:
    ...     form = gauss_newton(oracle, x, y)
    ...     g = oracle.gradient(x, y)
    >>> torch.allclose(form.gradient, g, atol=1e-6), form.jacobian.shape
    (True, torch.Size([1, 1, 3]))
    """
    if oracle.objective is not objectives.cross_entropy:
        raise ValueError('the Gauss-Newton form is of objective "ce"; take scheme "fe", "cd" or "exact" for another')
    logits, jacobian = oracle.jacobian(x, y)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    p = wide.softmax(1)
    slope = ops.cross_entropy_derivative(wide, y)
    # 1 - p_k as the sum of the others: it survives where p_k rounds to 1.
    rest = torch.stack([p[:, [j for j in range(p.shape[1]) if j != k]].sum(1) for k in range(p.shape[1])], 1)
    s = torch.diag_embed(p * rest) - (p.unsqueeze(2) * p.unsqueeze(1)) * (1 - torch.eye(p.shape[1]).to(p))
    s, r = s[:, :-1, :-1], slope[:, :-1]
    rows = jacobian.flatten(2).to(wide.dtype)
    return GaussNewton(rows, oracle.sign * s, oracle.sign * r)
