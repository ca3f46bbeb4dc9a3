"""What a kernel keeps besides its numbers: isolation of samples, layouts, radii, the public functions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import soatfast.ops as ops
from soatfast.ops import streaming
from soatfast.testing import LAYOUTS, op_cases
from tests.ops.triton.interpreted import OPS, force_streaming, launcher, only_interpreted, quiet

pytestmark = [only_interpreted, quiet]


def _outputs(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value


def _spoiled(op: str, args: tuple, value: float) -> tuple:
    """The gradient (x_adv for project) of sample 1 of 3 replaced by one value."""
    position = {"project": 0, "pgd_step": 1}.get(op, 0)
    changed = list(args)
    changed[position] = changed[position].clone()
    changed[position][1] = value
    return tuple(changed)


@pytest.mark.parametrize("streaming", [False, True], ids=["onchip", "streaming"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("op", OPS)
def test_a_bad_sample_leaves_the_others_alone(
    op: str, value: float, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streaming:
        force_streaming(monkeypatch)
    cases = [case for case in op_cases(op, ((3, 33),)) if "degenerate" not in case.id]
    for case in cases[:: len(cases) // 2]:
        args = case.args(torch.float32)
        clean = _outputs(launcher(op)(*args))
        spoiled = _outputs(launcher(op)(*_spoiled(op, args, value)))
        for before, after in zip(clean, spoiled, strict=True):
            others = torch.arange(before.shape[0]) % 3 != 1
            assert torch.equal(before[others], after[others]), case.id
        if op in ("lmo", "frank_wolfe_step", "pgd_step", "power_step"):  # not a gap or norm, which may exceed float32
            assert all(t.isfinite().all() for t in spoiled if t.dim() == 2), case.id


@pytest.mark.parametrize("streaming", [False, True], ids=["onchip", "streaming"])
def test_a_label_outside_the_row_makes_it_nan_and_no_other(streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if streaming:
        force_streaming(monkeypatch)
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    logits[:, ::7] = -math.inf
    y = torch.tensor([39, -1, 40, 2**40, 1])
    derivative = launcher("cross_entropy_derivative")
    got, others = derivative(logits, y, 1.0), [0, 4]
    assert got[1:4].isnan().all()
    assert torch.equal(got[others], derivative(logits[others], y[others], 1.0)) and got[others].isfinite().all()


@pytest.mark.parametrize("layout", ["transposed", "sliced", "offset", "expanded"])
def test_any_layout_of_the_rows(layout: str) -> None:
    g = LAYOUTS[layout](torch.randn(3, 33, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(launcher("lmo")(g, 2.0, 0.5), launcher("lmo")(g.contiguous(), 2.0, 0.5))


def test_per_sample_radii_are_rows_of_scalar_calls() -> None:
    generator = torch.Generator().manual_seed(2)
    x_adv, g, x = (torch.rand(3, 33, generator=generator) for _ in range(3))
    eps, alpha = torch.tensor([0.1, 0.0, 0.3]), torch.tensor([0.05, 0.2, 0.4])
    step = launcher("pgd_step")
    together = step(x_adv, g, x, 2.0, 0.0, eps, 0.0, alpha, 0.0, 1.0, False, 1)
    for i in range(3):
        row = slice(i, i + 1)
        numbers = (eps[i].item(), None, alpha[i].item(), None)
        alone = step(x_adv[row], g[row], x[row], 2.0, *numbers, 0.0, 1.0, False, 1)
        assert torch.equal(together[row], alone)
    shared = step(x_adv, g, x, 2.0, 0.0, eps[:1], 0.0, alpha[0], 0.0, 1.0, False, 1)
    assert torch.equal(shared[:1], together[:1])


@pytest.mark.parametrize("op", OPS)
def test_channels_last_through_the_public_functions(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(4)
    x, g, v = (torch.rand(2, 3, 4, 5, generator=generator).contiguous(memory_format=torch.channels_last) for _ in "123")
    calls = {
        "lmo": lambda: ops.lmo(g, 2, 0.5),
        "frank_wolfe_init": lambda: ops.frank_wolfe_init(g, x, 3, 0.5, h=1.1),
        "frank_wolfe_step": lambda: ops.frank_wolfe_step(g, v, v, x, 2, 0.5, gamma=0.5),
        "project": lambda: ops.project(v, x, 2, 0.5, exact=True),
        "pgd_step": lambda: ops.pgd_step(v, g, x, 1, 0.5, 0.1, k=4),
        "power_step": lambda: ops.power_step(g, v, v, x, 0.5),
        "cross_entropy_derivative": lambda: ops.cross_entropy_derivative(g.flatten(1), torch.tensor([3, 59])),
    }
    with ops.backend("reference"):
        expected = _outputs(calls[op]())
    monkeypatch.setattr(streaming, "kernel", launcher)
    got = _outputs(calls[op]())
    for mine, twin in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, twin, rtol=1e-5, atol=1e-6)
        assert mine.stride() == twin.stride()


@pytest.mark.parametrize("op", OPS)
def test_the_results_have_the_shapes_of_the_fakes(op: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for case in op_cases(op, ((0, 33), (3, 5)))[:: 7 if op.startswith("frank") else 2]:
        args = case.args(torch.float16)
        with FakeTensorMode() as mode:
            fake = tuple(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args)
            promised = _outputs(getattr(torch.ops.soatfast, op)(*fake))
        for mine, fake_output in zip(_outputs(launcher(op)(*args)), promised, strict=True):
            assert mine.shape == fake_output.shape and mine.dtype == fake_output.dtype
            assert mine.stride() == fake_output.stride()
