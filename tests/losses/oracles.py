"""Slow float64 twins for losses with a regulariser: one sample at a time, plain PyTorch, no soatfast."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Known(nn.Module):
    """A two-class model whose cross-entropy for the label 0 is exactly l(x) > 0."""

    def forward(self, x: Tensor) -> Tensor:
        loss = self.loss(x)
        return torch.stack([torch.zeros_like(loss), loss.expm1().log()], 1)


class Quadratic(Known):
    """l(x) = 9 + <b, x> + 1/2 <x, M x>, M symmetric, with b and M to be trained."""

    def __init__(self, d: int = 5, seed: int = 0, scale: float = 0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        root = scale * torch.randn(d, d, generator=generator, dtype=torch.float64)
        self.m = nn.Parameter(root + root.T)
        self.b = nn.Parameter(torch.randn(d, generator=generator, dtype=torch.float64))

    def loss(self, x: Tensor) -> Tensor:
        return 9 + x @ self.b + 0.5 * ((x @ self.m) * x).sum(1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.b + x @ (self.m + self.m.T) / 2


def linear_loss(d: int = 5, seed: int = 0) -> Quadratic:
    model = Quadratic(d, seed)
    model.m.data.zero_()
    return model


def points(n: int = 6, d: int = 5, seed: int = 1) -> tuple[Tensor, Tensor]:
    """A batch for a Known model."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, generator=generator, dtype=torch.float64), torch.zeros(n, dtype=torch.long)


def loss_and_gradient(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(l, g) of one sample x (1, ...), with their graph to the parameters."""
    leaf = x.detach().clone().requires_grad_()
    loss = F.cross_entropy(model(leaf), y)
    (g,) = torch.autograd.grad(loss, leaf, create_graph=True)
    return loss, g


def one_by_one(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]


def parameter_gradients(model: nn.Module, scalar: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(scalar, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def assert_same(model: nn.Module, actual: Tensor, expected: Tensor, **tolerance: float) -> None:
    """Two scalars, and their gradients by the parameters."""
    torch.testing.assert_close(actual, expected, **tolerance)
    pairs = zip(parameter_gradients(model, actual), parameter_gradients(model, expected), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, **tolerance)
