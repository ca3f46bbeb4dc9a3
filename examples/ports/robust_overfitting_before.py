"""PGD-10 training, as in "Overfitting in adversarially robust deep learning" (Rice, Wong, Kolter 2020)."""

import torch
import torch.nn.functional as F
from setting import EPS, begin

ALPHA, ITERATIONS = 2 / 255, 10


def attack_pgd(model, x, y, epsilon, alpha, attack_iters, restarts):
    max_loss = torch.zeros(y.shape[0])
    max_delta = torch.zeros_like(x)
    for _ in range(restarts):
        delta = torch.zeros_like(x).uniform_(-epsilon, epsilon)
        delta = torch.clamp(delta, 0 - x, 1 - x)
        delta.requires_grad = True
        for _ in range(attack_iters):
            output = model(x + delta)
            loss = F.cross_entropy(output, y)
            loss.backward()
            grad = delta.grad.detach()
            d = torch.clamp(delta + alpha * torch.sign(grad), min=-epsilon, max=epsilon)
            delta.data = torch.clamp(d, 0 - x, 1 - x)
            delta.grad.zero_()
        all_loss = F.cross_entropy(model(x + delta), y, reduction="none")
        max_delta[all_loss >= max_loss] = delta.detach()[all_loss >= max_loss]
        max_loss = torch.max(max_loss, all_loss)
    return max_delta


def step(model, optimizer, x, y):
    model.train()
    delta = attack_pgd(model, x, y, EPS, ALPHA, ITERATIONS, 1).detach()
    robust_output = model(torch.clamp(x + delta, 0, 1))
    robust_loss = F.cross_entropy(robust_output, y)
    optimizer.zero_grad()
    robust_loss.backward()
    optimizer.step()
    return robust_loss.item(), (robust_output.max(1)[1] == y).sum().item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for x, y in batches:
        print("loss {:.4f}, right {}".format(*step(model, optimizer, x, y)))
