"""Small models with known behaviour, and slow plain-PyTorch oracles, for tests of the engine and the attacks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from soatfast.gradients.objectives import cross_entropy


def relu_net(dtype=torch.float64, shape=(1, 4, 4), classes=4, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    size = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 20), nn.ReLU(), nn.Linear(20, classes)).to(dtype)


def smooth_net(dtype=torch.float64, shape=(1, 4, 4), classes=4, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    size = math.prod(shape)
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 20), nn.Softplus(), nn.Linear(20, classes)).to(dtype)


def linear_net(dtype=torch.float64, shape=(1, 4, 4), classes=2, seed=0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)).to(dtype)


def conv_net(dtype=torch.float32, channels=3, classes=5, seed=0) -> nn.Module:
    """Has batch norm and dropout: everything that train and eval mode change."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, classes),
    ).to(dtype)


def batch(n=6, shape=(1, 4, 4), classes=4, dtype=torch.float64, seed=1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *shape, generator=generator, dtype=dtype)
    return x, torch.randint(0, classes, (n,), generator=generator)


def quadratic(d=6, seed=0, indefinite=True):
    """(objective, H, b): l(x) = b.x + 1/2 x.Hx, for an Identity model of 2-D input (B, d)."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(d, d, generator=generator, dtype=torch.float64)
    h = a + a.T if indefinite else a @ a.T
    b = torch.randn(d, generator=generator, dtype=torch.float64)

    def objective(z: Tensor, y: Tensor) -> Tensor:
        return z @ b.to(z) + 0.5 * ((z @ h.to(z)) * z).sum(1)

    return objective, h, b


def slow_gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Input gradients one sample at a time, by plain cross-entropy."""
    rows = []
    for i in range(len(x)):
        leaf = x[i : i + 1].clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y[i : i + 1]), leaf)
        rows.append(g)
    return torch.cat(rows)


def slow_lmo(g: Tensor, p: float, eps: float) -> Tensor:
    """The linear maximisation oracle of one flat sample, straight from Hoelder's inequality."""
    if not g.abs().max() > 0:
        return torch.zeros_like(g)
    if p == math.inf:
        return eps * g.sign()
    if p == 1:
        s = torch.zeros_like(g)
        s[g.abs().argmax()] = eps * g[g.abs().argmax()].sign()
        return s
    q = p / (p - 1)
    direction = g.sign() * g.abs() ** (q - 1)
    return eps * direction / direction.norm(p=p)


def slow_frank_wolfe(gradient, x: Tensor, p: float, eps: float, steps: int, h: float, init="scaled") -> Tensor:
    """The quadratic attack of one flat sample; ``gradient(x)``, forward Euler with step h, returns v (not clamped)."""
    g0 = gradient(x)
    v = {"scaled": eps * g0 / g0.norm(p=p), "lmo": slow_lmo(g0, p, eps), "raw": g0}[init]
    for k in range(steps):
        gamma = 2 / (k + 2)
        g = g0 + (gradient(x + h * v) - g0) / h
        v = (1 - gamma) * v + gamma * slow_lmo(g, p, eps)
    return v


def hessians(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B, D, D) of the cross-entropy by the input, by autograd, a sample at a time."""
    rows = []
    for i in range(len(x)):
        matrix = torch.autograd.functional.hessian(
            lambda z, i=i: cross_entropy(model(z), y[i : i + 1])[0], x[i : i + 1]
        )
        rows.append(matrix.reshape(x[0].numel(), -1))
    return torch.stack(rows)
