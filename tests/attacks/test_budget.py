"""Every gradient attack of a fixed radius spends it, on a linear model in a box, and keeps to it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from soatfast import ops
from soatfast.attacks import FGSM, MIFGSM, SOAE, FrankWolfe
from soatfast.attacks.catalogue import ATTACKS
from soatfast.attacks.task import Task
from tests.nets import batch, smooth_net

SHAPE = (1, 14, 14)
RADIUS = {1: 8.0, 2: 1.5, math.inf: 0.2}
NO_GRADIENT, FOREIGN = "simba", "autoattack"
# Length only: they follow the gradient of a changed input or output, or leave once the model is fooled.
ELSEWHERE = ("difgsm", "tifgsm", "jitter", "apgd-ce")
MORE_CLASSES, MINIMAL = ("apgd-dlr", "apgd-t"), ("square", "fab-t")  # undefined here; random search, nearest points

# Least share of the optimum. PGD's random start and sparse steps leave p = 1 with about two thirds: a step of a few
# entries meets the same entries again, after each projection has taken a little back from all.
LEAST = {1: 1 - 1e-5, 2: 0.95, math.inf: 1 - 1e-5}
# Draws of noise and the patches of PI-FGSM++ leave a little.
SPARSE = dict.fromkeys(("pgd40", "pgd20", "pgd20-best", "least-likely"), 0.4) | {"asod": 0.97, "smoothadv": 0.97}
PATCHES = {"pifgsmpp": 0.999}
LEFT_OUT = (NO_GRADIENT, FOREIGN, *MORE_CLASSES, *MINIMAL)
ROWS = [(row, p) for row in ATTACKS for p in row.norms if row.name not in LEFT_OUT]


class Linear(nn.Module):
    """Two logits +-w (x - 1/2)."""

    def __init__(self) -> None:
        super().__init__()
        w = torch.randn(math.prod(SHAPE), generator=torch.Generator().manual_seed(1))
        self.w = nn.Parameter(w)

    def forward(self, x: Tensor) -> Tensor:
        z = 0.05 * ((x - 0.5).flatten(1) @ self.w)
        return torch.stack([z, -z], 1)


def problem() -> tuple[Linear, Tensor, Tensor, Tensor]:
    """(model, x, its labels, what raises their loss (B, D)); a third of the entries lies at each bound."""
    model = Linear()
    x = (3 * torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(3)) - 1).clamp(0, 1)
    y = model(x).argmax(1)
    return model, x, y, model.w.detach() * (2 * y.unsqueeze(1) - 1)


def optimum(g: Tensor, x: Tensor, p: float, eps: float) -> Tensor:
    """The largest <g, v> over ball and box (B,), by the knapsack's dual, and by bisection for p = 2."""
    g, x = g.double(), x.flatten(1).double()
    room = torch.where(g > 0, 1 - x, x)
    size = g.abs()
    if p == math.inf:
        return (size * room.clamp_max(eps)).sum(1)
    if p == 1:  # min over levels of eps level + sum_i room_i max(|g_i| - level, 0), which an entry's |g| attains
        levels = torch.cat([size, torch.zeros(len(g), 1)], 1).unsqueeze(2)  # [B, D + 1, 1]
        dual = eps * levels.squeeze(2) + (room.unsqueeze(1) * (size.unsqueeze(1) - levels).clamp_min(0)).sum(2)
        return dual.amin(1)
    low, high = torch.zeros(len(g), 1).double(), torch.full((len(g), 1), 1e6).double()
    for _ in range(100):
        middle = (low + high) / 2
        outside = torch.minimum(middle * size, room).norm(dim=1, keepdim=True) > eps
        low, high = torch.where(outside, low, middle), torch.where(outside, middle, high)
    return (size * torch.minimum(low * size, room)).sum(1)


@pytest.mark.parametrize(("row", "p"), ROWS, ids=[f"{row.name}-{p}" for row, p in ROWS])
def test_an_attack_spends_its_budget_on_a_linear_model(row, p):
    model, x, y, up = problem()
    eps = RADIUS[p]
    v = (row.make(Task(eps, samples=len(x), shape=SHAPE, p=p, classes=2))(model, x, y) - x).flatten(1)
    share = (up * v).sum(1) / optimum(up, x, p, eps)
    assert (v.norm(p=p, dim=1) <= eps * (1 + 1e-5)).all()
    if row.name in ELSEWHERE:
        return
    least = (SPARSE if p == 1 else PATCHES).get(row.name, LEAST[p])
    assert least <= share.min() and share.max() <= 1 + 1e-5, share


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("variant", ["newton", "tr"])
def test_soaes_raw_step_of_tr_has_the_steps_length_once(variant, p):
    """It was multiplied by eps / T twice, 2 % of the budget; "newton" has no length of its own to speak of."""
    model, x, y, up = problem()
    v = (SOAE(eps=RADIUS[p], p=p, variant=variant, step="raw")(model, x, y) - x).flatten(1)
    assert (v.norm(p=p, dim=1) <= RADIUS[p] * (1 + 1e-5)).all()
    if variant == "tr":
        assert ((up * v).sum(1) >= 0.6 * optimum(up, x, p, RADIUS[p])).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("p", [1, 1.5, 2, math.inf])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, None])
def test_frank_wolfe_from_a_raw_start_ends_in_the_ball(gamma, p, scale):
    model, (x, y) = smooth_net(), batch()

    def objective(logits: Tensor, y: Tensor) -> Tensor:
        return scale * nn.functional.cross_entropy(logits, y, reduction="none")

    for extra in ({}, {"tol": 1e-9}, {"in_box": True} if p != 1.5 else {}):
        eps = torch.linspace(0.1, 0.4, len(x), dtype=x.dtype)
        attack = FrankWolfe(eps=eps, p=p, init="raw", gamma=gamma, objective=objective, **extra)
        x_adv = attack(model, x, y)
        assert ((x_adv >= 0) & (x_adv <= 1)).all()
        assert ((x_adv - x).flatten(1).norm(p=p, dim=1) <= eps * (1 + 1e-9)).all()


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("far", [1e2, 1e4, 1e9, 1e15, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projecting_a_far_move_ends_in_the_ball(dtype, far, exact):
    """The L1 threshold is as large as the move: eps would be lost in its rounding."""
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(6, 300, generator=generator, dtype=torch.float64).to(dtype)
    move = torch.randn(6, 300, generator=generator, dtype=torch.float64)
    move[0] = move[0].sign()  # all tied
    move[1, 1:] = 0
    x_adv = (x + far * move).to(dtype)
    for eps in (0.01, 1.5, 12.0):
        # Exact at p = 2 is not held beyond moves of 1e15: its factor eps / |move| is a float32 of few digits there.
        for p in (1, math.inf) if exact and far > 1e15 else (1, 2, math.inf):
            v = ops.project(x_adv, x, p, eps, exact=exact).double() - x.double()
            # Storing x + v rounds every entry that moves.
            rounding = torch.finfo(dtype).eps * (v != 0).sum(1).double() ** (0 if p == math.inf else 1 / p)
            assert (v.norm(p=p, dim=1) <= eps * (1 + 4 * torch.finfo(dtype).eps) + rounding).all(), (p, eps)
    for move in (1e3, 1e30):  # of two entries, far apart, the larger moves by eps
        x_adv = torch.tensor([[0.5 + move, 0.5 + 0.5 * move]], dtype=dtype)
        out = ops.project(x_adv, torch.full_like(x_adv, 0.5), 1, 0.25, exact=exact)
        if move < 1e9 or not exact:
            torch.testing.assert_close(out, torch.tensor([[0.75, 0.5]], dtype=dtype))


def test_the_box_binds_in_fgsm_and_mifgsm_only_where_it_is_near():
    model, (x, y) = smooth_net(), batch()
    x = 0.4 + 0.2 * x
    with FGSM().oracle(model) as oracle:
        g = oracle.gradient(x, y)
    torch.testing.assert_close(FGSM(eps=0.1, p=2)(model, x, y), x + ops.lmo(g, 2, 0.1))
    torch.testing.assert_close(FGSM(eps=0.1, p=1)(model, x, y), x + ops.lmo(g, 1, 0.1))
    one = MIFGSM(eps=0.1, p=2, steps=1)(model, x, y)
    torch.testing.assert_close(one, x + ops.lmo(g, 2, 0.1))
