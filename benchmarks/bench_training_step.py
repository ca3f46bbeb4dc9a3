"""Whole training steps: loss, backward, optimiser, on the demo's network and batch size."""

import torch
import torch.nn.functional as F

from benchmarks.harness import race
from soatfast.attacks import PGD, FrankWolfe
from soatfast.losses import SCORPIO, AdversarialTraining, CrossEntropy
from soatfast.memory import PerturbationMemory
from soatfast.train.models import SmallCNN


def step(loss, x, y):
    torch.manual_seed(0)
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters())

    def run():
        optimizer.zero_grad()
        loss(model, x, y).backward()
        optimizer.step()

    return run


def usual_pgd_training(model, x, y, eps=0.2, alpha=0.05, steps=10):
    """Adversarial training as it is usually written by hand."""
    x_adv = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        x_adv.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(x_adv), y), x_adv)
        x_adv = x_adv.detach() + alpha * g.sign()
        x_adv = (x + (x_adv - x).clamp(-eps, eps)).clamp(0, 1)
    return F.cross_entropy(model(x_adv), y)


def bench_training_step(benchmark):
    x, y = torch.rand(100, 1, 28, 28), torch.randint(0, 10, (100,))
    index = torch.randperm(4000)[:100]

    def replay(steps):
        memory = PerturbationMemory(4000, (1, 28, 28), torch.int8)
        loss = AdversarialTraining(FrankWolfe(eps=0.2, steps=steps, mode="keep"), memory=memory)
        return lambda model, x, y: loss(model, x, y, index)

    losses = {
        "FW replay, 1 step": replay(1),
        "FW replay, 2 steps": replay(2),
        "SCORPIO FE(3)": SCORPIO(eps=0.2, mode="keep"),
        "SCORPIO FE(3), clean pass not shared": SCORPIO(eps=0.2, mode="keep", recycle=False),
        "PGD-10": AdversarialTraining(attack=PGD(eps=0.2, mode="keep")),
        "PGD-10 written by hand": usual_pgd_training,
        "PGD-1": AdversarialTraining(attack=PGD(eps=0.2, steps=1, mode="keep")),
        "PGD-4": AdversarialTraining(attack=PGD(eps=0.2, steps=4, mode="keep")),
        "standard": CrossEntropy(),
    }
    candidates = {name: step(loss, x, y) for name, loss in losses.items()}
    race(benchmark, "training step SmallCNN batch 100", candidates, rounds=40, checked=False)
