"""Adversarial training with torchattacks, as its tutorials show it."""

import torch.nn as nn
import torchattacks
from setting import EPS, begin

criterion = nn.CrossEntropyLoss()


def step(model, optimizer, images, labels):
    atk = torchattacks.PGD(model, eps=EPS, alpha=2 / 255, steps=7)
    adv_images = atk(images, labels)
    model.train()
    outputs = model(adv_images)
    cost = criterion(outputs, labels)
    optimizer.zero_grad()
    cost.backward()
    optimizer.step()
    return cost.item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for images, labels in batches:
        print(f"cost {step(model, optimizer, images, labels):.4f}")
