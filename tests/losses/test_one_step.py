"""N-FGSM, FGSM-RS, FGSM-PGI, GradAlign, ELLE and Free against their formulas, written out in plain PyTorch."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from soatfast.attacks import PGD
from soatfast.gradients import count_passes
from soatfast.losses import ELLE, FGSMPGI, NFGSM, AdversarialTraining, Free, FreeState, GradAlign
from soatfast.memory import PerturbationMemory
from soatfast.memory.crops import CropFlip
from tests.losses.oracles import Quadratic, assert_same, linear_loss, one_by_one, points
from tests.losses.test_trades import norm_net
from tests.nets import batch, relu_net, slow_gradient, smooth_net

EPS = 0.2
SIMPLE = [NFGSM(eps=EPS), GradAlign(eps=EPS), ELLE(eps=EPS), Free(eps=EPS)]


def noise(x):
    return torch.empty_like(x).uniform_(-1, 1)


def pgi(samples=20, eps=EPS, dtype=torch.float32, augment=None, **fields):
    return FGSMPGI(PerturbationMemory(samples, (1, 4, 4), dtype, augment=augment), eps=eps, **fields)


def attached(model, x, y):
    """Input gradient of one sample with its graph to the parameters."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(model(leaf), y), leaf, create_graph=True)[0]


# ------------------------------------------------------------------------------------------ formulas


@pytest.mark.parametrize("mode", ["keep", "eval", "train"])
@pytest.mark.parametrize(("width", "step"), [(2.0, 1.0), (0.0, 1.25), (0.5, 2.0)])
def test_n_fgsm_equals_its_formula(mode, width, step):
    model, (x, y) = smooth_net(), batch()
    torch.manual_seed(3)
    actual = NFGSM(eps=EPS, noise=width, step=step, mode=mode)(model, x, y)
    torch.manual_seed(3)
    z = (x + width * EPS * noise(x)).clamp(0, 1)
    x_adv = (z + step * EPS * slow_gradient(model, z, y).sign()).clamp(0, 1)
    assert_same(model, actual, F.cross_entropy(model(x_adv), y))
    assert (x_adv - x).abs().max() > EPS or width + step <= 1.25, "outside the ball on purpose"


def test_fgsm_rs_is_pgd_with_one_step():
    """Wong et al.: v uniform in the ball, v <- clip(v + 1.25 eps sgn(g), -eps, eps), kept in the box."""
    model, (x, y) = smooth_net(), batch()
    torch.manual_seed(3)
    actual = AdversarialTraining(PGD(eps=EPS, steps=1, step_size=1.25 * EPS))(model, x, y)
    torch.manual_seed(3)
    v = (x + EPS * noise(x)).clamp(0, 1) - x
    v = (v + 1.25 * EPS * slow_gradient(model, x + v, y).sign()).clamp(-EPS, EPS)
    assert_same(model, actual, F.cross_entropy(model((x + v).clamp(0, 1)), y))


@pytest.mark.parametrize("strength", [0.0, 0.2, 3.0])
def test_grad_align_equals_its_formula_with_double_backward(strength):
    model, (x, y) = smooth_net(), batch()
    torch.manual_seed(3)
    actual = GradAlign(eps=EPS, strength=strength)(model, x, y)
    torch.manual_seed(3)
    eta, total = EPS * noise(x), 0.0
    for i, (one, label) in enumerate(one_by_one(x, y)):
        g, other = attached(model, one, label), attached(model, one + eta[i : i + 1], label)
        cosine = (g * other).sum() / (g.norm() * other.norm())
        x_adv = (one + EPS * g.detach().sign()).clamp(0, 1)
        total = total + F.cross_entropy(model(x_adv), label) + strength * (1 - cosine)
    assert_same(model, actual, total / len(x))


@pytest.mark.parametrize(("width", "step", "strength"), [(0.0, 1.0, 1000.0), (1.0, 1.25, 5.0), (2.0, 1.0, 0.0)])
def test_elle_equals_its_formula(width, step, strength):
    model, (x, y) = smooth_net(), batch()
    torch.manual_seed(3)
    actual = ELLE(eps=EPS, noise=width, step=step, strength=strength)(model, x, y)
    torch.manual_seed(3)
    v = width * EPS * noise(x)
    v = (v + step * EPS * slow_gradient(model, x + v, y).sign()).clamp(-EPS, EPS)
    a, b, t = x + EPS * noise(x), x + EPS * noise(x), torch.empty(len(x), dtype=x.dtype).uniform_()
    total = 0.0
    for i in range(len(x)):
        at_a, at_b, at_c = (
            F.cross_entropy(model(z[None]), y[i : i + 1]) for z in (a[i], b[i], (1 - t[i]) * a[i] + t[i] * b[i])
        )
        x_adv = (x[i : i + 1] + v[i : i + 1]).clamp(0, 1)
        bend = at_c - (1 - t[i]) * at_a - t[i] * at_b
        total = total + F.cross_entropy(model(x_adv), y[i : i + 1]) + strength * bend**2
    assert_same(model, actual, total / len(x))


def test_elle_is_plain_fgsm_where_the_loss_is_linear_and_not_where_it_bends():
    x, y = points()
    x = 0.2 + 0.6 * x
    for model, linear in ((linear_loss(), True), (Quadratic(), False)):
        torch.manual_seed(0)
        with_term, without = ELLE(eps=0.1)(model, x, y), ELLE(eps=0.1, strength=0.0)(model, x, y)
        assert (abs(with_term - without) < 1e-9) == linear


@pytest.mark.parametrize("step", [1.0, 0.5])
def test_fgsm_pgi_equals_its_formula_over_three_visits(step):
    model, (x, y) = smooth_net(), batch()
    loss, index = pgi(step=step, strength=7.0), torch.tensor([3, 1, 19, 0, 8, 5])
    torch.manual_seed(3)
    corner = (x + EPS * noise(x).sign()).clamp(0, 1)
    v = corner - x
    torch.manual_seed(3)
    for visit in range(3):
        actual = loss(model, x, y, index)
        after = (v + step * EPS * slow_gradient(model, x + v, y).sign()).clamp(-EPS, EPS)
        after = (x + after).clamp(0, 1) - x
        outputs, before = model(x + after), model(x + v)
        expected = F.cross_entropy(outputs, y) + 7 * F.mse_loss(outputs, before)
        assert_same(model, actual, expected, rtol=1e-5, atol=1e-6)  # the memory is in float32
        torch.testing.assert_close(EPS * loss.memory.read(index), after.float())
        v = after
        assert (loss.memory.visits[index] == visit + 1).all()


def test_fgsm_pgi_follows_the_crops_and_flips():
    model, (x, y) = relu_net(), batch()
    augment = CropFlip(padding=1)
    loss, index = pgi(augment=augment), torch.arange(6)
    loss(model, augment.apply(x, still := torch.zeros(6, 3, dtype=torch.int64)), y, index, still)
    known = loss.memory.read(index)
    moves = torch.tensor([[1, -1, 1]] * 6)
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    moved = augment.apply(x, moves)
    loss(model, moved, y, index, moves)
    start = (moved + EPS * augment.apply(known, moves).to(x)).clamp(0, 1)
    torch.testing.assert_close(seen[0], start, rtol=0, atol=1e-6)


def test_free_carries_the_perturbation_over_replays_and_scales_it_with_eps():
    model, (x, y) = smooth_net(), batch()
    loss = Free(eps=EPS, step=0.75)
    v = torch.zeros_like(x)
    for eps in (EPS, EPS, EPS / 2):
        v = v * eps / EPS
        actual = loss.with_eps(eps)(model, x, y)
        assert_same(model, actual, F.cross_entropy(model((x + v).clamp(0, 1)), y))
        (4 * actual).backward()
        v = (v + 0.75 * eps * slow_gradient(model, (x + v).clamp(0, 1), y).sign()).clamp(-eps, eps) * EPS / eps
        torch.testing.assert_close(EPS * loss.state.u, v)


def test_free_starts_at_zero_for_a_batch_of_another_shape_and_after_reset():
    model, (x, y) = smooth_net(), batch()
    loss = Free(eps=EPS)
    clean = F.cross_entropy(model(x[:4]), y[:4])
    loss(model, x, y).backward()
    torch.testing.assert_close(loss(model, x[:4], y[:4]), clean)
    loss.state.reset()
    torch.testing.assert_close(loss(model, x, y), F.cross_entropy(model(x), y))
    saved, other = loss.state.state_dict(), FreeState()
    loss(model, x, y).backward()
    other.load_state_dict(loss.state.state_dict())
    assert torch.equal(other.u, loss.state.u) and saved["u"] is None and repr(other) == "FreeState()"


# ------------------------------------------------------------------------------------------ properties


@pytest.mark.parametrize("loss", [*SIMPLE, pgi()], ids=lambda loss: type(loss).__name__)
def test_declared_passes_are_the_counted_ones_and_statistics_move_with_training_forwards_alone(loss):
    model, (x, y) = norm_net().train(), batch()
    more = (torch.arange(6),) if isinstance(loss, FGSMPGI) else ()
    with count_passes(model) as passes:
        loss(model, x, y, *more).backward()
    assert passes.total() == loss.passes(6)
    trained = 2 if isinstance(loss, (FGSMPGI, ELLE)) else 1
    assert model[2].num_batches_tracked == trained and all(m.training for m in model.modules())


@given(
    st.floats(0, 0.5),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    st.integers(0, 10**6),
)
def test_training_points_are_in_the_box_and_as_near_as_the_formula_says(eps, dtype, seed):
    torch.manual_seed(seed)
    model, (x, y) = relu_net(dtype), batch(n=5, dtype=dtype, seed=seed)
    rounding = 4 * (2**-8 if dtype == torch.bfloat16 else 1e-6)
    for loss, reach in ((NFGSM(eps=eps), 3 * eps), (GradAlign(eps=eps), eps), (pgi(eps=eps, dtype=torch.int8), eps)):
        seen = []
        handle = model.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].detach()))
        value = loss(model, x, y, *((torch.arange(5),) if isinstance(loss, FGSMPGI) else ()))
        handle.remove()
        assert value.isfinite() and seen[-1].dtype == dtype
        assert seen[-1].min() >= 0 and seen[-1].max() <= 1
        assert (seen[-1].double() - x.double()).abs().max() <= reach + rounding


@pytest.mark.parametrize("loss", SIMPLE, ids=lambda loss: type(loss).__name__)
def test_radius_of_each_sample_and_ramp(loss):
    model, (x, y) = relu_net(), batch(n=3)
    seen = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    mine = dataclasses.replace(loss, **({"state": FreeState()} if isinstance(loss, Free) else {}))
    mine.with_eps(torch.tensor([0.0, 0.1, 0.2], dtype=x.dtype))(model, x, y).backward()
    assert torch.equal(seen[-1][0], x[0])
    with pytest.raises(ValueError, match=r"eps must be a number or have shape \(\) or \(3,\), got \(2,\)"):
        mine.with_eps(torch.tensor([0.1, 0.2]))(model, x, y)
    assert mine.with_eps(0.1).eps == 0.1


@pytest.mark.parametrize("cls", [NFGSM, GradAlign, ELLE])
def test_own_generator_leaves_the_global_one_alone(cls):
    model, (x, y) = relu_net(), batch()
    values = []
    for _ in range(2):
        before = torch.get_rng_state()
        values.append(cls(eps=EPS, generator=torch.Generator().manual_seed(3))(model, x, y))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*values)


def test_grad_align_has_no_slope_where_a_gradient_is_zero():
    """A dead network: the cosine counts as 0, and nothing is NaN."""
    model, (x, y) = relu_net(), batch()
    with torch.no_grad():
        model[1].bias.fill_(-1e3)
    value = GradAlign(eps=EPS, strength=0.5)(model, x, y)
    torch.testing.assert_close(value, F.cross_entropy(model(x), y) + 0.5)
    value.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: NFGSM(eps=-0.1), ValueError, "eps must be finite and >= 0, got -0.1"),
        (lambda: NFGSM(noise=-1), ValueError, "noise must be finite and >= 0, got -1"),
        (lambda: NFGSM(step=0), ValueError, "step must be finite and > 0, got 0"),
        (lambda: NFGSM(mode="test"), ValueError, "mode must be"),
        (lambda: NFGSM(bounds=(1, 0)), ValueError, "bounds must be"),
        (lambda: NFGSM(p=2), ValueError, "p must be math.inf for NFGSM, got 2"),
        (lambda: pgi(p=2), ValueError, "p must be math.inf for FGSMPGI, got 2"),
        (lambda: Free(p=1), ValueError, "p must be math.inf for Free, got 1"),
        (lambda: GradAlign(strength=-0.2), ValueError, "strength must be finite and >= 0, got -0.2"),
        (lambda: ELLE(strength=math.inf), ValueError, "strength must be finite and >= 0, got inf"),
        (lambda: ELLE(noise="1"), TypeError, "noise must be a number, got str"),
        (lambda: Free(step=0), ValueError, "step must be finite and > 0, got 0"),
        (lambda: Free(replays=0), ValueError, "replays must be at least 1, got 0"),
        (lambda: Free(state=0.5), TypeError, "state must be a FreeState, got float"),
        (lambda: FGSMPGI(None), TypeError, "memory must be a PerturbationMemory, got NoneType"),
        (lambda: pgi(strength=-1), ValueError, "strength must be finite and >= 0, got -1"),
        (lambda: pgi()(relu_net(), *batch()), ValueError, "the index of each sample is needed"),
    ],
)
def test_bad_fields_and_a_missing_index(make, error, message):
    with pytest.raises(error, match=message):
        make()
