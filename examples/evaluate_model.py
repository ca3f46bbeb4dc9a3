"""Evaluate a model of your own under several attacks, print a table, and go on after an interruption.

Run it with ``python examples/evaluate_model.py --folder runs/mine``. A second call reads the finished records.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

import soatfast as sf


def trained(loader: DataLoader[tuple[torch.Tensor, ...]]) -> nn.Module:
    """Any module that maps (B, ...) in [0, 1] to logits (B, K) will do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(5):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def main(folder: Path, samples: int) -> None:
    data = sf.train.load_data("digits8").first(test=samples)
    model = trained(DataLoader(data.train, batch_size=32, shuffle=True))
    attacks = {
        "fgsm": sf.FGSM(eps=0.05),
        "pgd20": sf.PGD(eps=0.05, steps=20),
        "frank-wolfe": sf.FrankWolfe(eps=0.05, steps=5),
        "simba": sf.SimBA(eps=0.05, step_size=0.05, steps=64),  # asks for predictions only, no gradients
    }
    tests = DataLoader(data.test, batch_size=128)
    result = sf.evaluate.suite(model, tests, attacks, folder=folder)
    print(result.table().to_markdown())
    again = sf.evaluate.suite(model, tests, attacks, folder=folder)  # no attack is run again
    print(f"worst case: accuracy {result.worst_case:.3f}, resumed {again.worst_case:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/evaluate_model"))
    parser.add_argument("--samples", type=int, default=256)
    arguments = parser.parse_args()
    main(arguments.folder, arguments.samples)
