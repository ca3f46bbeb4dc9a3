"""Finite-difference Hessian-vector products against exact ones."""

import pytest
import torch

from soatfast.gradients import InputGradient, count_passes
from soatfast.solvers.hessian import automatic_step, hvp
from tests.nets import batch, quadratic, smooth_net


def vectors(n=4, d=6):
    generator = torch.Generator().manual_seed(5)
    x, v = (torch.rand(n, d, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, torch.zeros(n, dtype=torch.long), v


@pytest.mark.parametrize("scheme", ["fe", "cd", "exact"])
@pytest.mark.parametrize("h", [0.1, 1.0, 3.0])
def test_quadratic_is_exact_for_every_step(scheme, h):
    objective, hessian, _ = quadratic()
    x, y, v = vectors()
    with InputGradient(torch.nn.Identity(), objective) as oracle:
        torch.testing.assert_close(hvp(oracle, x, y, v, scheme=scheme, h=h), v @ hessian)


def test_truncation_errors_are_the_textbook_ones():
    x, y, v = vectors()
    h = 0.5
    with InputGradient(torch.nn.Identity(), lambda z, y: (z**3 / 6).sum(1)) as oracle:
        torch.testing.assert_close(hvp(oracle, x, y, v, scheme="fe", h=h) - x * v, h * v**2 / 2)
        torch.testing.assert_close(hvp(oracle, x, y, v, scheme="cd", h=h), x * v)
    with InputGradient(torch.nn.Identity(), lambda z, y: (z**4 / 24).sum(1)) as oracle:
        torch.testing.assert_close(hvp(oracle, x, y, v, scheme="cd", h=h) - x**2 / 2 * v, h**2 * v**3 / 6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 7e-2)])
@pytest.mark.parametrize("scheme", ["fe", "cd"])
def test_automatic_step_on_a_smooth_network(scheme, dtype, tolerance):
    model = smooth_net(dtype, shape=(1, 28, 28))
    x, y = batch(dtype=dtype, shape=(1, 28, 28))
    v = torch.randn_like(x) * torch.tensor([1e-3, 1.0, 1e3, 1.0, 1.0, 1.0], dtype=dtype).view(-1, 1, 1, 1)
    with InputGradient(model) as oracle:
        exact = hvp(oracle, x, y, v, scheme="exact").flatten(1)
        error = (hvp(oracle, x, y, v, scheme=scheme).flatten(1) - exact).norm(dim=1) / exact.norm(dim=1)
    assert (error < tolerance).all(), error


def test_automatic_step_of_a_zero_vector():
    x, y, v = vectors()
    assert automatic_step(torch.zeros(2, 3)).tolist() == [1.0, 1.0]
    assert automatic_step(torch.zeros(0, 3)).shape == (0,)
    objective, _, _ = quadratic()
    with InputGradient(torch.nn.Identity(), objective) as oracle:
        assert not hvp(oracle, x, y, torch.zeros_like(v)).any()


def test_passes_and_recycling():
    model, (x, y) = smooth_net(), batch()
    v = torch.ones_like(x)
    expected = {
        ("fe", False): (2, 2, 12),
        ("fe", True): (1, 1, 6),
        ("cd", False): (1, 1, 12),
        ("exact", False): (1, 2, 6),
    }
    with InputGradient(model) as oracle:
        _, g0 = oracle(x, y)
        for (scheme, recycled), (forward, backward, samples) in expected.items():
            with count_passes(model) as passes:
                hvp(oracle, x, y, v, scheme=scheme, g0=g0 if recycled else None)
            assert (passes.forward, passes.backward_input, passes.forward_samples) == (forward, backward, samples)
            assert passes.backward_parameters == 0


def test_recycled_gradient_gives_the_same_product():
    model, (x, y) = smooth_net(), batch()
    with InputGradient(model) as oracle:
        _, g0 = oracle(x, y)
        v = torch.ones_like(x)
        assert torch.equal(hvp(oracle, x, y, v, g0=g0), hvp(oracle, x, y, v))


def test_bad_arguments():
    x, y, v = vectors()
    with InputGradient(torch.nn.Identity()) as oracle:
        with pytest.raises(ValueError, match="v must have x's shape"):
            hvp(oracle, x, y, v[:, :2])
        with pytest.raises(ValueError, match="scheme must be"):
            hvp(oracle, x, y, v, scheme="euler")
        with pytest.raises(ValueError, match="h must be finite and > 0"):
            hvp(oracle, x, y, v, h=0.0)
