"""Square against torchattacks' under the same seed, its budget on a linear model, and its counts."""

import math

import pytest
import torch

from soatfast.attacks import Normalized, Square
from soatfast.gradients import count_passes
from tests.attacks.peers import NETS, SHAPE, reckoned_in, right_batch, seeded
from tests.nets import batch, linear_net, relu_net

NAME = {2: "L2", math.inf: "Linf"}
EPS = {2: 0.4, math.inf: 0.03}


def theirs(model, x, y, p, eps, queries, dtype=torch.float64, **fields):
    peer = pytest.importorskip("torchattacks").Square
    with reckoned_in(dtype):
        return peer(model, norm=NAME[p], eps=eps, n_queries=queries, **fields)(x, y)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("p", [2, math.inf])
def test_the_images_are_torchattacks(net, p):
    """Those of the samples that are fooled: the others are given back as they were by theirs."""
    model = NETS[net](torch.float64)
    x, y = right_batch(model, 24)
    want = theirs(model, x, y, p, EPS[p], 60, seed=3, n_restarts=2)
    got = Square(eps=EPS[p], p=p, steps=60, restarts=2, generator=seeded(3))(model, x, y)
    fooled = model(got).argmax(1) != y
    assert torch.equal(fooled, model(want).argmax(1) != y) and 3 <= fooled.sum() < 24
    torch.testing.assert_close(got[fooled], want[fooled], rtol=0, atol=1e-6)


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("loss", ["margin", "ce"])
@pytest.mark.parametrize("size", [8, 15])
def test_the_best_points_are_torchattacks(p, loss, size):
    model = relu_net(shape=(2, size, size))
    x = batch(10, (2, size, size))[0]
    y = model(x).argmax(1)
    eps = EPS[p] / 10
    peer = pytest.importorskip("torchattacks").Square(model, norm=NAME[p], eps=eps, n_queries=40, loss=loss)
    with reckoned_in(torch.float64):
        peer.init_hyperparam(x)
        torch.manual_seed(0)
        _, want = peer.attack_single_run(x, y)
    got = Square(eps=eps, p=p, steps=40, objective=loss, generator=seeded())(model, x, y)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert (got != x).any(1).any()


@pytest.mark.parametrize("p", [2, math.inf])
def test_the_verdicts_in_float32(p):
    model = NETS["smooth"](torch.float32)
    x, y = right_batch(model, 1000, torch.float32)
    want = theirs(model, x, y, p, EPS[p], 50, torch.float32)
    got = Square(eps=EPS[p], p=p, steps=50, generator=seeded())(model, x, y)
    ours, peers = (model(t).argmax(1) == y for t in (got, want))
    assert 100 < ours.sum() < 900
    assert (ours != peers).sum() <= 1


def test_a_linear_model_has_the_closed_form():
    """-eps sgn(w) wherever a square can lie; the draw never reaches the last row and column, as in the authors'."""
    model = linear_net()
    x = 0.5 + 0.01 * batch(n=8)[0]
    y = model(x).argmax(1)
    w = (model[1].weight[1] - model[1].weight[0]).detach().view(1, 1, 4, 4) * (1 - 2 * y.view(-1, 1, 1, 1))
    x_adv = Square(eps=0.005, steps=1500, generator=seeded())(model, x, y)
    assert (model(x_adv).argmax(1) == y).all()
    torch.testing.assert_close((x_adv - x)[..., :3, :3], 0.005 * w.sign()[..., :3, :3], rtol=0, atol=1e-9)


@pytest.mark.parametrize("p", [2, math.inf])
def test_samples_leave_and_the_passes_are_at_most_the_declared(p):
    model = relu_net(shape=SHAPE)
    x = batch(12, SHAPE)[0]
    y = model(x).argmax(1)
    y[:3] = (y[:3] + 1) % 4
    attack = Square(eps=EPS[p], p=p, steps=30, generator=seeded())
    with count_passes(model) as counted:
        x_adv = attack(model, x, y)
    assert torch.equal(x_adv[:3], x[:3]), "fooled at x"
    total = counted.total()
    assert total.forward <= attack.passes(12).forward == 32 and total.backward_input == 0
    assert total.forward_samples < 12 + 9 * 31
    assert ((x_adv - x).flatten(1).norm(p, dim=1) <= EPS[p] * (1 + 1e-9)).all()
    whole = Square(eps=1e-6, p=p, steps=30)
    with count_passes(model) as counted:
        whole(model, x[3:], y[3:])
    assert counted.total() == whole.passes(9)


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 4), (1, 5, 9), (2, 12, 6), (1, 14, 14)])
def test_images_that_are_not_square_or_of_any_size(p, shape):
    model = relu_net(shape=shape)
    x, y = batch(8, shape)
    x_adv = Square(eps=EPS[p], p=p, steps=30)(model, x, y)
    assert ((x_adv - x).flatten(1).norm(p, dim=1) <= EPS[p] * (1 + 1e-9)).all()
    assert x_adv.isfinite().all() and x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("p", [2, math.inf])
def test_a_radius_for_each_and_one_mask(p):
    model = relu_net(shape=SHAPE)
    x = batch(8, SHAPE)[0]
    y = model(x).argmax(1)
    eps = torch.linspace(0, EPS[p], 8, dtype=torch.float64)
    x_adv = Square(eps=eps, p=p, steps=20)(model, x, y)
    assert ((x_adv - x).flatten(1).norm(p, dim=1) <= eps + 1e-9).all() and torch.equal(x_adv[0], x[0])
    mask = torch.rand(SHAPE, generator=seeded()) > 0.5
    x_adv = Square(eps=EPS[p], p=p, steps=20, mask=mask)(model, x, y)
    assert torch.equal(x_adv[:, ~mask], x[:, ~mask]) and (x_adv != x).any()


def test_inputs_normalised_outside_the_model():
    model = NETS["conv"](torch.float64)
    norm = Normalized((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    x, y = right_batch(model, 8)
    want = Square(eps=0.02, steps=20, generator=seeded())(model, x, y)
    attack = norm(Square(eps=0.02, steps=20, generator=seeded()))
    got = attack(lambda u: model(norm.pixels(u)), norm.inputs(x), y)
    torch.testing.assert_close(norm.pixels(got), want, rtol=0, atol=1e-6)


def test_to_reach_a_class():
    model = relu_net()
    x, _ = batch(n=8)
    y = (model(x).argmax(1) + 1) % 4
    x_adv = Square(eps=0.5, steps=100, targeted=True)(model, x, y)
    assert (model(x_adv).argmax(1) == y).double().mean() > 0.5


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Square(p=1), ValueError, r"p must be 2 or math\.inf for Square, got 1"),
        (lambda: Square(steps=0), ValueError, "steps must be"),
        (lambda: Square(restarts=0), ValueError, "restarts must be"),
        (lambda: Square(share=0), ValueError, "share must be above 0, got 0"),
        (lambda: Square(share=1.5), ValueError, "share must"),
        (lambda: Square(engine="graph"), ValueError, 'Square takes no engine with "graph"'),
        (lambda: Square()(relu_net(), batch()[0].flatten(1), batch()[1]), ValueError, r"images \(B, C, H, W\)"),
        (lambda: Square()(relu_net(), batch()[0], batch()[1] + 9), ValueError, r"labels must lie in 0\.\.3"),
        (
            lambda: Square(mask=torch.ones(6, 1, 4, 4, dtype=torch.bool))(relu_net(), *batch()),
            ValueError,
            "a mask for each sample",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
