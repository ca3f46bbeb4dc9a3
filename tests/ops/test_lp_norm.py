"""lp_norm against torch.linalg in float64, and its scaling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast import ops
from soatfast.testing import GENERAL_P


@pytest.mark.parametrize("scale", [1e-37, 1e-24, 1.0, 1e24, 1e34])
@pytest.mark.parametrize("p", GENERAL_P)
def test_agrees_with_linalg(p: float, scale: float) -> None:
    g = scale * torch.randn(4, 999)
    expected = scale * torch.linalg.vector_norm(g.double() / scale, p, dim=1)
    torch.testing.assert_close(ops.lp_norm(g, p).double(), expected, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_input_gives_float32(dtype: torch.dtype) -> None:
    g = torch.randn(3, 2, 50).to(dtype)
    norm = ops.lp_norm(g, 2)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, torch.linalg.vector_norm(g.float().flatten(1), dim=1))


def test_long_rows_keep_their_accuracy() -> None:
    g = torch.full((1, 3_000_000), 0.1)
    for p in (1, 2, 1.5):
        expected = float(torch.tensor(0.1)) * 3_000_000 ** (1 / p)
        assert abs(float(ops.lp_norm(g, p)) / expected - 1) < 1e-6


def test_special_values() -> None:
    largest = torch.finfo(torch.float32).max
    g = torch.tensor([[0.0, 0.0], [math.nan, -2.0], [-math.inf, 1.0], [1e-45, 0.0]])
    for p in GENERAL_P:
        norm = ops.lp_norm(g, p)
        torch.testing.assert_close(norm, torch.tensor([0.0, 2.0, largest, 1e-45]))


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=70))
def test_property_norms_fall_with_p(values: list[float]) -> None:
    g = torch.tensor([values])
    norms = [float(ops.lp_norm(g, p)) for p in GENERAL_P]
    for larger, smaller in itertools.pairwise(norms):
        assert smaller <= larger * (1 + 2e-6)


@pytest.mark.native
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_core_on_numpy_rows(dtype: type) -> None:
    host = pytest.importorskip("soatfast._host")
    g = np.random.default_rng(0).standard_normal(77).astype(dtype)
    for p in GENERAL_P:
        expected = np.linalg.norm(g.astype(np.float64), p)
        np.testing.assert_allclose(host.lp_norm(g, p), expected, rtol=8 * np.finfo(dtype).eps)
    with pytest.raises(TypeError):
        host.lp_norm(np.ones(3, dtype=np.int64), 2.0)


@pytest.mark.parametrize(
    ("g", "p", "error", "message"),
    [
        (torch.ones(2, 3), 0, ValueError, "p must be a number >= 1"),
        (torch.ones(2, 3), None, TypeError, "p must be a number"),
        (torch.ones(2, 3, dtype=torch.bool), 2, TypeError, "expected a floating tensor"),
        (torch.ones(3), 2, ValueError, "expected a batch"),
        (torch.ones(2, 3, 0), 2, ValueError, "at least one entry"),
    ],
)
def test_bad_input(g: torch.Tensor, p: float, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ops.lp_norm(g, p)
