"""Count the forward and backward passes of code that knows nothing of soatfast, and compare two ways of one thing.

Run it with ``python examples/count_passes.py``. The hooks stand on the model, so whoever calls it is counted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import soatfast as sf


def usual_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, steps: int) -> Tensor:
    """PGD as many scripts write it: the backward also computes gradients of the weights, and throws them away."""
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        F.cross_entropy(model(x_adv), y).backward()
        assert x_adv.grad is not None
        x_adv = x_adv + eps / 4 * x_adv.grad.sign()
        x_adv = torch.min(torch.max(x_adv, x - eps), x + eps).clamp(0, 1)
    return x_adv.detach()


def main() -> None:
    torch.manual_seed(0)
    model = sf.train.SmallCNN(in_channels=3, size=32)
    x, y = torch.rand(32, 3, 32, 32), torch.randint(10, (32,))
    attack = sf.PGD(eps=8 / 255, steps=10)

    for name in ("usual", "soatfast"):
        with sf.count_passes(model) as counted:
            x_adv = usual_pgd(model, x, y, 8 / 255, 10) if name == "usual" else attack(model, x, y)
        assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6
        print(
            f"{name:9} forwards {counted.forward}, backwards to the input alone {counted.backward_input}, "
            f"backwards that also reach the weights {counted.backward_parameters}"
        )
    print(f"soatfast states them beforehand: {counted.total() == attack.passes(len(x))}")


if __name__ == "__main__":
    main()
