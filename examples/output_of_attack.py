"""Keep a script's own loss and its log of training accuracy: attack the batch, then train on it as before.

Run it with ``python examples/output_of_attack.py``. Label smoothing and the count of hits stay what they were.
"""

import argparse

import torch
from torch import nn
from torch.utils.data import DataLoader

import soatfast as sf


def main(epochs: int) -> None:
    torch.manual_seed(0)
    data = sf.train.load_data("digits8")
    loader = DataLoader(data.train, batch_size=64, shuffle=True)
    model = sf.train.SmallCNN(in_channels=1, size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)  # the script's own
    attack = sf.PGD(eps=0.1, steps=4)  # line one

    for epoch in range(epochs):
        hits = seen = 0
        for x, y in loader:
            output = model(attack(model, x, y))  # line two; it was output = model(x)
            loss = criterion(output, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            hits += int((output.argmax(1) == y).sum())
            seen += len(y)
        print(f"epoch {epoch + 1}: last loss {loss.item():.3f}, training accuracy under attack {hits / seen:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    main(parser.parse_args().epochs)
