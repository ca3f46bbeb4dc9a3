"""How much of its budget each gradient attack spends, on a linear model in a box: ``python -m benchmarks.budget``.

Value: <w, x_adv - x> over its optimum in ball and box (SciPy's linear program for p = 1). Length: that of x_adv - x
over eps. Both are means over 32 samples of 14 x 14 entries, a third at each bound.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.optimize
import torch
from torch import Tensor, nn

from soatfast.attacks.catalogue import ATTACKS
from soatfast.attacks.task import Task

SHAPE = (1, 14, 14)
RADIUS = {1: 8.0, 2: 1.5, math.inf: 0.2}
LEFT_OUT = ("simba", "autoattack")  # no gradient, foreign code


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(math.prod(SHAPE), generator=torch.Generator().manual_seed(1)))

    def forward(self, x: Tensor) -> Tensor:
        z = 0.05 * ((x - 0.5).flatten(1) @ self.w)
        return torch.stack([z, -z], 1)


def optimum(g: Tensor, x: Tensor, p: float, eps: float) -> float:
    """Largest <g, v> of one sample (D,) over ball and box."""
    size, room = g.abs().double().numpy(), torch.where(g > 0, 1 - x, x).double().numpy()
    if p == math.inf:
        return float((size * np.minimum(room, eps)).sum())
    if p == 1:
        bounds = [(0, r) for r in room]
        return -scipy.optimize.linprog(-size, A_ub=np.ones((1, len(size))), b_ub=[eps], bounds=bounds).fun
    t = scipy.optimize.brentq(lambda t: np.linalg.norm(np.minimum(t * size, room)) - eps, 0, 1e6, xtol=1e-14)
    return float((size * np.minimum(t * size, room)).sum())


def main() -> None:
    torch.manual_seed(0)
    model = Linear()
    x = (3 * torch.rand(32, *SHAPE, generator=torch.Generator().manual_seed(3)) - 1).clamp(0, 1)
    y = model(x).argmax(1)
    up = model.w.detach() * (2 * y.unsqueeze(1) - 1)
    pairs = list(zip(up, x.flatten(1), strict=True))
    best = {p: torch.tensor([optimum(*pair, p, eps) for pair in pairs]) for p, eps in RADIUS.items()}
    print("| attack | p = 1: value | length | p = 2: value | length | p = inf: value | length |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in ATTACKS:
        if row.name in LEFT_OUT:
            continue
        cells = []
        for p, eps in RADIUS.items():
            if p not in row.norms:
                cells += ["", ""]
                continue
            v = (row.make(Task(eps, samples=32, shape=SHAPE, p=p, classes=2))(model, x, y) - x).flatten(1)
            cells += [f"{((up * v).sum(1) / best[p]).mean():.2f}", f"{v.norm(p=p, dim=1).mean() / eps:.2f}"]
        print(f"| {row.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
