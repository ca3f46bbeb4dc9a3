"""Adversarial training of a Hugging Face vision transformer: a small module takes the logits out of its answer.

Run it with ``pip install transformers; python examples/transformers_vit.py``. The weights are random: no download.
"""

import torch
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

import soatfast as sf


class Logits(nn.Module):
    """Images in [0, 1] to logits (B, K); the normalisation belongs inside, so that eps is in units of pixels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.normalize = sf.train.Normalize([0.5] * 3, [0.5] * 3)
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(self.normalize(x)).logits
        return logits


torch.manual_seed(0)
config = ViTConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    image_size=16, patch_size=4, num_labels=2,
)  # fmt: skip
model = Logits(ViTForImageClassification(config))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
attack = sf.PGD(eps=8 / 255, steps=3)
criterion = sf.AdversarialTraining(attack)

y = torch.arange(64) % 2  # the second class has a brighter upper half
x = 0.5 * torch.rand(64, 3, 16, 16)
x[y == 1, :, :8] += 0.3
for _ in range(30):
    optimizer.zero_grad()
    loss = criterion(model, x, y)
    loss.backward()
    optimizer.step()
print(f"loss after 30 steps: {loss.item():.3f}")

result = sf.evaluate.suite(model, [(x, y)], {"pgd10": sf.PGD(eps=8 / 255, steps=10)})
print(f"accuracy: clean {result['clean'].accuracy:.3f}, PGD-10 {result['pgd10'].accuracy:.3f}")
