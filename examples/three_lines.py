"""Adversarial training in a plain loop: three lines differ from ordinary training, each marked with an arrow.

Run it with ``python examples/three_lines.py`` (``--epochs 20`` for a stronger model); it needs scikit-learn.
"""

import argparse

import torch
from torch.utils.data import DataLoader

import soatfast as sf  # <-- one

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=5)
epochs = parser.parse_args().epochs

torch.manual_seed(0)
data = sf.train.load_data("digits8")  # 1 797 digits of 8 x 8 pixels in [0, 1]
model = sf.train.SmallCNN(in_channels=1, size=8)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
criterion = sf.AdversarialTraining(sf.PGD(eps=0.1, steps=4))  # <-- two; sf.TRADES(eps=0.1) is called alike

for epoch in range(epochs):
    total = 0.0
    for x, y in DataLoader(data.train, batch_size=64, shuffle=True):
        optimizer.zero_grad()
        loss = criterion(model, x, y)  # <-- three; it was F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(y)
    print(f"epoch {epoch + 1}: loss {total / len(data.train):.3f}")  # type: ignore[arg-type]

tests = DataLoader(data.test, batch_size=256)
clean = sf.evaluate.accuracy(model, tests)
robust = sf.evaluate.accuracy(model, tests, sf.PGD(eps=0.1, steps=20))
print(f"accuracy: clean {clean.accuracy:.3f}, PGD-20 {robust.accuracy:.3f}")
