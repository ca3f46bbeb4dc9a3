"""Adversarial training of a timm network with batch norm, whose running statistics the attack leaves alone.

Run it with ``pip install timm; python examples/timm_network.py``. The weights are random: no download.
"""

import timm
import torch
from torch import nn

import soatfast as sf

torch.manual_seed(0)
network = timm.create_model("resnet10t", pretrained=False, num_classes=2, in_chans=3)
normalize = sf.train.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
model = nn.Sequential(normalize, network)  # images in [0, 1]; the normalisation is inside
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
attack = sf.PGD(eps=4 / 255, steps=3)

y = torch.arange(32) % 2  # the second class has a brighter upper half
x = 0.5 * torch.rand(32, 3, 32, 32)
x[y == 1, :, :16] += 0.3

before = {name: buffer.clone() for name, buffer in model.named_buffers()}
x_adv = attack(model, x, y)
kept = all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
print(f"batch-norm statistics are as before the attack: {kept}, training mode: {model.training}")

criterion = sf.AdversarialTraining(attack)
for _ in range(15):
    optimizer.zero_grad()
    loss = criterion(model, x, y)
    loss.backward()
    optimizer.step()
print(f"loss after 15 steps: {loss.item():.3f}")

result = sf.evaluate.suite(model, [(x, y)], {"pgd10": sf.PGD(eps=4 / 255, steps=10)})
print(f"accuracy: clean {result['clean'].accuracy:.3f}, PGD-10 {result['pgd10'].accuracy:.3f}")
