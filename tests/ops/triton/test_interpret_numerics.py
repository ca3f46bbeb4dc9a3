"""The interpreted kernels against the float64 reference, with the cases and budgets of the C++ kernels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from soatfast.testing import DTYPES, Case, check, op_cases
from tests.ops.triton.interpreted import OPS, force_streaming, interpretable, launcher, only_interpreted, quiet

pytestmark = [only_interpreted, quiet]

ON_CHIP_SHAPES = ((0, 33), (3, 1), (2, 33), (1, 100))


def _selected() -> Iterator[tuple[Case, torch.dtype, bool]]:
    """(case, dtype, streaming): a fixed part of all, most of it float32 on chip (the interpreter is slow)."""
    for op in OPS:
        for index, case in enumerate(op_cases(op, ON_CHIP_SHAPES)):
            if index % 3 == 0 or "degenerate" in case.id:
                yield case, torch.float32, False
        few = op_cases(op, ((2, 33),))
        for offset, dtype in enumerate(DTYPES):
            if dtype != torch.float32:
                for case in few[offset::6]:
                    yield case, dtype, False
        for offset, dtype in enumerate(DTYPES):
            for case in few[offset :: 4 if dtype == torch.float32 else 13]:
                yield case, dtype, True


def _name(value: object) -> str:
    if isinstance(value, Case):
        return f"{value.op}-{value.id}"
    return "streaming" if value is True else "onchip" if value is False else str(value).removeprefix("torch.")


@pytest.mark.parametrize(("case", "dtype", "streaming"), list(_selected()), ids=_name)
def test_matches_the_reference(
    case: Case, dtype: torch.dtype, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if streaming:
        force_streaming(monkeypatch)
    check(case.op, launcher(case.op), interpretable(case.args(dtype)))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("k", [1, 3, 7, 40])
def test_kth_largest_is_exact_with_ties_and_zeros(k: int, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries of the step: those of at least the k-th largest size, ties included, zeros never."""
    if streaming:
        force_streaming(monkeypatch)
    g = torch.zeros(2, 40)
    g[0, :9] = torch.tensor([4.0, -3.0, 3.0, 3.0, -2.0, 1e-42, -1e-30, 1e30, 2.0])
    g[1, 5] = -1.0
    x = torch.zeros(2, 40)
    moved = launcher("pgd_step")(x, g, x, 1.0, 100.0, None, 6.0, None, -100.0, 100.0, False, k)
    for row in range(2):
        size = g[row].abs()
        chosen = (size >= size.sort(descending=True).values[k - 1]) & (size > 0)
        torch.testing.assert_close(moved[row], 6.0 * g[row].sign() * chosen / chosen.sum())


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_exact_projection_reaches_the_sphere(p: float, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the box leaves room, the result has norm eps; never more."""
    if streaming:
        force_streaming(monkeypatch)
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(6, 90, generator=generator, dtype=torch.float64)
    x_adv = x + torch.randn(6, 90, generator=generator, dtype=torch.float64) * torch.rand(6, 1, dtype=torch.float64)
    eps = torch.tensor([0.0, 0.01, 0.3, 1.0, 2.0, 1e3], dtype=torch.float64)
    y = launcher("project")(x_adv, x, p, 0.0, eps, 0.0, 1.0, True)
    reach = torch.linalg.vector_norm(x_adv.clamp(0, 1) - x, ord=p, dim=1)
    norm = torch.linalg.vector_norm(y - x, ord=p, dim=1)
    torch.testing.assert_close(norm, torch.minimum(eps, reach), rtol=1e-12, atol=1e-15)
