"""TRADES training (Zhang et al. 2019), its loss as the authors' code computes it."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from setting import EPS, begin


def trades_loss(model, x_natural, y, optimizer, step_size=0.003, epsilon=0.031, perturb_steps=10, beta=1.0):
    criterion_kl = nn.KLDivLoss(reduction="sum")
    model.eval()
    batch_size = len(x_natural)
    x_adv = x_natural.detach() + 0.001 * torch.randn(x_natural.shape)
    for _ in range(perturb_steps):
        x_adv.requires_grad_()
        with torch.enable_grad():
            loss_kl = criterion_kl(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x_natural), dim=1))
        grad = torch.autograd.grad(loss_kl, [x_adv])[0]
        x_adv = x_adv.detach() + step_size * torch.sign(grad.detach())
        x_adv = torch.min(torch.max(x_adv, x_natural - epsilon), x_natural + epsilon)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    model.train()
    x_adv = torch.clamp(x_adv, 0.0, 1.0).detach()
    optimizer.zero_grad()
    logits = model(x_natural)
    loss_natural = F.cross_entropy(logits, y)
    loss_robust = criterion_kl(F.log_softmax(model(x_adv), dim=1), F.softmax(model(x_natural), dim=1)) / batch_size
    return loss_natural + beta * loss_robust


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss = trades_loss(model, x, y, optimizer, step_size=EPS / 4, epsilon=EPS, perturb_steps=10, beta=6.0)
    loss.backward()
    optimizer.step()
    return loss.item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for x, y in batches:
        print(f"loss {step(model, optimizer, x, y):.4f}")
