"""SOAE against pinv, eigenvalues and closed forms; its passes, stopping rules and precision."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from soatfast import ops
from soatfast.attacks import SOAE
from soatfast.gradients import InputGradient, count_passes
from soatfast.losses import AdversarialTraining
from soatfast.solvers.quadratic import trust_region
from tests.nets import batch, hessians, linear_net, quadratic, relu_net, smooth_net


def direction(attack, model, x, y, reach=1.0):
    with attack.oracle(model) as oracle:
        g, d = attack._direction(oracle, x, y, None, reach)
    return g.flatten(1), d.flatten(1)


@pytest.mark.parametrize("net", [linear_net, relu_net])
@pytest.mark.parametrize("scheme", ["exact", "fe", "cd", "gn"])
def test_newton_direction_is_the_pseudo_inverses_and_gains_exp_loss_minus_1(net, scheme):
    """And its Krylov space has K - 1 dimensions at most: 4 classes, 3 products."""
    model, (x, y) = net(classes=4), batch(n=8)
    attack = SOAE(scheme=scheme, rtol=1e-8 if scheme == "exact" else 1e-4)
    with count_passes(model) as passes:
        g, d = direction(attack, model, x, y)
    if scheme == "exact":
        assert passes.backward_input <= 1 + 4
    with InputGradient(model) as oracle:
        loss = oracle.loss(x, y)
    tolerance = {"exact": 1e-6, "gn": 1e-6}.get(scheme, 2e-2)
    torch.testing.assert_close((g * d).sum(1), torch.expm1(loss), rtol=tolerance, atol=tolerance)
    if scheme in ("exact", "gn"):
        pinv = torch.linalg.pinv(hessians(model, x, y), rtol=1e-9)
        torch.testing.assert_close(d, (pinv @ g.unsqueeze(2)).squeeze(2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("net", [relu_net, smooth_net])
def test_trust_region_direction_reaches_the_eigen_decompositions_optimum(net):
    model, (x, y) = net(), batch(n=8)
    exact = hessians(model, x, y)

    def value(g, d):
        return (g * d).sum(1) + 0.5 * (d * (exact @ d.unsqueeze(2)).squeeze(2)).sum(1)

    attack = SOAE(variant="tr", scheme="exact", p=2, max_dim=8)
    g, d = direction(attack, model, x, y, reach=1.7)
    best = value(g, trust_region(exact, g, 1.7))
    assert (d.norm(dim=1) <= 1.7 * (1 + 1e-9)).all()
    assert (value(g, d) >= 0.9999 * best).all()
    step = 1.7 * g / g.norm(dim=1, keepdim=True)
    assert (value(g, d) >= value(g, step) - 1e-12).all(), "it holds the gradient's own step"


def test_linf_radius_is_that_of_the_ball_around_the_box():
    model, (x, y) = smooth_net(), batch()
    _, d = direction(SOAE(variant="tr", scheme="exact"), model, x, y, reach=0.1)
    torch.testing.assert_close(d.norm(dim=1), torch.full((6,), 0.1 * 4, dtype=torch.float64), rtol=1e-6, atol=0)


@pytest.mark.parametrize("variant", ["newton", "literal"])
def test_a_whole_step_on_a_quadratic_loss(variant):
    """x + H^{-1} g, where the gradient is 2 g, or x - H^{-1} g, where it is 0."""
    objective, _, _ = quadratic(indefinite=False)
    x = 0.5 * torch.ones(3, 6, dtype=torch.float64)
    attack = SOAE(variant=variant, scheme="exact", rtol=1e-12, objective=objective)
    y = torch.zeros(3, dtype=torch.long)
    with attack.oracle(torch.nn.Identity()) as oracle:
        g = oracle.gradient(x, y)
        d = attack._ascending(g, attack._direction(oracle, x, y, g, 1.0)[1])
        after = oracle.gradient(x + d, y)
    torch.testing.assert_close(after, 2 * g if variant == "newton" else torch.zeros_like(g), rtol=1e-8, atol=1e-8)


def test_raw_step_moves_by_eps_over_steps_times_the_direction():
    model, (x, y) = smooth_net(), batch()
    attack = SOAE(eps=0.01, p=2, steps=1, scheme="exact", step="raw")
    with attack.oracle(model) as oracle:
        g, d = attack._direction(oracle, x, y, None, 0.01)
        d = attack._ascending(g, d)
    expected = ops.project(x + 0.01 * d, x, 2, 0.01, exact=True)
    torch.testing.assert_close(attack(model, x, y), expected)


def test_newton_never_descends_and_literal_does():
    model, (x, y) = smooth_net(), batch(n=30)
    for variant, ascends in (("newton", True), ("literal", False)):
        attack = SOAE(eps=1e-4, p=2, steps=1, variant=variant, scheme="exact", bounds=(-1, 2))
        with attack.oracle(model) as oracle:
            change = oracle.loss(attack(model, x, y), y) - oracle.loss(x, y)
        assert (change > 0).all() if ascends else (change < 0).any()


def test_a_zero_or_spoiled_direction_is_the_gradient():
    attack = SOAE()
    g = torch.randn(3, 4)
    d = torch.stack([torch.zeros(4), torch.full((4,), math.nan), g[2]])
    assert torch.equal(attack._ascending(g, d), g)


@pytest.mark.parametrize(
    ("scheme", "forward", "samples"), [("fe", 2 * 4, 2 * 4), ("cd", 2 * 4, 2 * 7), ("exact", 2, 2), ("gn", 2, 2)]
)
def test_passes_where_nothing_stops_early(scheme, forward, samples):
    model, (x, y) = smooth_net(), batch(n=5)
    attack = SOAE(eps=0.1, steps=2, scheme=scheme, max_dim=3, rtol=0.0)
    with count_passes(model) as passes:
        attack(model, x, y)
    assert passes.total() == attack.passes(5, classes=4)
    assert (passes.forward, passes.forward_samples) == (forward, 5 * samples)
    assert passes.backward_parameters == 0


def test_solved_samples_save_passes():
    model, (x, y) = relu_net(classes=3), batch(n=5, classes=3)
    attack = SOAE(eps=0.1, steps=1, scheme="exact", max_dim=10, rtol=1e-6)
    with count_passes(model) as passes:
        attack(model, x, y)
    assert passes.backward_input <= 1 + 3 < attack.passes(5).backward_input
    for compact in (False, True):
        attack = SOAE(eps=0.1, steps=1, max_dim=10, rtol=1e-2, compact=compact)
        with count_passes(model) as passes:
            x_adv = attack(model, x, y)
        if not compact:
            plain, samples = x_adv, passes.forward_samples
    assert passes.forward_samples <= samples
    torch.testing.assert_close(x_adv, plain)


@pytest.mark.parametrize("variant", ["newton", "tr"])
def test_without_asking_every_product_is_made(variant):
    """As many as declared, and the same examples: 3 classes, so that 2 products solve every sample."""
    model, (x, y) = relu_net(classes=3), batch(n=5, classes=3)
    options = {"eps": 0.1, "steps": 1, "variant": variant, "scheme": "exact", "max_dim": 6, "rtol": 1e-6}
    attack = SOAE(check_every=None, **options)
    with count_passes(model) as passes:
        x_adv = attack(model, x, y)
    assert passes.total() == attack.passes(5)
    torch.testing.assert_close(x_adv, SOAE(**options)(model, x, y))
    with pytest.raises(ValueError, match="check_every must be at least 1, got 0"):
        SOAE(check_every=0)


@pytest.mark.parametrize("scheme", ["exact", "fe", "cd"])
@pytest.mark.parametrize("compact", [False, True])
def test_a_random_start_keeps_its_part_in_the_null_space(scheme, compact):
    """The paper's equation 8: delta_0 + K_m. GMRES changes the range of H only, so the rest is delta_0's own."""
    model, (x, y) = relu_net(), batch(n=5)
    dense = hessians(model, x, y)
    tight = {"rtol": 1e-10 if scheme == "exact" else 1e-5, "max_dim": 16, "scheme": scheme, "compact": compact}

    def run(seed, start=True):
        attack = SOAE(random_start=start, generator=torch.Generator().manual_seed(seed), **tight)
        return direction(attack, model, x, y, reach=0.05)[1]

    one, other, zero = run(0), run(1), run(0, start=False)
    assert not torch.allclose(one, other)
    image = lambda d: (dense @ d.unsqueeze(2)).squeeze(2)  # noqa: E731
    tolerance = 1e-6 if scheme == "exact" else 2e-2
    torch.testing.assert_close(image(one), image(zero), rtol=tolerance, atol=tolerance * float(image(zero).abs().max()))
    with count_passes(model) as passes:
        SOAE(eps=0.1, steps=2, max_dim=3, rtol=0.0, scheme=scheme, random_start=True, check_every=None)(model, x, y)
    expected = SOAE(eps=0.1, steps=2, max_dim=3, scheme=scheme, random_start=True).passes(5)
    assert passes.total() == expected
    moved = SOAE(eps=0.1, steps=2, random_start=True, p=2)(model, x, y) - x
    assert moved.isfinite().all() and (moved.flatten(1).norm(dim=1) <= 0.1 + 1e-9).all()


def test_subdiagonal_stop_is_absolute():
    model, (x, y) = smooth_net(), batch(n=5)
    counts = []
    for rtol in (1e-9, 1e9):
        with count_passes(model) as passes:
            SOAE(eps=0.1, steps=1, stop="subdiag", rtol=rtol, max_dim=4)(model, x, y)
        counts.append(passes.forward)
    assert counts == [5, 2]


def test_samples_are_independent():
    model, (x, y) = relu_net(), batch(n=5)
    for variant in ("newton", "tr"):
        attack = SOAE(eps=0.1, steps=2, variant=variant, scheme="exact")
        whole = attack(model, x, y)
        for i in range(5):
            torch.testing.assert_close(attack(model, x[i : i + 1], y[i : i + 1]), whole[i : i + 1])


def test_half_precision_models_run_in_float32_and_say_so():
    model, (x, y) = smooth_net(torch.float32), batch(dtype=torch.float32)
    half = smooth_net(torch.float32).bfloat16()
    expected = SOAE(eps=0.1, steps=1, variant="tr")(half.float(), x.bfloat16().float(), y)
    half = half.bfloat16()
    with pytest.warns(UserWarning, match="finite differences need float32"):
        x_adv = SOAE(eps=0.1, steps=1, variant="tr")(half, x.bfloat16(), y)
    assert x_adv.dtype == torch.bfloat16 and all(p.dtype == torch.bfloat16 for p in half.parameters())
    assert ((x_adv.float() - expected).abs() <= 2**-8).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SOAE(eps=0.1, steps=1, full_precision=False)(half, x.bfloat16(), y)
        SOAE(eps=0.1, steps=1)(model, x, y)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = SOAE(eps=0.1, steps=1)(model, x, y)
    assert torch.equal(inside, SOAE(eps=0.1, steps=1)(model, x, y)), "autocast has no part in it"


def test_two_classes_and_small_inputs():
    model, (x, y) = linear_net(classes=2, shape=(1, 1, 2)), batch(classes=2, shape=(1, 1, 2))
    for variant in ("newton", "tr", "literal"):
        for scheme in ("fe", "exact", "gn"):
            x_adv = SOAE(eps=0.1, steps=2, variant=variant, scheme=scheme)(model, x, y)
            assert x_adv.isfinite().all() and (x_adv - x).abs().max() <= 0.1 + 1e-9
    one = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2, 1)).double()
    up = one[1].weight.detach().view(1, 1, 1, 2).sign()  # one sigmoid unit: every direction is along its weights
    torch.testing.assert_close(SOAE(eps=0.1)(one, x, torch.zeros_like(y)), (x + 0.1 * up).clamp(0, 1))


def test_soat_trains():
    model, (x, y) = smooth_net(), batch()
    loss = AdversarialTraining(SOAE(eps=0.1, steps=1, variant="tr", max_dim=3, rtol=0.0))
    with count_passes(model) as passes:
        loss(model, x, y).backward()
    assert passes.total() == loss.passes(6)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bad_options_say_what_was_expected():
    for name, value in (("variant", "trust"), ("scheme", "fd"), ("stop", "never"), ("step", "sign")):
        with pytest.raises(ValueError, match=f"{name} must be one of .* got '{value}'"):
            SOAE(**{name: value})
    with pytest.raises(ValueError, match="max_dim must be at least 1, got 0"):
        SOAE(max_dim=0)
    with pytest.raises(ValueError, match=r"rtol must be finite and >= 0, got -0\.1"):
        SOAE(rtol=-0.1)
    with pytest.raises(ValueError, match="h must be finite and > 0"):
        SOAE(h=0.0)
    with pytest.raises(ValueError, match="p must be 1, 2 or"):
        SOAE(p=3)
    for wrong in ({"variant": "tr"}, {"scheme": "gn"}):
        with pytest.raises(ValueError, match="random_start is of GMRES"):
            SOAE(random_start=True, **wrong)
    model, (x, y) = relu_net(), batch()
    with pytest.raises(ValueError, match=r"max_dim must lie in 1\.\.16"):
        SOAE(max_dim=17)(model, x, y)
    with pytest.raises(ValueError, match='of objective "ce"'):
        SOAE(scheme="gn", objective="margin")(model, x, y)
