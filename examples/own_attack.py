"""An attack that soatfast does not have, written in fifteen lines and used like any other.

Run it with ``python examples/own_attack.py``. The base class brings the ball, the box, the checks, modes and engines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import soatfast as sf


@dataclass(frozen=True, kw_only=True)
class SignedNoise(sf.Attack):
    """Gradient steps with noise: x <- project(x + eps / 2 sgn(g + sigma |g| N(0, I)))."""

    steps: int = 10
    sigma: float = 1.0

    def _perturb(self, oracle: sf.InputGradient, x: Tensor, y: Tensor, g0: Tensor | None) -> Tensor:
        x_adv = x
        for _ in range(self.steps):
            g = oracle.gradient(x_adv, y)  # (B, ...), each row its sample's own gradient
            g = g + self.sigma * g.abs() * torch.randn_like(g)
            x_adv = sf.ops.pgd_step(x_adv, g, x, self.p, self.eps, self.eps / 2, bounds=self.bounds)
        return x_adv

    def passes(self, batch: int = 1) -> sf.Passes:
        return sf.Passes(self.steps, self.steps, 0, self.steps * batch, self.steps * batch, 0)


torch.manual_seed(0)
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
x = torch.rand(64, 1, 8, 8)
y = model(x).argmax(1)
attack = SignedNoise(eps=0.05, steps=5)

with sf.count_passes(model) as counted:
    x_adv = attack(model, x, y)
print(f"passes as stated: {counted.total() == attack.passes(len(x))}; largest change {(x_adv - x).abs().max():.4f}")

attacks = {"fgsm": sf.FGSM(eps=0.05), "signed noise": attack, "pgd20": sf.PGD(eps=0.05, steps=20)}
result = sf.evaluate.suite(model, DataLoader(TensorDataset(x, y), batch_size=32), attacks)
print(result.table().to_markdown())
print(f"accuracy under the new attack: {result['signed noise'].accuracy:.3f}")

sf.AdversarialTraining(attack)(model, x, y).backward()  # and a training loss with it
