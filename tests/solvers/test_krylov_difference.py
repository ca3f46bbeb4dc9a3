"""A finite difference as a solver's product: what is between two passes is one op."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from soatfast.solvers import Difference, Status, arnoldi, gmres
from tests.solvers.systems import KINDS, product, system


def quadratic_difference(a: Tensor, h: float = 0.5, bad: int | None = None) -> Difference:
    """Differences of A x + c are A v whatever h is; with `bad`, that call returns a NaN in sample 1."""
    generator = torch.Generator().manual_seed(1)
    x, c = torch.randn(2, len(a), a.shape[1], generator=generator, dtype=a.dtype)
    calls = []

    def gradient(z: Tensor) -> Tensor:
        g = product(a)(z) + c
        calls.append(len(calls))
        if len(calls) == bad:
            g[1, 0] = math.nan
        return g

    return Difference(gradient, x, product(a)(x) + c, h)


@pytest.mark.parametrize("kind", KINDS)
def test_a_difference_gives_what_its_products_do(kind: str) -> None:
    a, b = system(kind)
    difference = quadratic_difference(a)
    options = {"max_dim": 10, "rtol": 1e-6, "restarts": 2}
    fused, plain = gmres(difference, b, **options), gmres(lambda v: difference(v), b, **options)
    torch.testing.assert_close(fused.x, plain.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(fused.history, plain.history, rtol=1e-6, atol=1e-9)
    assert torch.equal(fused.iterations, plain.iterations) and torch.equal(fused.status, plain.status)
    one, other = arnoldi(difference, b, max_dim=5), arnoldi(lambda v: difference(v), b, max_dim=5)
    torch.testing.assert_close(one.basis, other.basis, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.hessenberg, other.hessenberg, rtol=1e-9, atol=1e-9)


def test_a_difference_of_images_keeps_their_layout() -> None:
    a, _ = system("spd", size=2 * 3 * 4)
    x = torch.rand(4, 2, 3, 4, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    seen = []

    def gradient(z: Tensor) -> Tensor:
        seen.append((z.shape, z.is_contiguous(memory_format=torch.channels_last)))
        return product(a)(z.permute(0, 2, 3, 1).reshape(4, 24)).view(4, 3, 4, 2).permute(0, 3, 1, 2)

    difference = Difference(gradient, x, gradient(x), 0.5)
    found = gmres(difference, x, max_dim=24, rtol=1e-10)
    assert found.converged.all() and found.x.shape == x.shape and set(seen) == {(x.shape, True)}
    torch.testing.assert_close(gradient(found.x), x, rtol=1e-8, atol=1e-8)


def test_a_nan_in_a_difference_changes_no_other() -> None:
    a, b = system("spd")
    clean = gmres(quadratic_difference(a), b, max_dim=6, rtol=1e-6)
    dirty = gmres(quadratic_difference(a, bad=4), b, max_dim=6, rtol=1e-6)
    assert dirty.status[1] == Status.NONFINITE and dirty.iterations[1] == 3 and dirty.x.isfinite().all()
    keep = [0, 2, 3]
    assert torch.equal(dirty.x[keep], clean.x[keep])


def test_bad_differences() -> None:
    a, b = system("spd")
    good = quadratic_difference(a)
    with pytest.raises(ValueError, match="h must be finite and > 0, got 0"):
        Difference(good.gradient, good.x, good.g0, 0)
    with pytest.raises(ValueError, match="compact needs a matvec"):
        gmres(good, b, max_dim=4, rtol=0.0, compact=True)
    with pytest.raises(ValueError, match=r"g0 must have shape \(4, 24\)"):
        gmres(Difference(good.gradient, good.x, good.g0[:2], 0.5), b, max_dim=4, rtol=0.0)
    with pytest.raises(ValueError, match=r"matvec must return shape \(4, 24\), got \(4, 23\)"):
        gmres(Difference(lambda z: z[:, 1:], good.x, good.g0, 0.5), b, max_dim=4, rtol=0.0)
