"""SORA against its formula, its state against plain sums, and the step length against the maximum of a parabola."""

import dataclasses
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from soatfast.gradients import count_passes
from soatfast.losses import SORA, SORAState
from tests.losses.test_trades import gradients, norm_net
from tests.nets import batch, linear_net, relu_net, slow_gradient, smooth_net


def written_out(model, x, y, p, eps, share, longest, seed):
    """(loss, g, g', d): one draw for the start (for p = 2 after the radii), one for the length."""
    torch.manual_seed(seed)
    if p == math.inf:
        start = x + eps * torch.empty_like(x).uniform_(-1, 1)
    else:
        radius = torch.empty(len(x), dtype=x.dtype).uniform_()
        direction = torch.empty_like(x).normal_()
        rows = [eps * r * d / d.norm() for r, d in zip(radius, direction, strict=True)]
        start = x + torch.stack(rows)
    start = start.clamp(0, 1)
    g = slow_gradient(model, start, y)
    d = g.sign() if p == math.inf else g / g.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    x_adv = (start + share * longest * torch.empty_like(x).uniform_() * d).clamp(0, 1)
    return F.cross_entropy(model(x_adv), y), g, slow_gradient(model, x_adv, y), d


def figures(g, h, d):
    ratios, cosines = [], []
    for a, b, c in zip(g.flatten(1), h.flatten(1), d.flatten(1), strict=True):
        ratios.append(min(1.0, max(-1.0, (c @ b / (c @ a)).item())))
        cosines.append((a @ b / (a.norm() * b.norm())).item())
    return sum(ratios) / len(ratios), sum(cosines) / len(cosines)


@pytest.mark.parametrize("p", [math.inf, 2])
@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize(("start", "share"), [(0.99, 1.0), (0.9, 0.2), (0.0, 0.02)])
def test_equals_its_formula_in_value_gradient_and_state(p, mode, start, share):
    model, (x, y) = smooth_net(), batch()
    loss = SORA(eps=0.2, p=p, mode=mode, state=SORAState(start))
    expected, g, h, d = written_out(model, x, y, p, 0.2, share, 0.4, seed=5)
    torch.manual_seed(5)
    actual = loss(model, x, y)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)  # rho is in float32
    rows = gradients(model, actual)
    for a, b in zip(rows, gradients(model, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    torch.manual_seed(5)
    loss.state.reset()
    loss(model, x, y).backward()
    rho, align = figures(g, h, d)
    assert loss.state.rho.item() == pytest.approx(0.95 * start + 0.05 * rho, abs=1e-6)
    assert loss.state.pert_align.item() == pytest.approx(align, abs=1e-6)


@pytest.mark.parametrize(("rho", "share"), [(0.9, 0.2), (0.98, 1.0), (0.99, 1.0), (1.0, 1.0), (0.0, 0.02), (-1, 0.01)])
def test_share_of_the_longest_step(rho, share):
    start = torch.zeros(2000, 1, dtype=torch.float64)
    loss = SORA(eps=0.1, bounds=(-1, 1), state=SORAState(rho))
    x_adv = loss._step(start, torch.ones_like(start))
    assert x_adv.max() <= share * 0.2 * (1 + 1e-6) and x_adv.max() > 0.99 * share * 0.2


def test_rho_gives_the_maximum_along_the_step():
    """On a concave parabola a / (1 - rho) is where the loss along d is largest, whatever a was."""
    torch.manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64)
    h, g = -root @ root.T, torch.randn(6, dtype=torch.float64)
    d = g.sign()
    for a in (0.01, 0.1, 1.0):
        state = SORAState(start=0.0, decay=0.0)
        after = g + a * h @ d
        ratio = (d @ after / (d @ g)).item()
        best = -(d @ g) / (d @ h @ d)
        assert a / (1 - ratio) == pytest.approx(best.item())
        state.update(g[None], after[None], d[None])
        assert state.rho.item() == pytest.approx(max(-1.0, ratio), abs=1e-6)


def test_a_linear_model_has_rho_and_alignment_of_nearly_one():
    model, (x, y) = linear_net(), batch(classes=2)
    loss = SORA(eps=1e-4)
    for _ in range(3):
        loss(model, x, y).backward()
    assert loss.state.pert_align.item() == pytest.approx(1, abs=1e-5)
    assert 0.99 <= loss.state.rho.item() < 1


@pytest.mark.parametrize("factor", [1 / 4, 2.0**16])
def test_a_factor_on_the_loss_leaves_the_state_alone(factor):
    states = []
    for scale in (1.0, factor):
        model, (x, y) = smooth_net(), batch()
        loss = SORA(eps=0.3)
        torch.manual_seed(0)
        (scale * loss(model, x, y)).backward()
        states.append(loss.state.state_dict())
    assert states[0] == pytest.approx(states[1], rel=1e-6)


def test_only_a_backward_with_finite_gradients_counts():
    model, (x, y) = relu_net(), batch()
    loss = SORA(eps=0.1)
    loss(model, x, y)
    with torch.no_grad():
        loss(model, x, y)
    (math.inf * loss(model, x, y)).backward()
    (0 * loss(model, x, y)).backward()
    assert loss.state.rho.item() == pytest.approx(0.99) and math.isnan(loss.state.pert_align.item())
    loss(model, x, y).backward()
    assert loss.state.rho.item() != pytest.approx(0.99) and not math.isnan(loss.state.pert_align.item())


def test_a_sample_without_a_gradient_counts_as_zero():
    state = SORAState(decay=0.0)
    g = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    state.update(g, torch.tensor([[1.0, 0.0], [1.0, 1.0]]), g.sign())
    assert state.state_dict() == {"rho": 0.5, "pert_align": 0.5}


def test_passes_are_two_forwards_and_two_backwards():
    model, (x, y) = norm_net().train(), batch()
    loss = SORA(eps=0.1)
    with count_passes(model) as passes:
        loss(model, x, y).backward()
    assert passes.total() == loss.passes(6)
    assert (passes.forward, passes.backward_input, passes.backward_parameters) == (2, 1, 1)
    assert model[2].num_batches_tracked == 1 and all(m.training for m in model.modules())


@given(
    st.floats(0, 0.5),
    st.sampled_from([math.inf, 2]),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 10**6),
)
def test_the_training_points_are_in_the_box_and_within_eps_and_the_longest_step(eps, p, dtype, seed):
    torch.manual_seed(seed)
    model, (x, y) = relu_net(dtype), batch(n=5, dtype=dtype, seed=seed)
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    value = SORA(eps=eps, p=p)(model, x, y)
    start, x_adv = seen
    assert value.isfinite() and x_adv.dtype == dtype
    rounding = 2**-8 if dtype == torch.bfloat16 else 1e-6
    for point, radius in ((start, eps), (x_adv, 3 * eps)):
        assert point.min() >= 0 and point.max() <= 1
        size = (point.double() - x.double()).flatten(1)
        assert (size.abs().amax(1) if p == math.inf else size.norm(dim=1)).max() <= radius + 4 * rounding


def test_samples_do_not_see_each_other_but_in_rho(monkeypatch):
    monkeypatch.setattr(SORA, "_start", lambda self, x: (x + 0.05 * (1e4 * x).sin()).clamp(0, 1))
    monkeypatch.setattr(SORA, "_step", lambda self, x, d: (x + 0.1 * d).clamp(0, 1))
    model, (x, y) = smooth_net(), batch()
    loss = SORA(eps=0.1)
    alone = [loss(model, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    torch.testing.assert_close(loss(model, x, y), torch.stack(alone).mean())


def test_per_sample_radius_ramp_and_state():
    model, (x, y) = relu_net(), batch(n=3)
    loss = SORA(eps=0.2)
    ramp = loss.with_eps(0.1)
    assert ramp == dataclasses.replace(loss, eps=0.1) and ramp.state is loss.state
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    loss.with_eps(torch.tensor([0.0, 0.1, 0.2]))(model, x, y)
    assert torch.equal(seen[1][0], x[0])
    with pytest.raises(ValueError, match=r"eps must be .* shape \(\) or \(3,\), got \(2,\)"):
        loss.with_eps(torch.tensor([0.1, 0.2]))(model, x, y)
    with pytest.raises(NotImplementedError, match="SORA has no attack steps"):
        loss.with_steps(2)


def test_state_is_saved_and_loaded_and_does_not_show_in_the_options():
    model, (x, y) = relu_net(), batch()
    loss = SORA(eps=0.1)
    before = repr(loss)
    loss(model, x, y).backward()
    assert repr(loss) == before and "SORAState(start=0.99, decay=0.95)" in before
    other = SORAState()
    other.load_state_dict(loss.state.state_dict())
    assert torch.equal(other.rho, loss.state.rho) and torch.equal(other.pert_align, loss.state.pert_align)
    assert torch.equal(pickle.loads(pickle.dumps(loss)).state.rho, other.rho)
    other.reset()
    assert other.rho == SORAState().rho


def test_own_generator_leaves_the_global_one_alone():
    model, (x, y) = relu_net(), batch()
    values = []
    for _ in range(2):
        loss = SORA(eps=0.1, p=2, generator=torch.Generator().manual_seed(3))
        before = torch.get_rng_state()
        values.append(loss(model, x, y))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*values)


@pytest.mark.parametrize("call", [1, 2])
def test_an_exception_leaves_the_model_as_it_was(call):
    model, (x, y) = norm_net().train(), batch()
    calls = []

    def fail(*_):
        calls.append(0)
        if len(calls) == call:
            raise RuntimeError("out of memory")

    handle = model[4].register_forward_pre_hook(fail)
    loss = SORA(eps=0.1, mode="eval")
    with pytest.raises(RuntimeError, match="out of memory"):
        loss(model, x, y)
    handle.remove()
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert loss.state.rho == SORAState().rho


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: SORA(p=1), ValueError, "p must be 2 or math.inf for SORA, got 1"),
        (lambda: SORA(eps=-0.1), ValueError, "eps must be finite and >= 0, got -0.1"),
        (lambda: SORA(eps="0.1"), TypeError, "eps must be a number or a tensor, got str"),
        (lambda: SORA(max_step=-1.0), ValueError, "max_step must be finite and >= 0, got -1.0"),
        (lambda: SORA(gain=0), ValueError, "gain must be finite and > 0, got 0"),
        (lambda: SORA(gain="1"), TypeError, "gain must be a number, got str"),
        (lambda: SORA(mode="test"), ValueError, "mode must be"),
        (lambda: SORA(bounds=(1, 0)), ValueError, "bounds must be"),
        (lambda: SORA(state=0.99), TypeError, "state must be a SORAState, got float"),
        (lambda: SORAState(start=1.5), ValueError, r"start must be a number in \[-1, 1\], got 1.5"),
        (lambda: SORAState(decay=-0.1), ValueError, r"decay must be a number in \[0, 1\], got -0.1"),
        (lambda: SORAState(decay=1), ValueError, "decay must be less than 1, got 1"),
        (lambda: SORAState(start=None), TypeError, "start must be a number, got NoneType"),
    ],
)
def test_bad_fields(make, error, message):
    with pytest.raises(error, match=message):
        make()
