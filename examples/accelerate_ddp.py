"""A loss under Accelerate: the prepared model goes into the loss as it is, on one process or several.

Run it with ``torchrun --nproc_per_node 2 examples/accelerate_ddp.py``. Attacks bypass the wrapper, so that ranks meet
only in the training backward.
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

import soatfast as sf


def main() -> None:
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(accelerator.process_index)  # each rank draws random starts of its own; DDP shares the weights
    data = sf.train.load_data("digits8")
    model = sf.train.SmallCNN(in_channels=1, size=8)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loader = DataLoader(data.train, batch_size=32, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    criterion = sf.TRADES(eps=0.1, steps=3)

    for epoch in range(3):
        for x, y in loader:
            optimizer.zero_grad()
            loss = criterion(model, x, y)
            accelerator.backward(loss)
            optimizer.step()
        mean = accelerator.reduce(loss.detach(), reduction="mean")
        accelerator.print(f"epoch {epoch + 1}: last loss {mean.item():.3f}")

    weights = torch.cat([p.detach().flatten() for p in model.parameters()]).double().sum().reshape(1)
    sums = accelerator.gather(weights)
    accelerator.print(f"processes: {accelerator.num_processes}, same weights: {bool((sums == sums[0]).all())}")
    if accelerator.is_main_process:
        tests = DataLoader(data.test, batch_size=256)
        result = sf.evaluate.accuracy(accelerator.unwrap_model(model), tests, sf.PGD(eps=0.1, steps=10))
        print(f"accuracy under PGD-10: {result.accuracy:.3f}")
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    main()
