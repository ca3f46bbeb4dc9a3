"""Attacks on a whole model: against their bare network passes, and against torchattacks.

A bare pass is the least that any attack does: ``autograd.grad`` of the summed cross-entropy by the input, model in eval
mode, nothing else. An attack that costs ten of them has no overhead.
"""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness import race
from soatfast.attacks import PGD, SOAE, FrankWolfe
from soatfast.train.models import ResNet18, SmallCNN


def problem(network: str, batch: int):
    torch.manual_seed(0)
    model = SmallCNN() if network == "SmallCNN" else ResNet18(width=64)
    shape = (1, 28, 28) if network == "SmallCNN" else (3, 32, 32)
    return model.eval(), torch.rand(batch, *shape), torch.randint(0, 10, (batch,))


def bare_passes(model, x, y, passes: int):
    for _ in range(passes):
        leaf = x.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    return g


SIZES = [("SmallCNN", 128), ("SmallCNN", 16), ("ResNet18", 8)]


@pytest.mark.parametrize(("network", "batch"), SIZES)
def bench_pgd(benchmark, network, batch):
    model, x, y = problem(network, batch)
    torchattacks = pytest.importorskip("torchattacks")
    eps, alpha, steps = 0.2, 0.05, 10
    ours = PGD(eps=eps, step_size=alpha, steps=steps, random_start=False)
    theirs = torchattacks.PGD(model, eps=eps, alpha=alpha, steps=steps, random_start=False)
    if benchmark.disabled:
        x, y = x[:2], y[:2]
    # One step: signs of gradients near zero differ between two sums of the same terms, and a deep network turns a few
    # such pixels into other gradients everywhere in the steps that follow.
    one = dataclasses.replace(ours, steps=1)(model, x, y)
    differing = ((one - torchattacks.PGD(model, eps, alpha, 1, random_start=False)(x, y)).abs() > 1e-5).float().mean()
    assert differing < 1e-3, f"{differing:.1%} of the pixels differ from torchattacks after one step"
    candidates = {
        "soatfast": lambda: ours(model, x, y),
        "10 bare passes": lambda: bare_passes(model, x, y, steps),
        "torchattacks": lambda: theirs(x, y),
    }
    rounds = 60 if network == "SmallCNN" else 7
    race(benchmark, f"PGD-10 {network} batch {batch}", candidates, rounds=rounds, checked=False)


@pytest.mark.parametrize("batch", [1, 16, 128, 512])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def bench_between_passes(benchmark, shape, batch):
    """A linear model makes the passes cheap, so that the difference, what lies between them, shows."""
    torch.manual_seed(0)
    torchattacks = pytest.importorskip("torchattacks")
    model = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 10)).eval()
    x, y = torch.rand(batch, *shape), torch.randint(0, 10, (batch,))
    ours = PGD(eps=0.2, step_size=0.05, steps=10, random_start=False)
    theirs = torchattacks.PGD(model, eps=0.2, alpha=0.05, steps=10, random_start=False)
    candidates = {
        "soatfast": lambda: ours(model, x, y),
        "10 bare passes": lambda: bare_passes(model, x, y, 10),
        "torchattacks": lambda: theirs(x, y),
    }
    race(benchmark, f"PGD-10, linear model of {math.prod(shape)} pixels, batch {batch}", candidates, checked=False)


@pytest.mark.parametrize("scheme", ["fe", "cd"])
def bench_frank_wolfe(benchmark, scheme):
    model, x, y = problem("SmallCNN", 128)
    attack = FrankWolfe(eps=0.2, scheme=scheme)
    passes = attack.passes().forward_samples
    candidates = {
        "soatfast": lambda: attack(model, x, y),
        f"{passes} bare passes": lambda: bare_passes(model, x, y, passes),
    }
    race(benchmark, f"FrankWolfe-{scheme} SmallCNN batch 128", candidates, checked=False)


@pytest.mark.parametrize("classes", [2, 10, 100])
def bench_gauss_newton(benchmark, classes):
    """The trust-region step from K - 1 backwards, exact for this network, against m = 10 products of differences."""
    torch.manual_seed(0)
    model, batch = SmallCNN(classes=classes).eval(), 2 if benchmark.disabled else 128
    x, y = torch.rand(batch, 1, 28, 28), torch.randint(0, classes, (batch,))
    exact = SOAE(eps=0.2, variant="tr", steps=1, scheme="gn")
    krylov = SOAE(eps=0.2, variant="tr", steps=1, max_dim=10)
    candidates = {"gauss_newton": lambda: exact(model, x, y), "Krylov, m = 10": lambda: krylov(model, x, y)}
    race(benchmark, f"SOAE-tr SmallCNN of {classes} classes, batch 128", candidates, checked=False)


@pytest.mark.parametrize("variant", ["newton", "tr"])
def bench_soae(benchmark, variant):
    """rtol 0, so that no product is saved: every candidate makes as many passes."""
    model, x, y = problem("SmallCNN", 128)
    attack = SOAE(eps=0.2, variant=variant, steps=1, max_dim=10, rtol=0.0, rcond=0.0)
    passes = attack.passes().forward
    candidates = {
        "soatfast": lambda: attack(model, x, y),
        f"{passes} bare passes": lambda: bare_passes(model, x, y, passes),
    }
    race(benchmark, f"SOAE-{variant} SmallCNN batch 128, m = 10", candidates, checked=False)
