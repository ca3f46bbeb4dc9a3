"""frank_wolfe_init: its three starts, their norms, and the probes."""

from __future__ import annotations

import math

import pytest
import torch

from soatfast import ops
from soatfast.testing import GENERAL_P


def norm(t: torch.Tensor, p: float) -> torch.Tensor:
    return torch.linalg.vector_norm(t.double().flatten(1), p, dim=1)


@pytest.mark.parametrize("central", [False, True])
@pytest.mark.parametrize("p", GENERAL_P)
def test_scaled_start_is_the_gradient_on_the_sphere(p: float, central: bool) -> None:
    g, x = 1e-6 * torch.randn(3, 2, 50), torch.rand(3, 2, 50)
    v, probe = ops.frank_wolfe_init(g, x, p, 0.3, h=0.7, central=central)
    torch.testing.assert_close(norm(v, p), torch.full((3,), 0.3).double(), rtol=1e-6, atol=0.0)
    expected = 0.3 * g.double() / norm(g, p).view(3, 1, 1)
    torch.testing.assert_close(v.double(), expected, rtol=1e-6, atol=0.0)
    probes = [x + 0.7 * v, x - 0.7 * v] if central else [x + 0.7 * v]
    torch.testing.assert_close(probe, torch.cat(probes))


@pytest.mark.parametrize("p", GENERAL_P)
def test_lmo_start_is_the_lmo(p: float) -> None:
    g, x = torch.randn(3, 40), torch.rand(3, 40)
    v, _ = ops.frank_wolfe_init(g, x, p, 0.3, init="lmo")
    assert torch.equal(v, ops.lmo(g, p, 0.3))


def test_raw_start_is_the_gradient() -> None:
    g, x = torch.randn(3, 40), torch.rand(3, 40)
    g[0, 3] = math.nan
    v, probe = ops.frank_wolfe_init(g, x, 2, 0.3, init="raw")
    assert torch.equal(v, g.nan_to_num())
    assert torch.equal(probe, x + v)


def test_probe_uses_the_start_before_it_is_rounded_to_storage() -> None:
    g, x = torch.randn(2, 64).bfloat16(), torch.rand(2, 64).bfloat16()
    v, probe = ops.frank_wolfe_init(g, x, 2, 0.5, h=1.05)
    exact, _ = ops.frank_wolfe_init(g.double(), x.double(), 2, 0.5, h=1.05)
    assert torch.equal(probe, (x.double() + 1.05 * exact).float().bfloat16())
    assert v.dtype == torch.bfloat16


@pytest.mark.parametrize("init", ["scaled", "lmo", "raw"])
def test_zero_gradient_makes_no_step(init: str) -> None:
    x = torch.rand(2, 5)
    for p in GENERAL_P:
        v, probe = ops.frank_wolfe_init(torch.zeros(2, 5), x, p, 0.3, init=init)  # type: ignore[arg-type]
        assert torch.equal(v, torch.zeros(2, 5)) and torch.equal(probe, x)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"init": "random"}, ValueError, "init must be one of scaled, lmo, raw, got 'random'"),
        ({"h": 0}, ValueError, "h must be finite and > 0"),
        ({"h": math.inf}, ValueError, "h must be finite and > 0"),
        ({"h": "1"}, TypeError, "h must be a number"),
        ({"h": True}, TypeError, "h must be a number"),
        ({"p": 0.9}, ValueError, "p must be a number >= 1"),
        ({"eps": -1.0}, ValueError, "eps must be finite and >= 0"),
        ({"g0": torch.ones(2, 4)}, ValueError, r"g0 must have shape \(2, 3\), got \(2, 4\)"),
        ({"g0": torch.ones(2, 3).double()}, TypeError, "g0 must have dtype torch.float32, got torch.float64"),
        ({"g0": torch.ones(2, 3, device="meta")}, ValueError, "g0 is on meta, expected cpu"),
        ({"x": torch.ones(2, 3).int()}, TypeError, "expected a floating tensor"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"g0": torch.ones(2, 3), "x": torch.ones(2, 3), "p": 2, "eps": 0.5, **change}
    with pytest.raises(error, match=message):
        ops.frank_wolfe_init(**arguments)
