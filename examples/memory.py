"""Training with a memory: each sample's perturbation is kept from epoch to epoch, so one attack step is enough.

Random crops and flips belong in ``IndexedDataset``, so that the perturbation can follow its image.
Run it with ``python examples/memory.py --epochs 30``; it needs scikit-learn.
"""

import argparse

import torch
from torch.utils.data import DataLoader

import soatfast as sf


def main(epochs: int) -> None:
    torch.manual_seed(0)
    data = sf.train.load_data("digits8")
    augment = sf.CropFlip(padding=1, flip=False)  # a mirrored digit is another digit
    train = sf.train.IndexedDataset(data.train, augment)  # yields (x, y, index, moves)
    memory = sf.PerturbationMemory(len(train), data.shape, torch.int8, augment=augment)  # one byte a pixel
    criterion = sf.AdversarialTraining(sf.FrankWolfe(eps=0.1, steps=1), memory=memory)

    model = sf.train.SmallCNN(in_channels=1, size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for epoch in range(epochs):
        for x, y, index, moves in DataLoader(train, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            loss = criterion(model, x, y, index, moves)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: last loss {loss.item():.3f}, visits of a sample {int(memory.visits.max())}")

    passes = criterion.passes()
    print(f"passes of a training step: {passes.forward} forwards, {passes.backward_input} to the input")
    robust = sf.evaluate.accuracy(model, DataLoader(data.test, batch_size=256), sf.PGD(eps=0.1, steps=20))
    print(f"accuracy under PGD-20: {robust.accuracy:.3f}; the memory takes {memory.nbytes} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=15)
    main(parser.parse_args().epochs)
