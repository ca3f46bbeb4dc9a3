"""Training losses as scripts usually write them, in plain PyTorch: (model, x, y) -> scalar.

Each is the same function of model and batch as soatfast's loss of that name, with the passes of the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UsualLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    leaf = x.detach().requires_grad_()
    (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    return g


def climbed(x_adv: Tensor, g: Tensor, x: Tensor, eps: float, alpha: float) -> Tensor:
    """A step of PGD."""
    x_adv = x_adv.detach() + alpha * g.sign()
    return torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)


def pgd_training(eps: float, alpha: float, steps: int) -> UsualLoss:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
        for _ in range(steps):
            x_adv = climbed(x_adv, gradient(model, x_adv, y), x, eps, alpha)
        return F.cross_entropy(model(x_adv), y)

    return loss


def torchattacks_training(eps: float, alpha: float, steps: int) -> UsualLoss:
    import torchattacks

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x_adv = torchattacks.PGD(model, eps=eps, alpha=alpha, steps=steps)(x, y)
        return F.cross_entropy(model(x_adv), y)

    return loss


def scorpio(eps: float, strength: float = 1.05, h: float = 1.05, steps: int = 3) -> UsualLoss:
    """Algorithm 1 of arXiv 2009.04923, forward Euler, Linf: N + 3 forwards, N + 1 backwards to the input."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        g0 = gradient(model, x, y)
        v = eps * g0 / g0.abs().amax((1, 2, 3), keepdim=True)
        for k in range(steps):
            g = g0 + (gradient(model, x + h * v, y) - g0) / h
            gamma = 2 / (k + 2)
            v = (1 - gamma) * v + gamma * eps * g.sign()
        clean = F.cross_entropy(model(x), y)
        return clean + strength * (F.cross_entropy(model((x + v).clamp(0, 1)), y) - clean)

    return loss


def trades(eps: float, alpha: float, steps: int, beta: float = 6.0) -> UsualLoss:
    """After the authors' trades.py: 2K + 3 forwards, as every step computes the clean prediction anew."""

    def divergence(model: nn.Module, x_adv: Tensor, x: Tensor) -> Tensor:
        return F.kl_div(model(x_adv).log_softmax(1), model(x).softmax(1), reduction="sum")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        training = model.training
        model.eval()
        x_adv = x + 0.001 * torch.randn_like(x)
        for _ in range(steps):
            leaf = x_adv.detach().requires_grad_()
            (g,) = torch.autograd.grad(divergence(model, leaf, x), leaf)
            x_adv = climbed(leaf, g, x, eps, alpha)
        model.train(training)
        return F.cross_entropy(model(x), y) + beta * divergence(model, x_adv, x) / len(x)

    return loss


def mart(eps: float, alpha: float, steps: int, beta: float = 5.0) -> UsualLoss:
    """After the authors' mart.py, with its small numbers inside the logarithms: K + 2 forwards."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        training = model.training
        model.eval()
        x_adv = x + 0.001 * torch.randn_like(x)
        for _ in range(steps):
            x_adv = climbed(x_adv, gradient(model, x_adv, y), x, eps, alpha)
        model.train(training)
        logits = model(x_adv)
        clean, adversarial = model(x).softmax(1), logits.softmax(1)
        first, second = adversarial.topk(2).indices.unbind(1)
        rival = torch.where(first == y, second, first)
        boosted = F.cross_entropy(logits, y) + F.nll_loss((1.0001 - adversarial + 1e-12).log(), rival)
        apart = F.kl_div((adversarial + 1e-12).log(), clean, reduction="none").sum(1)
        wrong = 1.0000001 - clean.gather(1, y.unsqueeze(1)).squeeze(1)
        return boosted + beta * (apart * wrong).mean()

    return loss


def cure(strength: float = 4.0, h: float = 3.0) -> UsualLoss:
    """After the authors' CURE.py: 5 forwards, two of them for the direction z, and one that nothing uses.

    Their gradients are of the mean loss, here of the sum, so that the penalty does not shrink with the batch.
    """

    def total(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="sum")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        training = model.training
        outputs = model(x)
        model.eval()
        leaf = x.detach().requires_grad_()
        model(leaf)
        total(model, leaf, y).backward()
        assert leaf.grad is not None
        z = leaf.grad.sign()
        z = h * (z + 1e-7) / (z.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-7)
        model.zero_grad()
        difference = total(model, leaf + z, y) - total(model, leaf, y)
        (apart,) = torch.autograd.grad(difference, leaf, create_graph=True)
        model.train(training)
        return F.cross_entropy(outputs, y) + strength * apart.flatten(1).norm(dim=1).mean()

    return loss
