"""FGSM training with a random start, as in "Fast is better than free" (Wong, Rice, Kolter 2020)."""

import torch
import torch.nn.functional as F
from setting import EPS, begin

ALPHA = 10 / 255


def clamp(x, lower, upper):
    return torch.max(torch.min(x, upper), lower)


def step(model, optimizer, x, y):
    model.train()
    delta = torch.zeros_like(x).uniform_(-EPS, EPS)
    delta.data = clamp(delta, 0 - x, 1 - x)
    delta.requires_grad = True
    output = model(x + delta)
    loss = F.cross_entropy(output, y)
    loss.backward()
    grad = delta.grad.detach()
    delta.data = torch.clamp(delta + ALPHA * torch.sign(grad), -EPS, EPS)
    delta.data = clamp(delta, 0 - x, 1 - x)
    delta = delta.detach()
    output = model(x + delta)
    loss = F.cross_entropy(output, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), (output.max(1)[1] == y).sum().item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for x, y in batches:
        print("loss {:.4f}, right {}".format(*step(model, optimizer, x, y)))
