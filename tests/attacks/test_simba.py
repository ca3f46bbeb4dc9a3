"""SimBA against a one-image loop in NumPy, closed forms, its own count of queries, and scipy's cosine transform."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.fft
import torch
from hypothesis import given
from hypothesis import strategies as st

from soatfast.attacks import SimBA
from soatfast.attacks.simba import _Basis, dct_matrix
from soatfast.gradients import InputGradient, count_passes
from tests.nets import batch, conv_net, linear_net, relu_net, smooth_net


def numpy_margin(model, x, y):
    z = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in (model[1], model[3])]
    hidden = np.maximum(z[0][0] @ x.ravel() + z[0][1], 0)
    logits = z[1][0] @ hidden + z[1][1]
    return np.delete(logits, y).max() - logits[y]


def numpy_projection(v, x, p, eps):
    delta = v - x
    if p == math.inf:
        delta = np.clip(delta, -eps, eps)
    else:
        delta = delta * min(1.0, eps / max(np.linalg.norm(delta), 1e-300))
    return np.clip(x + delta, 0, 1)


def numpy_simba(model, x, y, vectors, step_size, p, eps, sign=1.0, early_stop=True):
    """Algorithm 1 of the paper, one image; (x_adv, queries)."""
    best, queries, x_adv = sign * numpy_margin(model, x, y), 1, x
    for q in vectors:
        if early_stop and best > 0:
            break
        for direction in (-q, q):
            candidate = numpy_projection(x_adv + step_size * direction, x, p, eps)
            value = sign * numpy_margin(model, candidate, y)
            queries += 1
            if value > best:
                x_adv, best = candidate, value
                break
    return x_adv, queries


def numpy_basis(name, shape, index):
    coefficients = np.zeros(math.prod(shape))
    coefficients[index] = 1
    image = coefficients.reshape(shape)
    return image if name == "pixel" else scipy.fft.idctn(image, axes=(-2, -1), norm="ortho")


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("early_stop", [True, False])
@pytest.mark.parametrize(
    ("basis", "p", "eps", "targeted"),
    [("pixel", math.inf, 0.15, False), ("dct", math.inf, 0.15, False), ("dct", 2, 0.4, True), ("pixel", 2, 0.4, False)],
)
def test_equals_the_one_image_loop(basis, p, eps, targeted, early_stop, compact):
    shape = (2, 3, 4)
    model, (x, y) = relu_net(shape=shape), batch(n=12, shape=shape)
    with torch.no_grad():
        y[:9] = model(x).argmax(1)[:9]
    if targeted:
        y = (y + 1) % 4
    steps, options = 15, {"early_stop": early_stop, "compact": compact, "targeted": targeted}
    attack = SimBA(eps=eps, p=p, steps=steps, basis=basis, generator=torch.Generator().manual_seed(5), **options)
    found = attack.search(model, x, y)
    order = torch.rand(12, 24, generator=torch.Generator().manual_seed(5)).argsort(1)
    for i in range(12):
        vectors = [numpy_basis(basis, shape, int(j)) for j in order[i, :steps]]
        sign = -1.0 if targeted else 1.0
        expected, queries = numpy_simba(model, x[i].numpy(), int(y[i]), vectors, 0.2, p, eps, sign, early_stop)
        np.testing.assert_allclose(found.x_adv[i].numpy(), expected, rtol=0, atol=1e-12)
        assert found.queries[i] == queries
    with InputGradient(model, targeted=targeted) as oracle:
        oracle.loss(found.x_adv, y)
        assert torch.equal(found.fooled, oracle.fooled(y))
    assert found.fooled.any() and not found.fooled.all()
    attack.generator.manual_seed(5)
    assert torch.equal(attack(model, x, y), found.x_adv)


def test_on_a_linear_model_every_coordinate_takes_its_sign():
    """Away from the box: delta = e sgn(w_1 - w_0) for the label 0, with 1 query where -q helps and 2 where +q does."""
    model, (x, _) = linear_net(), batch()
    y = torch.zeros(6, dtype=torch.int64)
    w = (model[1].weight[1] - model[1].weight[0]).detach()
    attack = SimBA(eps=0.3, step_size=0.3, steps=16, early_stop=False, bounds=(-9.0, 9.0))
    found = attack.search(model, x, y)
    torch.testing.assert_close((found.x_adv - x).flatten(1), (0.3 * w.sign()).expand(6, -1))
    assert (found.queries == 1 + 16 + int((w > 0).sum())).all()


def test_declared_and_counted_passes():
    model, (x, y) = relu_net(), batch(n=9)
    for early_stop in (True, False):
        attack = SimBA(eps=0.1, steps=10, early_stop=early_stop)
        with count_passes(model) as passes:
            found = attack.search(model, x, y)
        assert passes.forward_samples == found.queries.sum() < attack.passes(9).forward_samples
        assert passes.forward <= attack.passes(9).forward == 21
        assert passes.backward_input == passes.backward_parameters == 0
        with count_passes(model) as passes:
            dataclasses.replace(attack, compact=False)(model, x, y)
        assert passes.total() == attack.passes(9)


def test_it_stops_at_once_where_every_sample_is_fooled():
    model, (x, _) = relu_net(), batch(n=9)
    with torch.no_grad():
        wrong = (model(x).argmax(1) + 1) % 4
    with count_passes(model) as passes:
        found = SimBA(steps=10).search(model, x, wrong)
    assert passes.forward == 1 and torch.equal(found.x_adv, x)
    assert found.fooled.all() and (found.queries == 1).all()


def test_an_equal_value_is_no_improvement():
    model, (x, y) = relu_net(), batch()
    found = SimBA(eps=0.0, steps=5, early_stop=False).search(model, x, y)
    assert (found.queries == 11).all() and torch.equal(found.x_adv, x)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("compact", [True, False])
def test_a_batch_equals_its_samples(basis, compact):
    model, (x, y) = smooth_net(), batch(n=7)
    attack = SimBA(eps=0.2, steps=12, basis=basis, compact=compact, generator=torch.Generator().manual_seed(0))
    together = attack.search(model, x, y)
    attack.generator.manual_seed(0)
    alone = [attack.search(model, x[i : i + 1], y[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(together.x_adv, torch.cat([a.x_adv for a in alone]), rtol=0, atol=1e-12)
    assert torch.equal(together.queries, torch.cat([a.queries for a in alone]))


def test_per_sample_radius_and_step():
    model, (x, y) = smooth_net(), batch(n=8)
    eps = torch.linspace(0, 0.35, 8, dtype=torch.float64)
    for compact in (True, False):
        attack = SimBA(eps=eps, step_size=2 * eps, steps=8, early_stop=False, compact=compact)
        size = (attack(model, x, y) - x).flatten(1).abs().amax(1)
        assert (size <= eps + 1e-12).all() and size[0] == 0 and (size[1:] > 0).all()
        with pytest.raises(ValueError, match="eps must be a number or have shape"):
            attack.with_eps(eps[:3])(model, x, y)
        with pytest.raises(ValueError, match=r"step_size must be a number or have shape \(\) or \(8,\), got \(3,\)"):
            dataclasses.replace(attack, step_size=eps[:3])(model, x, y)


@given(
    p=st.sampled_from([1, 2, math.inf]),
    eps=st.floats(0, 2),
    step_size=st.floats(0, 3),
    basis=st.sampled_from(["pixel", "dct"]),
    targeted=st.booleans(),
    seed=st.integers(0, 10),
)
def test_inside_ball_and_box_and_never_weaker(p, eps, step_size, basis, targeted, seed):
    model, (x, y) = relu_net(), batch(n=4, seed=seed)
    x[0] = x[0].round()
    attack = SimBA(eps=eps, p=p, steps=5, step_size=step_size, basis=basis, targeted=targeted, early_stop=False)
    x_adv = attack(model, x, y)
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    assert ((x_adv - x).flatten(1).norm(p, dim=1) <= eps * (1 + 1e-9) + 1e-12).all()
    with attack.oracle(model) as oracle:
        assert (oracle.loss(x_adv, y) >= oracle.loss(x, y)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 8, 28, 33])
def test_dct_matrix_is_orthonormal_and_scipys(n):
    matrix = dct_matrix(n, torch.empty(0, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-13)
    np.testing.assert_allclose(matrix.numpy(), scipy.fft.dct(np.eye(n), axis=0, norm="ortho"), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (4, 6), (2, 2, 3, 4)])
def test_basis_is_scipys_inverse_transform_and_orthonormal(shape):
    x = torch.rand(2, *shape, dtype=torch.float64)
    basis = _Basis(x, "dct", None)
    assert basis.size == math.prod(shape)
    vectors = basis.vectors(torch.arange(basis.size))
    expected = np.stack([numpy_basis("dct", shape, j) for j in range(basis.size)])
    np.testing.assert_allclose(vectors.numpy(), expected, rtol=0, atol=1e-13)
    flat = vectors.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(basis.size, dtype=torch.float64), rtol=0, atol=1e-12)
    pixels = _Basis(x, "pixel", None)
    assert torch.equal(pixels.vectors(torch.arange(pixels.size)).flatten(1), torch.eye(pixels.size).double())


def test_low_frequencies_only():
    shape = (2, 5, 6)
    model, (x, y) = relu_net(shape=shape), batch(n=5, shape=shape)
    attack = SimBA(
        eps=9.0, p=2, steps=18, basis="dct", freq_dims=3, early_stop=False, bounds=(-99.0, 99.0), objective="ce"
    )
    delta = (attack(model, x, y) - x).numpy()
    found = scipy.fft.dctn(delta, axes=(-2, -1), norm="ortho")
    low = np.zeros_like(found, dtype=bool)
    low[..., :3, :3] = True
    assert np.abs(found[~low]).max() < 1e-12 and (np.abs(found[low]) > 0.19).mean() > 0.9
    with pytest.raises(ValueError, match="steps must be at most the 18 directions of the basis, got 19"):
        attack.with_steps(19)(model, x, y)


def test_bad_fields_and_batches():
    for fields, error, message in (
        ({"p": 3}, ValueError, "p must be 1, 2 or math.inf for SimBA, got 3"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"step_size": -0.1}, ValueError, "step_size must be finite and >= 0, got -0.1"),
        ({"basis": "wavelet"}, ValueError, 'basis must be "pixel" or "dct", got \'wavelet\''),
        ({"freq_dims": 3}, ValueError, 'freq_dims needs basis="dct"'),
        ({"freq_dims": 2.5, "basis": "dct"}, TypeError, "freq_dims must be a whole number, got 2.5"),
    ):
        with pytest.raises(error, match=message):
            SimBA(**fields)
    x, y = batch()
    with pytest.raises(ValueError, match="steps must be at most the 16 directions of the basis, got 200"):
        SimBA(steps=200)(relu_net(), x, y)
    all_of_them = (SimBA(steps=n, generator=torch.Generator().manual_seed(1))(relu_net(), x, y) for n in (None, 16))
    assert torch.equal(*all_of_them)
    assert SimBA().passes() == SimBA(steps=200).passes()
    with pytest.raises(ValueError, match="freq_dims must be at most the image's 4 x 4, got 5"):
        SimBA(basis="dct", freq_dims=5, steps=4)(relu_net(), x, y)
    with pytest.raises(ValueError, match=r'basis="dct" needs images x \(B, ..., H, W\), got shape \(6, 16\)'):
        SimBA(basis="dct", steps=4)(relu_net(), x.flatten(1), y)
    with pytest.raises(ValueError, match="without NaN"):
        SimBA(steps=4).search(relu_net(), x.fill_(torch.nan), y)
    empty = SimBA(steps=4).search(relu_net(), *batch(n=0))
    assert len(empty.x_adv) == len(empty.queries) == len(empty.fooled) == 0


class Failing(torch.nn.Module):
    def __init__(self, calls):
        super().__init__()
        self.model, self.left = conv_net(classes=4), calls

    def forward(self, x):
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of queries")
        return self.model(x)


def test_model_is_restored_after_an_error():
    model = Failing(3).train()
    model.model[1].eval()
    x, y = batch(n=3, shape=(3, 8, 8), dtype=torch.float32)
    with pytest.raises(RuntimeError, match="out of queries"):
        SimBA(steps=9, early_stop=False).search(model, x, y)
    assert model.training and model.model[0].training and not model.model[1].training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_batches_have_their_queries_counted_too(dtype):
    model, (x, y) = relu_net(dtype), batch(n=8, dtype=dtype)
    found = SimBA(eps=0.1, steps=8, early_stop=False).search(model, x, y)
    assert found.x_adv.dtype == dtype and (found.queries > 8).all()
    assert (found.x_adv.double() - x.double()).abs().max() <= 0.1
