"""Eigenpairs, density, profile, trace and Frobenius norm against dense Hessians in float64."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from soatfast.gradients import InputGradient, count_passes
from soatfast.solvers import (
    eigenvalue_profile,
    frobenius_norm,
    hessian_trace,
    lanczos,
    spaces,
    spectral_density,
    top_eigenpair,
    top_eigenpairs,
)
from tests.nets import batch, hessians, quadratic, relu_net, smooth_net

SHAPE, D, N = (1, 8, 8), 64, 4
NETS = {"relu": relu_net, "smooth": smooth_net}


@functools.cache
def problem(net: str) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """(model, x, y, dense Hessians (N, D, D))."""
    model, (x, y) = NETS[net](shape=SHAPE), batch(N, SHAPE)
    return model, x, y, hessians(model, x, y)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Eigenpairs


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("net", NETS)
def test_eigenpairs_are_the_dense_ones(net: str, which: str) -> None:
    """Of a Hessian of rank 3, too: what is behind it is 0, as often as asked."""
    model, x, y, dense = problem(net)
    values = torch.linalg.eigvalsh(dense)
    order = {"largest": -values, "smallest": values, "magnitude": -values.abs()}[which].argsort(1)[:, :5]
    with InputGradient(model) as oracle:
        found = top_eigenpairs(oracle, x, y, 5, which=which, max_dim=D, generator=generator())
    scale = float(values.abs().max())
    torch.testing.assert_close(found.values, values.gather(1, order), rtol=1e-8, atol=1e-12 * scale)
    u = found.vectors.flatten(2)
    torch.testing.assert_close(u @ u.transpose(1, 2), torch.eye(5).double().expand(N, 5, 5), rtol=0, atol=1e-10)
    torch.testing.assert_close(u @ dense, found.values.unsqueeze(2) * u, rtol=0, atol=1e-9 * scale)
    assert (found.residuals < 1e-9 * scale).all()


def test_a_few_products_find_the_ends_of_the_spectrum() -> None:
    model, x, y, dense = problem("smooth")
    values = torch.linalg.eigvalsh(dense).flip(1)
    with InputGradient(model) as oracle, count_passes(model) as passes:
        found = top_eigenpairs(oracle, x, y, generator=generator())
    assert (passes.forward, passes.backward_input) == (1, 1 + 20)
    torch.testing.assert_close(found.values, values[:, :3], rtol=1e-8, atol=0)


def test_the_residual_bounds_the_distance_to_an_eigenvalue() -> None:
    model, x, y, dense = problem("smooth")
    values = torch.linalg.eigvalsh(dense)
    with InputGradient(model) as oracle:
        for m in (2, 4, 8):
            found = top_eigenpairs(oracle, x, y, 2, max_dim=m, which="magnitude", generator=generator(m))
            distance = (values.unsqueeze(1) - found.values.unsqueeze(2)).abs().amin(2)
            assert (distance <= found.residuals * (1 + 1e-6) + 1e-12).all()
            product = torch.einsum("bkd,bde->bke", found.vectors.flatten(2), dense)
            true = (product - found.values.unsqueeze(2) * found.vectors.flatten(2)).norm(dim=2)
            torch.testing.assert_close(found.residuals, true, rtol=1e-6, atol=1e-12)
    assert found.residuals.max() > 1e-6, "not converged: the test could fail"


@pytest.mark.parametrize("seed", [0, 1, lanczos._SEED])  # the last draws the process's random vectors as its start
def test_repeated_eigenvalues_come_out_as_often_as_they_are(seed: int) -> None:
    scale = torch.tensor([5.0, 5.0, 5.0, 1.0, 1.0, -2.0, -2.0, 0.0], dtype=torch.float64)
    with InputGradient(nn.Identity(), lambda z, y: 0.5 * (z * z * scale).sum(1)) as oracle:
        x, y = torch.rand(3, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
        found = top_eigenpairs(oracle, x, y, 8, generator=generator(seed))
        expected = scale.sort(descending=True).values.expand(3, 8)
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)
        found = top_eigenpairs(oracle, x, y, 4, max_dim=6, generator=generator(seed))
        torch.testing.assert_close(found.values[:, 0], torch.full((3,), 5.0).double())
    with InputGradient(nn.Identity(), lambda z, y: z.sum(1)) as oracle:  # no curvature at all
        assert not top_eigenpairs(oracle, x, y, 3).values.any()


@pytest.mark.parametrize("scheme", ["fe", "cd"])
def test_differences_find_them_too(scheme: str) -> None:
    model, x, y, dense = problem("smooth")
    with InputGradient(model) as oracle:
        found = top_eigenpairs(oracle, x, y, 2, max_dim=D, scheme=scheme, generator=generator())
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(dense).flip(1)[:, :2], rtol=1e-3, atol=1e-4)


def test_a_sample_that_is_not_finite_is_nan_and_changes_no_other() -> None:
    model, x, y, _ = problem("smooth")
    spoiled = x.clone()
    spoiled[1, 0, 0, 0] = math.nan
    with InputGradient(model) as oracle:
        for call in (
            lambda z: top_eigenpairs(oracle, z, y, 2, max_dim=D, generator=generator()).values,
            lambda z: spectral_density(oracle, z, y, max_dim=5, generator=generator()).moment(2).unsqueeze(1),
            lambda z: eigenvalue_profile(oracle, z, y),
            lambda z: hessian_trace(oracle, z, y, generator=generator()).value.unsqueeze(1),
            lambda z: hessian_trace(oracle, z, y, method="hutch++", generator=generator()).value.unsqueeze(1),
            lambda z: frobenius_norm(oracle, z, y, generator=generator()).value.unsqueeze(1),
        ):
            clean, dirty = call(x), call(spoiled)
            assert dirty[1].isnan().all() and clean.isfinite().all()
            torch.testing.assert_close(dirty[[0, 2, 3]], clean[[0, 2, 3]], rtol=1e-9, atol=1e-12)


# Density and profile


@pytest.mark.parametrize("net", NETS)
def test_moments_of_the_quadrature_are_those_of_the_random_vectors(net: str) -> None:
    """<v, H^j v> up to j = 2 m - 1, for the vectors that the generator gives."""
    model, x, y, dense = problem(net)
    m = 4
    with InputGradient(model) as oracle:
        found = spectral_density(oracle, x, y, max_dim=m, probes=1, generator=generator(3))
    v = torch.empty_like(x).normal_(generator=generator(3)).flatten(1)
    v, power = v / v.norm(dim=1, keepdim=True), v / v.norm(dim=1, keepdim=True)
    for order in range(2 * m):
        torch.testing.assert_close(found.moment(order), (v * power).sum(1), rtol=1e-9, atol=1e-12)
        power = (dense @ power.unsqueeze(2)).squeeze(2)
    if net == "smooth":  # of more than m eigenvalues: the next moment is another, and the test could fail
        assert not torch.allclose(found.moment(2 * m), (v * power).sum(1), rtol=1e-3, atol=0)


def test_the_density_of_many_vectors_is_the_spectrums() -> None:
    """Moments within three standard errors, and the smoothed curve near that of the eigenvalues."""
    model, x, y, dense = problem("smooth")
    values = torch.linalg.eigvalsh(dense)
    with InputGradient(model) as oracle:
        runs = [spectral_density(oracle, x, y, max_dim=12, probes=1, generator=generator(s)) for s in range(100)]
    for order in (1, 2, 3):
        draws = torch.stack([run.moment(order).mean() for run in runs])
        assert (draws.mean() - (values**order).mean()).abs() < 3 * draws.std() / 10, order
    width = 0.1 * float(values.abs().max())
    at = torch.linspace(float(values.min()), float(values.max()), 50).double()
    mean = torch.stack([run.density(at, width) for run in runs]).mean(0)
    exact = (-0.5 * ((at.view(1, -1, 1) - values.unsqueeze(1)) / width) ** 2).exp().mean(2)
    exact = exact / (width * math.sqrt(2 * math.pi))
    assert (mean - exact).abs().max() < 0.05 * exact.max()


@pytest.mark.parametrize("net", NETS)
def test_the_profile_is_the_dense_spectrum(net: str) -> None:
    model, x, y, dense = problem(net)
    with InputGradient(model) as oracle, count_passes(model) as passes:
        found = eigenvalue_profile(oracle, x, y)
    values = torch.linalg.eigvalsh(dense).flip(1)
    torch.testing.assert_close(found, values, rtol=1e-8, atol=1e-12 * float(values.abs().max()))
    assert (passes.forward, passes.backward_input) == (1, 1 + D)


# Trace and Frobenius norm


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
@pytest.mark.parametrize("net", NETS)
def test_traces_of_100_seeds_are_within_three_standard_errors(net: str, method: str) -> None:
    model, x, y, dense = problem(net)
    exact = dense.diagonal(dim1=1, dim2=2).sum(1)
    with InputGradient(model) as oracle:
        runs = [hessian_trace(oracle, x, y, method=method, products=6, generator=generator(s)) for s in range(100)]
    draws = torch.stack([run.value for run in runs])
    error = draws.std(0) / 10
    assert ((draws.mean(0) - exact).abs() < 3 * error + 1e-9 * exact.abs()).all()
    claimed = torch.stack([run.error for run in runs]).square().mean(0).sqrt()
    assert ((claimed > 0.5 * draws.std(0) - 1e-12) & (claimed < 2 * draws.std(0) + 1e-12)).all(), "the error is one"


def test_hutch_plus_plus_is_exact_where_the_rank_is_low() -> None:
    """4 classes and ReLUs: rank 3, found by 3 products of 9."""
    model, x, y, dense = problem("relu")
    exact = dense.diagonal(dim1=1, dim2=2).sum(1)
    with InputGradient(model) as oracle, count_passes(model) as passes:
        found = hessian_trace(oracle, x, y, method="hutch++", products=9, generator=generator())
        rough = hessian_trace(oracle, x, y, products=9, generator=generator())
    torch.testing.assert_close(found.value, exact, rtol=1e-9, atol=1e-12)
    assert (found.error < 1e-9 * exact).all() and ((rough.value - exact).abs() > 1e-3 * exact).any()
    assert passes.backward_input == 2 * (1 + 9)
    with InputGradient(model) as oracle:  # more products than dimensions
        torch.testing.assert_close(hessian_trace(oracle, x, y, method="hutch++", products=600).value, exact)


def test_the_square_of_the_frobenius_norm_has_no_bias() -> None:
    model, x, y, dense = problem("smooth")
    exact = dense.flatten(1).norm(dim=1)
    with InputGradient(model) as oracle:
        runs = [frobenius_norm(oracle, x, y, products=4, generator=generator(s)) for s in range(100)]
    squares = torch.stack([run.value for run in runs]).square()
    assert ((squares.mean(0) - exact**2).abs() < 3 * squares.std(0) / 10).all()
    spread = torch.stack([run.value for run in runs]).std(0)
    claimed = torch.stack([run.error for run in runs]).mean(0)
    assert ((claimed > 0.5 * spread) & (claimed < 2 * spread)).all()


# Bad input


class NoSecondDerivative(nn.Module):
    """Its backward is made once, and says so; or has no graph, and says nothing."""

    def __init__(self, silent: bool):
        super().__init__()
        mark = (lambda f: f) if silent else torch.autograd.function.once_differentiable

        class Square(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):  # type: ignore[no-untyped-def]
                ctx.save_for_backward(x)
                return x**2

            @staticmethod
            @mark
            def backward(ctx, g):  # type: ignore[no-untyped-def]
                (x,) = ctx.saved_tensors
                return torch.from_numpy(2 * x.detach().numpy() * g.detach().numpy())

        self.square = Square
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.square.apply(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("silent", [False, True])
def test_a_model_without_second_derivatives_is_said(silent: bool) -> None:
    model, (x, y) = NoSecondDerivative(silent), batch()
    for call in (top_eigenpairs, spectral_density, eigenvalue_profile, hessian_trace, frobenius_norm):
        options = {"max_dim": 3} if call is spectral_density else {}
        with InputGradient(model) as oracle, pytest.raises(ValueError) as error:
            call(oracle, x, y, **options)
        assert "cannot be differentiated twice" in str(error.value) and "\n" not in str(error.value)
    with InputGradient(model) as oracle:
        assert top_eigenpairs(oracle, x, y, scheme="cd").values.abs().min() > 0


def test_a_loss_without_curvature_is_no_mistake() -> None:
    model, (x, y) = relu_net(), batch()
    with InputGradient(model, "margin") as oracle:
        assert not top_eigenpairs(oracle, x, y, 2).values.any()
    with InputGradient(nn.Identity(), lambda z, y: (z**3 + z).flatten(1).sum(1)) as oracle:  # flat at 0 only
        assert not top_eigenpairs(oracle, torch.zeros_like(x), y, 2).values.any()


class Silent(nn.Module):
    """No pass may be made."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a pass was made")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda o, x, y: top_eigenpairs(o, x, y, 17), r"k must lie in 1..16, the entries of a sample, got 17"),
        (lambda o, x, y: top_eigenpairs(o, x, y, 0), r"k must lie in 1..16"),
        (lambda o, x, y: top_eigenpairs(o, x, y, 4, max_dim=3), r"k must be at most max_dim = 3, got 4"),
        (lambda o, x, y: top_eigenpairs(o, x, y, max_dim=17), r"max_dim must lie in 1..16"),
        (lambda o, x, y: top_eigenpairs(o, x, y, which="top"), r'which must be "largest", "smallest" or'),
        (lambda o, x, y: top_eigenpairs(o, x, y, scheme="gn"), r'scheme must be "fe", "cd" or "exact", got'),
        (lambda o, x, y: top_eigenpairs(o, x, y, h=0.0), r"h must be finite and > 0, got 0.0"),
        (lambda o, x, y: top_eigenpair(o, x, y, max_dim=0), r"max_dim must lie in 1..16"),
        (lambda o, x, y: top_eigenpair(o, x, y, max_dim=17), r"max_dim must lie in 1..16"),
        (
            lambda o, x, y: top_eigenpair(o, x, y, max_dim=0, method="power", which="magnitude"),
            r"max_dim must be at least 1, got 0",
        ),
        (lambda o, x, y: top_eigenpair(o, x, y, h=-1.0), r"h must be finite and > 0"),
        (lambda o, x, y: spectral_density(o, x, y, max_dim=0), r"max_dim must lie in 1..16"),
        (lambda o, x, y: spectral_density(o, x, y, max_dim=4, probes=0), r"probes must be at least 1"),
        (lambda o, x, y: hessian_trace(o, x, y, products=1), r"products must be at least 2"),
        (lambda o, x, y: hessian_trace(o, x, y, products=5, method="hutch++"), r"products must be at least 6"),
        (lambda o, x, y: hessian_trace(o, x, y, method="hutch"), r'method must be "hutchinson" or "hutch\+\+"'),
        (lambda o, x, y: frobenius_norm(o, x, y, products=0), r"products must be at least 2"),
    ],
)
def test_mistakes_are_said_before_the_first_pass(call, message: str) -> None:
    x, y = batch()
    with InputGradient(Silent()) as oracle, pytest.raises(ValueError, match=message):
        call(oracle, x, y)


def test_memory_is_said_before_it_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spaces, "_SMALL", 0)
    x, y = batch()  # 6 samples of 16 entries, 8 bytes each
    monkeypatch.setattr(spaces, "_free_bytes", lambda device: 4 * 16 * 16 * 16)
    with InputGradient(relu_net()) as oracle:
        assert eigenvalue_profile(oracle, x[:4], y[:4]).shape == (4, 16)
    with InputGradient(Silent()) as oracle:
        with pytest.raises(MemoryError, match=r"the Hessians of 6 samples take 24576 bytes .*batches of 4 would fit"):
            eigenvalue_profile(oracle, x, y)
        monkeypatch.setattr(spaces, "_free_bytes", lambda device: 100)
        with pytest.raises(MemoryError, match=r"the spaces of Hutch.* not even one sample fits"):
            hessian_trace(oracle, x, y, method="hutch++", products=6)


def test_the_quadratics_matrix_is_found_in_float32() -> None:
    objective, h, _ = quadratic()
    x, y = torch.rand(4, 6), torch.zeros(4, dtype=torch.long)
    with InputGradient(nn.Identity(), objective) as oracle:
        found = top_eigenpairs(oracle, x, y, 6)
        assert found.values.dtype == torch.float32
        expected = torch.linalg.eigvalsh(h).flip(0).float().expand(4, 6)
        torch.testing.assert_close(found.values, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            hessian_trace(oracle, x, y, method="hutch++", products=18).value, h.trace().expand(4), rtol=1e-4, atol=1e-4
        )
