"""Free adversarial training (Shafahi et al. 2019): each batch several times, its perturbation carried along."""

import torch
import torch.nn.functional as F
from setting import EPS, begin

REPEATS = 4
global_noise_data = torch.zeros(0)


def step(model, optimizer, x, y):
    global global_noise_data
    if len(global_noise_data) < len(x):
        global_noise_data = torch.zeros_like(x)
    model.train()
    noise_batch = global_noise_data[0 : len(x)].clone().requires_grad_()
    in1 = x + noise_batch
    in1.clamp_(0, 1.0)
    loss = F.cross_entropy(model(in1), y)
    optimizer.zero_grad()
    loss.backward()
    pert = EPS * torch.sign(noise_batch.grad)
    global_noise_data[0 : len(x)] += pert.data
    global_noise_data.clamp_(-EPS, EPS)
    optimizer.step()
    return loss.item()


if __name__ == "__main__":
    model, optimizer, batches = begin(__doc__)
    for x, y in batches:
        for _ in range(REPEATS):
            loss = step(model, optimizer, x, y)
        print(f"loss {loss:.4f}")
