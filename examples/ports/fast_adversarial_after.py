"""FGSM training with a random start, as in "Fast is better than free" (Wong, Rice, Kolter 2020)."""

import torch.nn.functional as F
from setting import EPS, begin

import soatfast as sf

ALPHA = 10 / 255
attack = sf.PGD(eps=EPS, step_size=ALPHA, steps=1, mode="train")


def step(model, optimizer, x, y):
    model.train()
    output = model(attack(model, x, y))
    loss = F.cross_entropy(output, y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item(), (output.max(1)[1] == y).sum().item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for x, y in batches:
        print("loss {:.4f}, right {}".format(*step(model, optimizer, x, y)))
