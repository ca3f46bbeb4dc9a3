"""frank_wolfe_step against a step written out, closed forms of a whole run, and the Frank-Wolfe gap."""

from __future__ import annotations

import math

import pytest
import torch

from soatfast import ops
from soatfast.testing import GENERAL_P


def quadratic(size: int = 30, rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """g (B, D) and a symmetric positive semidefinite Hessian (D, D) for every sample, float64."""
    root = torch.randn(rows, size, size, dtype=torch.float64) / size**0.5
    return torch.randn(rows, size, dtype=torch.float64), root @ root.mT


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("p", GENERAL_P)
def test_one_step_written_out(p: float, central: bool) -> None:
    g0, hessian = quadratic()
    x = torch.rand_like(g0)
    v = ops.lmo(torch.randn_like(g0), p, 0.3)
    h, gamma, eps = 0.8, 0.4, 0.3

    def gradient(u: torch.Tensor) -> torch.Tensor:
        return g0 + (hessian @ u.unsqueeze(2)).squeeze(2)

    g1 = torch.cat([gradient(h * v), gradient(-h * v)]) if central else gradient(h * v)
    v_new, probe, gap = ops.frank_wolfe_step(g0, g1, v, x, p, eps, gamma=gamma, h=h, central=central)
    s = ops.lmo(gradient(v), p, eps)  # exact: both differences are for a quadratic
    torch.testing.assert_close(v_new, (1 - gamma) * v + gamma * s)
    torch.testing.assert_close(gap, (gradient(v) * (s - v)).sum(1))
    expected = torch.cat([x + h * v_new, x - h * v_new]) if central else x + h * v_new
    torch.testing.assert_close(probe, expected)


@pytest.mark.parametrize("p", GENERAL_P)
def test_last_step_gives_the_clamped_example(p: float) -> None:
    g, x, v = torch.randn(3, 40), torch.rand(3, 40), torch.zeros(3, 40)
    v_new, x_adv, _ = ops.frank_wolfe_step(g, g, v, x, p, 0.5, gamma=1.0, last=True, bounds=(0.2, 0.7))
    assert torch.equal(x_adv, (x + v_new).clamp(0.2, 0.7))
    assert torch.equal(v_new, ops.lmo(g, p, 0.5))
    stacked = torch.cat([g, g])
    assert ops.frank_wolfe_step(g, stacked, v, x, p, 0.5, gamma=1.0, last=True, central=True)[1].shape == x.shape


@pytest.mark.parametrize("p", GENERAL_P)
def test_linear_loss_ends_on_the_lmo_with_no_gap(p: float) -> None:
    """With gamma_k = 2/(k+2) a constant gradient gives v_N = lmo(g), whatever the start."""
    g, x = torch.randn(3, 25, dtype=torch.float64), torch.rand(3, 25, dtype=torch.float64)
    v, _ = ops.frank_wolfe_init(g, x, p, 0.3)
    for k in range(3):
        v, _, gap = ops.frank_wolfe_step(g, g, v, x, p, 0.3, gamma=2 / (k + 2))
    torch.testing.assert_close(v, ops.lmo(g, p, 0.3))
    torch.testing.assert_close(gap, torch.zeros_like(gap))


def test_weights_of_the_three_vertices() -> None:
    """v_3 = s_0/6 + s_1/3 + s_2/2."""
    x = torch.rand(2, 10, dtype=torch.float64)
    gradients = [torch.randn(2, 10, dtype=torch.float64) for _ in range(3)]
    v = torch.zeros_like(x)
    for k, g in enumerate(gradients):
        v, _, _ = ops.frank_wolfe_step(g, g, v, x, math.inf, 1.0, gamma=2 / (k + 2))
    s = [g.sign() for g in gradients]
    torch.testing.assert_close(v, s[0] / 6 + s[1] / 3 + s[2] / 2)


@pytest.mark.parametrize("p", GENERAL_P)
def test_gap_bounds_the_gain_and_the_quadratic_rises(p: float) -> None:
    g0, hessian = quadratic()
    x, v = torch.rand_like(g0), torch.zeros_like(g0)

    def value(u: torch.Tensor) -> torch.Tensor:
        return (g0 * u).sum(1) + 0.5 * (u.unsqueeze(1) @ hessian @ u.unsqueeze(2)).flatten()

    for k in range(5):
        g1 = g0 + (hessian @ v.unsqueeze(2)).squeeze(2)
        new, _, gap = ops.frank_wolfe_step(g0, g1, v, x, p, 0.5, gamma=2 / (k + 2))
        assert (gap >= -1e-12).all()
        assert (value(new) - value(v) >= 2 / (k + 2) * gap - 1e-10).all()  # convex: Proposition 1
        assert (torch.linalg.vector_norm(new, p, dim=1) <= 0.5 * (1 + 1e-12)).all()
        v = new


@pytest.mark.parametrize("p", GENERAL_P)
def test_huge_and_tiny_gradients_scale_the_gap_only(p: float) -> None:
    g, x, v = torch.randn(2, 33), torch.rand(2, 33), 0.01 * torch.randn(2, 33)
    base_v, _, base_gap = ops.frank_wolfe_step(g, g, v, x, p, 0.1, gamma=0.5)
    for power in (-120, 100):
        scaled = torch.ldexp(g, torch.tensor(power))
        new_v, _, gap = ops.frank_wolfe_step(scaled, scaled, v, x, p, 0.1, gamma=0.5)
        torch.testing.assert_close(new_v, base_v, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(gap.double(), base_gap.double() * 2.0**power, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gamma": -0.1}, ValueError, r"gamma must be a number in \[0, 1\]"),
        ({"gamma": 1.5}, ValueError, r"gamma must be a number in \[0, 1\]"),
        ({"gamma": math.nan}, ValueError, r"gamma must be a number in \[0, 1\]"),
        ({"h": -1.0}, ValueError, "h must be finite and > 0"),
        ({"bounds": (1.0, 0.0)}, ValueError, r"bounds must be \(lower, upper\)"),
        ({"bounds": (0.0, math.nan)}, ValueError, r"bounds must be \(lower, upper\)"),
        ({"p": 0.9}, ValueError, "p must be a number >= 1"),
        ({"eps": torch.rand(7)}, ValueError, "eps must be a number or a floating tensor"),
        ({"g1": torch.ones(4, 3)}, ValueError, r"g1 must have shape \(2, 3\), got \(4, 3\)"),
        ({"central": True}, ValueError, r"g1 must have shape \(4, 3\), got \(2, 3\)"),
        ({"v": torch.ones(2, 3).half()}, TypeError, "v must have dtype torch.float32, got torch.float16"),
        ({"g0": torch.ones(2, 3, device="meta")}, ValueError, "g0 is on meta, expected cpu"),
        ({"x": torch.ones(2, 3).long()}, TypeError, "expected a floating tensor"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    tensors = {name: torch.ones(2, 3) for name in ("g0", "g1", "v", "x")}
    arguments = {**tensors, "p": 2, "eps": 0.5, "gamma": 0.5, **change}
    with pytest.raises(error, match=message):
        ops.frank_wolfe_step(**arguments)


def test_in_box_maximises_over_ball_and_box() -> None:
    g, x = torch.randn(40, 6, dtype=torch.float64), torch.rand(40, 6, dtype=torch.float64)
    v = torch.zeros_like(g)
    x[:20] = x[:20].round()
    eps = 0.3
    s, x_adv, gap = ops.frank_wolfe_step(g, g, v, x, math.inf, eps, gamma=1.0, last=True, in_box=True)
    assert torch.equal(x_adv, (x + s).clamp(0, 1)) and (s.abs() <= eps).all()
    torch.testing.assert_close(gap, (g * s).sum(1))
    corners = torch.cartesian_prod(*6 * [torch.tensor([-eps, eps], dtype=torch.float64)])  # [64, 6]
    feasible = (x[:, None] + corners).clamp(0, 1) - x[:, None]  # corners of ball and box
    torch.testing.assert_close((g * s).sum(1), (g[:, None] * feasible).sum(2).amax(1))
    start, probe = ops.frank_wolfe_init(g, x, math.inf, eps, h=1.0, in_box=True)
    assert probe.min() >= 0 and probe.max() <= 1 and (start.abs() <= eps).all()
    free, _ = ops.frank_wolfe_init(g, x, math.inf, eps, h=1.0)
    torch.testing.assert_close(start, (x + free).clamp(0, 1) - x)


def test_in_box_takes_no_norm_in_between() -> None:
    g = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"in_box takes p = 1, 2 or math\.inf, got p = 3"):
        ops.frank_wolfe_step(g, g, g, g, 3, 0.1, gamma=1.0, in_box=True)
    with pytest.raises(ValueError, match=r"in_box takes p = 1, 2 or math\.inf, got p = 3"):
        ops.frank_wolfe_init(g, g, 3, 0.1, in_box=True)
