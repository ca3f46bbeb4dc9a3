"""What a solve says about itself: verified residuals, asymmetry, subdiagonals, callbacks; and preconditioners."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from soatfast.gradients import InputGradient
from soatfast.solvers import Difference, Status, arnoldi, gmres, hvp
from tests.nets import batch, hessians, relu_net, smooth_net
from tests.solvers.systems import D, product, scipy_history, system


def length(t: Tensor) -> Tensor:
    return torch.linalg.vector_norm(t, dim=1)


def scaled(rows: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """(A, b, diagonal): symmetric positive definite, badly scaled."""
    a, b = system("spd", rows)
    scale = torch.logspace(-2, 2, D, dtype=torch.float64)
    a = scale.unsqueeze(1) * a * scale
    return a, b, a.diagonal(dim1=1, dim2=2)


# Preconditioner


@pytest.mark.parametrize("options", [{}, {"compact": True}, {"check_every": 4}, {"check_every": None}])
def test_the_residuals_are_those_of_the_preconditioned_system(options: dict) -> None:
    a, b, diagonal = scaled()

    def matvec(v: Tensor, index: Tensor | None = None) -> Tensor:
        return product(a if index is None else a[index])(v)

    found = gmres(matvec, b, max_dim=D, rtol=1e-9, preconditioner=lambda v: v / diagonal, **options)
    for i in range(len(b)):
        theirs = torch.tensor(scipy_history(a[i] / diagonal[i], b[i], D)).double()
        mine = found.history[i, 1:] / found.history[i, 0]
        steps = int((theirs > 1e-8).sum())
        assert steps >= 5
        torch.testing.assert_close(mine[:steps].log10(), theirs[:steps].log10(), rtol=0, atol=1e-6)
    assert found.converged.all()
    expected = torch.linalg.solve(a, b.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found.x, expected, rtol=1e-5, atol=1e-7 * float(expected.abs().max()))
    without = gmres(matvec, b, max_dim=D, rtol=1e-9, **options)
    assert (found.iterations < without.iterations).all()


@pytest.mark.parametrize("start", [False, True])
def test_the_exact_inverse_takes_one_step_from_any_start(start: bool) -> None:
    a, b = system("nonsymmetric")
    inverse = torch.linalg.inv(a)
    x0 = torch.ones_like(b) if start else None
    found = gmres(product(a), b, x0, max_dim=3, rtol=1e-10, restarts=2, preconditioner=product(inverse), verify=True)
    assert found.converged.all() and (found.iterations == 1).all()
    torch.testing.assert_close(found.x, product(inverse)(b))


def test_a_preconditioned_difference() -> None:
    a, b, diagonal = scaled()
    x = torch.zeros_like(b)  # where the difference of a linear gradient has no cancellation
    difference = Difference(product(a), x, product(a)(x), 1e-2)
    found = gmres(difference, b, max_dim=D, rtol=1e-8, preconditioner=lambda v: v / diagonal)
    assert found.converged.all()
    torch.testing.assert_close(product(a)(found.x), b, rtol=0, atol=1e-6)


def test_a_preconditioner_of_another_shape_is_said() -> None:
    a, b = system("spd")
    with pytest.raises(ValueError, match=r"preconditioner must return shape \(4, 24\), got \(4, 23\)"):
        gmres(product(a), b, max_dim=3, rtol=1e-3, preconditioner=lambda v: v[:, 1:])


# Verified


def test_an_estimate_that_misses_its_target_is_not_converged() -> None:
    """A product with noise: the estimate falls to 1e-8, the residual stays where the noise is."""
    a, b = system("spd", 6)
    noise = torch.tensor([0.0, 1e-2, 0.0, 1e-3, 1e-4, 0.0], dtype=torch.float64).unsqueeze(1)
    calls = []

    def matvec(v: Tensor) -> Tensor:
        calls.append(1)
        return product(a)(v) + noise * torch.sin(1e4 * v)

    believed = gmres(matvec, b, max_dim=D, rtol=1e-8)
    assert believed.converged.all() and believed.true_residual is None
    calls.clear()
    found = gmres(matvec, b, max_dim=D, rtol=1e-8, verify=True)
    assert len(calls) == int(found.iterations.max()) + 1
    assert found.converged.tolist() == [True, False, True, False, False, True]
    assert {int(s) for s in found.status} == {Status.CONVERGED, Status.INEXACT}
    assert found.true_residual is not None
    left = length(b - product(a)(found.x))
    assert (found.true_residual[[1, 3, 4]] > 2e-8 * length(b)[[1, 3, 4]]).all()
    torch.testing.assert_close(found.true_residual[[0, 2, 5]], left[[0, 2, 5]])
    assert torch.equal(found.x, believed.x) and torch.equal(found.residual, believed.residual)


def test_what_did_not_converge_keeps_its_status() -> None:
    a, b = system("spd")
    b[0] = 0
    b[1, 3] = math.nan
    found = gmres(product(a), b, max_dim=3, rtol=1e-9, verify=True)
    assert found.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.MAX_DIM, Status.MAX_DIM]
    assert found.true_residual is not None and found.true_residual[1] == math.inf
    torch.testing.assert_close(found.true_residual[2:], found.residual[2:])


def test_no_tolerance_is_reached_up_to_rounding() -> None:
    found = gmres(lambda v: 3 * v, torch.ones(2, 5, dtype=torch.float64), max_dim=3, rtol=0.0, verify=True)
    assert (found.status != Status.INEXACT).all()


def test_a_long_solution_is_verified_by_a_step_of_length_h() -> None:
    """The difference of a curved gradient along x itself would be off by ||x|| h."""
    a, b = system("spd")
    a = a / 1e3
    x = torch.rand_like(b)
    curved = lambda z: product(a)(z) + (z - x) ** 2 / 1e3  # noqa: E731
    found = gmres(Difference(curved, x, product(a)(x), 1e-6), b, max_dim=D, rtol=1e-3, verify=True)
    assert length(found.x).min() > 1e2 and found.converged.all()


# Asymmetry and subdiagonals


def test_asymmetry_tells_a_hessian_from_what_is_none() -> None:
    for kind, low, high in (("spd", 0, 1e-12), ("indefinite", 0, 1e-12), ("nonsymmetric", 0.05, 2)):
        a, b = system(kind)
        found = gmres(product(a), b, max_dim=8, rtol=1e-12)
        assert ((found.asymmetry >= low) & (found.asymmetry <= high)).all(), (kind, found.asymmetry)
        h = arnoldi(product(a), b, max_dim=8).hessenberg[:, :8]
        expected = (h - h.transpose(1, 2)).flatten(1).norm(dim=1) / h.flatten(1).norm(dim=1)
        torch.testing.assert_close(found.asymmetry, expected, rtol=1e-6, atol=1e-12)


def test_differences_across_kinks_show_in_the_asymmetry() -> None:
    model, (x, y) = relu_net(), batch(n=8)
    with InputGradient(model) as oracle:
        g = oracle.gradient(x, y)
        worst = [
            float(gmres(lambda v, h=h: hvp(oracle, x, y, v, h=h, g0=g), g, max_dim=3, rtol=0.0).asymmetry.max())
            for h in (1e-6, 1.0)
        ]
    assert worst[0] < 1e-4 < 1e-2 < worst[1], worst


def test_asymmetry_and_subdiagonals_of_ended_and_restarted_solves() -> None:
    a, b = system("repeated")
    b[1] = 0
    found = gmres(product(a), b, max_dim=8, rtol=1e-10)
    assert found.asymmetry.isfinite().all() and (found.asymmetry < 1e-10).all() and found.asymmetry[1] == 0
    h = arnoldi(product(a), b, max_dim=8).hessenberg
    assert found.subdiagonals.shape == (4, 8)
    assert not found.subdiagonals[:, 3:].any() and not found.subdiagonals[1].any()
    torch.testing.assert_close(found.subdiagonals[0, :2], h[0].diagonal(-1)[:2])
    a, b = system("spd")
    restarted = gmres(product(a), b, max_dim=4, rtol=1e-12, restarts=3)
    assert restarted.subdiagonals.shape == (4, 12) and len(restarted.cycles) == 3
    first = gmres(product(a), b, max_dim=4, rtol=1e-12)
    torch.testing.assert_close(restarted.subdiagonals[:, :4], first.subdiagonals)
    assert not torch.equal(restarted.subdiagonals[:, 4:8], first.subdiagonals)


def test_the_solution_of_a_smooth_network_is_the_dense_one() -> None:
    model, (x, y) = smooth_net(), batch(n=4)
    h = hessians(model, x, y) + 0.5 * torch.eye(16).double()
    with InputGradient(model) as oracle:
        _, g, exact = oracle.differentiable(x, y)
        found = gmres(lambda v: exact(v) + 0.5 * v, g, max_dim=16, rtol=1e-10, verify=True)
    expected = torch.linalg.solve(h, g.flatten(1).unsqueeze(2)).view_as(x)
    torch.testing.assert_close(found.x, expected, rtol=1e-7, atol=1e-9)
    assert found.converged.all() and (found.asymmetry < 1e-8).all()


@pytest.mark.parametrize("kind", ["spd", "nonsymmetric"])
def test_one_solve_gives_the_dimension_of_every_larger_threshold(kind: str) -> None:
    a, b = system(kind)
    found = gmres(product(a), b, max_dim=D, rtol=1e-6)
    for rtol in (0.5, 0.1, 1e-2, 1e-4, 1e-6):
        assert torch.equal(found.dimension(rtol).int(), gmres(product(a), b, max_dim=D, rtol=rtol).iterations)
    assert (gmres(product(a), b, max_dim=2, rtol=1e-6).dimension(1e-6) == -1).all()
    assert (found.dimension(1.0) == 0).all()


# Callback


@pytest.mark.parametrize("check_every", [1, 3, None])
def test_the_callback_sees_every_step(check_every: int | None) -> None:
    a, b = system("spd")
    seen: list[tuple[int, Tensor]] = []
    options = {"max_dim": 7, "rtol": 0.0, "restarts": 2, "check_every": check_every}
    found = gmres(product(a), b, **options, callback=lambda step, r: seen.append((step, r.clone())))
    assert [step for step, _ in seen] == list(range(1, 15))
    assert torch.equal(torch.stack([r for _, r in seen], 1), found.history[:, 1:])


def test_an_error_of_the_callback_is_the_callers() -> None:
    class Enough(Exception):
        pass

    def stop(step: int, residual: Tensor) -> None:
        if step == 2:
            raise Enough

    a, b = system("spd")
    with pytest.raises(Enough):
        gmres(product(a), b, max_dim=5, rtol=0.0, callback=stop)


def test_mistakes_are_said_before_the_first_product() -> None:
    _, b = system("spd")

    def never(v: Tensor) -> Tensor:
        raise AssertionError("a product was made")

    for wrong in (
        {"max_dim": 0},
        {"max_dim": D + 1},
        {"restarts": 0},
        {"check_every": 0},
        {"rtol": -1.0},
        {"rtol": math.nan},
        {"atol": math.inf},
        {"rcond": -1.0},
        {"stop": "never"},
        {"stop": "subdiag", "verify": True},
        {"x0": b[:2]},
    ):
        with pytest.raises(ValueError):
            gmres(never, b, **{"max_dim": 3, "rtol": 1e-3, **wrong})
    with pytest.raises(TypeError, match="verify must be True or False"):
        gmres(never, b, max_dim=3, rtol=1e-3, verify="no")
