"""cross_entropy_derivative against autograd in float64 and closed forms; confident, shifted, broken rows; bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from soatfast import ops
from soatfast.testing import DTYPES

EPS = torch.finfo(torch.float32).eps


def by_autograd(logits: Tensor, y: Tensor) -> Tensor:
    leaf = logits.double().requires_grad_()
    (slope,) = torch.autograd.grad(F.cross_entropy(leaf, y, reduction="sum"), leaf)
    return slope


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 10, 33, 100, 1000, 5003])
def test_is_the_gradient_of_the_loss(classes: int, dtype: torch.dtype) -> None:
    """On a grid, where logits less their maximum are exact: what is left is the kernel's own rounding."""
    logits, y = ((192 * torch.randn(40, classes)).round() / 64).to(dtype), torch.randint(classes, (40,))
    rtol = max(16 * EPS, torch.finfo(dtype).eps) if dtype != torch.float64 else 1e-13
    tiny = 0.0 if dtype != torch.float16 else 2.0**-24  # its smallest denormal
    for sign in (1.0, -1.0, 0.25):
        got = ops.cross_entropy_derivative(logits, y, sign)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), sign * by_autograd(logits, y), rtol=rtol, atol=tiny)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_confident_sample_keeps_its_accuracy(dtype: torch.dtype) -> None:
    """Closed forms for logits (0, -t): d = (-p, p), p = 1 / (1 + e^t); 1 - p_y would be 0 from t = 17 on (37)."""
    t = torch.arange(0, 4 * 87, dtype=torch.float64) / 4
    logits = torch.stack([torch.zeros_like(t), -t], 1).to(dtype)
    got = ops.cross_entropy_derivative(logits, torch.zeros(len(t), dtype=torch.int64)).double()
    p = (-t).exp() / (1 + (-t).exp())
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, torch.stack([-p, p], 1), rtol=rtol, atol=0.0)
    several = torch.cat([logits, logits[:, 1:].expand(-1, 8)], 1)  # nine rivals that are alike
    label = ops.cross_entropy_derivative(several, torch.zeros(len(t), dtype=torch.int64))[:, 0].double()
    torch.testing.assert_close(label, -9 * (-t).exp() / (1 + 9 * (-t).exp()), rtol=2 * rtol, atol=0.0)


def test_a_denormal_probability_is_not_lost() -> None:
    """Signs of the input gradient hang on it: at a margin of 95 in float32 it is 5.5e-42, beyond 104 it is 0."""
    margin = torch.tensor([88.0, 95.0, 103.0, 105.0, 1e30])
    logits = torch.stack([margin, torch.zeros_like(margin)], 1)
    got = ops.cross_entropy_derivative(logits, torch.zeros(5, dtype=torch.int64))
    expected = (-margin.double()).exp()
    torch.testing.assert_close(got[:, 1].double(), expected, rtol=1e-6, atol=2.0**-149)
    assert torch.equal(got[:, 0], -got[:, 1])
    assert (got[:3, 1] > 0).all() and (got[3:, 1] == 0).all()


def test_a_wrong_prediction_has_a_slope_of_one() -> None:
    logits = torch.tensor([[0.0, 200.0, -50.0]])
    assert torch.equal(ops.cross_entropy_derivative(logits, torch.tensor([0])), torch.tensor([[-1.0, 1.0, 0.0]]))


_LOGITS = st.lists(st.integers(-4000, 4000), min_size=2, max_size=70)


@given(_LOGITS, st.integers(0, 10**6), st.integers(-64, 64))
def test_property_sum_sign_and_shift(entries: list[int], label: int, shift: int) -> None:
    """On a grid of 1/64, where adding the shift rounds nothing."""
    logits, y = torch.tensor([entries]).float() / 64, torch.tensor([label % len(entries)])
    got = ops.cross_entropy_derivative(logits, y)
    assert got.double().sum().abs() <= 2 * EPS * got.double().abs().amax()
    assert (got.scatter(1, y.unsqueeze(1), 0.0) >= 0).all() and (got.gather(1, y.unsqueeze(1)) <= 0).all()
    assert torch.equal(ops.cross_entropy_derivative(logits, y, -1.0), -got)
    assert torch.equal(ops.cross_entropy_derivative(logits + shift, y), got)


@pytest.mark.parametrize("classes", [4, 10, 100])
def test_what_is_no_number_spoils_its_row_alone(classes: int) -> None:
    logits, y = torch.randn(5, classes), torch.tensor([0, 1, 2, 3, 0])
    clean = ops.cross_entropy_derivative(logits, y)
    logits[0, -1], logits[1, 1], logits[2, 0], logits[3] = math.nan, math.nan, math.inf, -math.inf
    got = ops.cross_entropy_derivative(logits, y)
    assert got[:4].isnan().all()
    assert torch.equal(got[4], clean[4]) and got[4].isfinite().all()


@pytest.mark.parametrize("label", [1, 5])
def test_minus_infinity_is_a_probability_of_zero(label: int) -> None:
    """Among the others, and as the label itself: then its row is the softmax of the others, less 1 at the label."""
    logits, y = torch.randn(1, 6), torch.tensor([label])
    logits[0, 5] = -math.inf
    got = ops.cross_entropy_derivative(logits, y)
    expected = logits.double().softmax(1) - F.one_hot(y, 6)
    torch.testing.assert_close(got.double(), expected, rtol=4 * EPS, atol=2 * EPS)
    assert got[0, 5] == (0.0 if label == 1 else pytest.approx(-1.0, abs=2 * EPS))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.int8, torch.uint8], ids=str)
def test_labels_of_any_integer_dtype(dtype: torch.dtype) -> None:
    logits, y = torch.randn(6, 7), torch.arange(6)
    assert torch.equal(ops.cross_entropy_derivative(logits, y.to(dtype)), ops.cross_entropy_derivative(logits, y))
    spread = torch.stack([y, torch.full_like(y, -1)], 1)[:, 0]  # stride 2
    assert torch.equal(ops.cross_entropy_derivative(logits, spread), ops.cross_entropy_derivative(logits, y))


@pytest.mark.parametrize("bad", [-1, 7, 2**40])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_label_out_of_range_is_an_error(backend: str, bad: int) -> None:
    with ops.backend(backend), pytest.raises(RuntimeError):  # type: ignore[arg-type]
        ops.cross_entropy_derivative(torch.randn(3, 7), torch.tensor([0, bad, 6]))


@pytest.mark.native
def test_a_label_out_of_range_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"y\[1\] is 7, expected a label in 0\.\.6"):
        ops.cross_entropy_derivative(torch.randn(3, 7), torch.tensor([0, 7, 6]))


@pytest.mark.native
def test_host_core_is_the_op() -> None:
    host = pytest.importorskip("soatfast._host")
    for dtype in (np.float32, np.float64):
        for classes in (2, 10, 100):
            row = np.random.default_rng(3).normal(size=classes).astype(dtype)
            op = ops.cross_entropy_derivative(torch.from_numpy(row)[None], torch.tensor([1]), -1.0)[0].numpy()
            core = host.cross_entropy_derivative(row, 1, -1)
            np.testing.assert_allclose(core, op, rtol=8 * np.finfo(dtype).eps)
            with pytest.raises(ValueError, match="label must be an index"):
                host.cross_entropy_derivative(row, classes)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.ones(2, 3).long()}, TypeError, "logits must be a floating tensor, got torch.int64"),
        ({"logits": [[1.0, 2.0]]}, TypeError, "logits must be a floating tensor, got list"),
        ({"logits": torch.ones(2, 3, 1)}, ValueError, r"shape \(B, K\) with K >= 2, got \(2, 3, 1\)"),
        ({"logits": torch.ones(2, 1)}, ValueError, r"shape \(B, K\) with K >= 2, got \(2, 1\)"),
        ({"y": torch.zeros(3).long()}, ValueError, r"y must have shape \(2,\), one label a row, got \(3,\)"),
        ({"y": torch.zeros(2, 1).long()}, ValueError, r"y must have shape \(2,\), one label a row, got \(2, 1\)"),
        ({"y": torch.zeros(2)}, TypeError, "y must be a tensor of integers, got torch.float32"),
        ({"y": torch.zeros(2).bool()}, TypeError, "y must be a tensor of integers, got torch.bool"),
        ({"y": [0, 1]}, TypeError, "y must be a tensor of integers, got list"),
        ({"y": torch.zeros(2, device="meta").long()}, ValueError, "y is on meta, expected cpu"),
        ({"sign": math.inf}, ValueError, "sign must be finite, got inf"),
        ({"sign": math.nan}, ValueError, "sign must be finite, got nan"),
        ({"sign": "1"}, TypeError, "sign must be a number, got str"),
        ({"sign": True}, TypeError, "sign must be a number, got bool"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    good = {"logits": torch.ones(2, 3), "y": torch.zeros(2).long(), "sign": 1.0}
    with pytest.raises(error, match=message):
        ops.cross_entropy_derivative(**{**good, **change})


@pytest.mark.parametrize(
    ("y", "message"),
    [(torch.zeros(2, dtype=torch.int32), "int64"), (torch.zeros(3).long(), "2"), (torch.zeros(2, 1).long(), "int64")],
)
def test_the_raw_op_checks_too(y: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.soatfast.cross_entropy_derivative(torch.ones(2, 3), y, 1.0)
