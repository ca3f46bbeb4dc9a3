"""Eigenpairs against autograd's Hessian and eigh."""

from __future__ import annotations

import pytest
import torch

from soatfast.gradients import InputGradient, count_passes
from soatfast.solvers.curvature import top_eigenpair
from tests.nets import batch, hessians, quadratic, relu_net, smooth_net


def spectra(model, x, y):
    return torch.linalg.eigvalsh(hessians(model, x, y))


@pytest.mark.parametrize("scheme", ["exact", "cd", "fe"])
@pytest.mark.parametrize("net", [relu_net, smooth_net])
def test_lanczos_finds_both_ends(net, scheme):
    model, (x, y) = net(), batch(n=5)
    values = spectra(model, x, y)
    with InputGradient(model) as oracle:
        largest = top_eigenpair(oracle, x, y, max_dim=16, scheme=scheme)
        extreme = top_eigenpair(oracle, x, y, max_dim=16, scheme=scheme, which="magnitude")
    tolerance = {"exact": 1e-9}.get(scheme, 1e-3)
    torch.testing.assert_close(largest.value, values[:, -1], rtol=tolerance, atol=tolerance)
    k = values.abs().argmax(1, keepdim=True)
    torch.testing.assert_close(extreme.value, values.gather(1, k).squeeze(1), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(largest.vector.flatten(1).norm(dim=1), torch.ones(5).double())


def test_the_residual_bounds_the_error():
    model, (x, y) = smooth_net(), batch(n=5)
    values = spectra(model, x, y)
    with InputGradient(model) as oracle:
        for max_dim in (2, 4, 8):
            found = top_eigenpair(oracle, x, y, max_dim=max_dim, scheme="exact", which="magnitude")
            distance = (values - found.value.unsqueeze(1)).abs().amin(1)
            assert (distance <= found.residual * (1 + 1e-6) + 1e-12).all()


def test_a_negative_definite_hessian_has_a_negative_largest_eigenvalue():
    """Also where the space is exhausted before max_dim: nothing of the padding is an eigenvalue."""
    objective = lambda z, y: -0.5 * (z * z * torch.tensor([1.0, 1.0, 3.0, 3.0]).to(z)).sum(1)  # noqa: E731
    x, y = torch.rand(3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    with InputGradient(torch.nn.Identity(), objective) as oracle:
        found = top_eigenpair(oracle, x, y, max_dim=4, scheme="exact")
    torch.testing.assert_close(found.value, torch.full((3,), -1.0, dtype=torch.float64))


def test_power_iteration_agrees():
    objective, h, _ = quadratic()
    values = torch.linalg.eigvalsh(h)
    x, y = torch.rand(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    with InputGradient(torch.nn.Identity(), objective) as oracle:
        found = top_eigenpair(oracle, x, y, method="power", which="magnitude", max_dim=300, h=1e-3)
    torch.testing.assert_close(found.value, values[values.abs().argmax()].expand(4), rtol=1e-4, atol=0)
    assert (found.residual < 1e-2).all()


def test_passes_and_errors():
    model, (x, y) = smooth_net(), batch()
    with count_passes(model) as passes, InputGradient(model) as oracle:
        top_eigenpair(oracle, x, y, max_dim=5)
        assert (passes.forward, passes.backward_input) == (6, 6)
        with pytest.raises(ValueError, match='power iteration takes which="magnitude"'):
            top_eigenpair(oracle, x, y, method="power")
        with pytest.raises(ValueError, match='method must be "lanczos" or "power"'):
            top_eigenpair(oracle, x, y, method="arnoldi")
        with pytest.raises(ValueError, match='which must be "largest" or "magnitude"'):
            top_eigenpair(oracle, x, y, which="smallest")
        with pytest.raises(ValueError, match="max_dim must lie in"):
            top_eigenpair(oracle, x, y, max_dim=17)


def test_the_history_of_the_power_steps_is_the_plain_loops():
    objective, h, _ = quadratic(indefinite=False)
    x, y = torch.rand(4, 6, dtype=torch.float64), torch.zeros(4, dtype=torch.long)
    options = {"method": "power", "which": "magnitude", "max_dim": 7, "h": 1e-3}
    with InputGradient(torch.nn.Identity(), objective) as oracle:
        found = top_eigenpair(oracle, x, y, **options, history=True, generator=torch.Generator().manual_seed(0))
        silent = top_eigenpair(oracle, x, y, **options, generator=torch.Generator().manual_seed(0))
    u = torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(0))
    u = u / u.norm(dim=1, keepdim=True)
    for i in range(7):
        w = u @ h
        torch.testing.assert_close(found.rayleigh[:, i], (w * u).sum(1), rtol=1e-6, atol=1e-8)
        w = w / w.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found.changes[:, i], (w - u).norm(dim=1), rtol=1e-4, atol=1e-7)
        u = w
    assert silent.changes is None and silent.rayleigh is None and torch.equal(silent.value, found.value)
    assert (found.changes[:, -1] < found.changes[:, 0]).all()


def test_a_negative_eigenvalue_turns_the_vector_round_in_every_step():
    objective = lambda z, y: -(z * z * torch.tensor([3.0, 1.0]).to(z)).sum(1)  # noqa: E731
    x, y = torch.rand(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    with InputGradient(torch.nn.Identity(), objective) as oracle:
        found = top_eigenpair(oracle, x, y, method="power", which="magnitude", max_dim=30, history=True, h=1e-3)
        with pytest.raises(ValueError, match="it takes method=\"power\", got 'lanczos'"):
            top_eigenpair(oracle, x, y, max_dim=2, history=True)
    torch.testing.assert_close(found.changes[:, -1], torch.full((2,), 2.0).double())
