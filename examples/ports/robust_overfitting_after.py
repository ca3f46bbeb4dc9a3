"""PGD-10 training, as in "Overfitting in adversarially robust deep learning" (Rice, Wong, Kolter 2020)."""

import torch.nn.functional as F
from setting import EPS, begin

import soatfast as sf

ALPHA, ITERATIONS = 2 / 255, 10
attack = sf.PGD(eps=EPS, step_size=ALPHA, steps=ITERATIONS, mode="train")


def step(model, optimizer, x, y):
    model.train()
    robust_output = model(attack(model, x, y))
    robust_loss = F.cross_entropy(robust_output, y)
    optimizer.zero_grad()
    robust_loss.backward()
    optimizer.step()
    return robust_loss.item(), (robust_output.max(1)[1] == y).sum().item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for x, y in batches:
        print("loss {:.4f}, right {}".format(*step(model, optimizer, x, y)))
