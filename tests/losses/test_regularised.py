"""What every loss with a regulariser owes its user, whatever its formula."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from soatfast.losses import CURE, LLR, SOAR, STN, CrossEntropy, InputGradientPenalty
from tests.losses.oracles import assert_same, parameter_gradients
from tests.nets import batch, conv_net, relu_net, smooth_net

DIFFERENCES = [
    SOAR(eps=0.1),
    SOAR(eps=0.1, p=2, estimator="frob", samples=2, start="x"),
    CURE(),
    CURE(power=2),
    InputGradientPenalty(variant="difference", p=math.inf),
    LLR(eps=0.2, steps=3),
]
REGULARISED = [
    *DIFFERENCES,
    InputGradientPenalty(),
    InputGradientPenalty(variant="dual", p=math.inf, eps=0.1),
    InputGradientPenalty(variant="squared", p=3, targets="uniform"),
    STN(),
    STN(noise="asod", eps=0.1, steps=1, samples=1),
]


def name(loss):
    return ",".join(str(v) for v in dataclasses.astuple(loss) if v is not None) + type(loss).__name__


@pytest.fixture(params=REGULARISED, ids=name)
def loss(request):
    return request.param


@pytest.fixture(params=["eval", "keep"])
def mode(request):
    return request.param


def value(loss, model, x, y):
    """With the same noise in every call."""
    torch.manual_seed(3)
    return loss(model, x, y)


def test_the_parameter_gradient_is_the_slope_of_the_value(loss, mode):
    """What is held fixed (signs, starts, noise, signed steps) is constant in small steps of the parameters."""
    loss = dataclasses.replace(loss, mode=mode)
    model, (x, y) = smooth_net(), batch()
    torch.manual_seed(1)
    direction = [torch.randn_like(p) for p in model.parameters()]
    gradients = parameter_gradients(model, value(loss, model, x, y))
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    h, values = 1e-6, []
    with torch.no_grad():
        for step in (h, -2 * h):
            for p, d in zip(model.parameters(), direction, strict=True):
                p.add_(step * d)
            values.append(value(loss, model, x, y))
    torch.testing.assert_close((values[0] - values[1]) / (2 * h), slope, rtol=1e-4, atol=1e-6)


def test_samples_do_not_see_each_other(loss, mode):
    """Another sample 0 changes the mean by the same amount, whatever sample 3 is."""
    loss = dataclasses.replace(loss, mode=mode)
    model, (x, y) = smooth_net(), batch()
    other = 1 - x

    def at(*replaced):
        batch = x.clone()
        for i in replaced:
            batch[i] = other[i]
        return value(loss, model, batch, y)

    torch.testing.assert_close(at(0) - at(), at(0, 3) - at(3), rtol=1e-8, atol=1e-12)


def test_the_mode_is_only_a_matter_of_passes_without_batch_norm_and_dropout(loss):
    model, (x, y) = smooth_net(), batch()
    results = [value(dataclasses.replace(loss, mode=mode), model, x, y) for mode in ("eval", "train", "keep")]
    assert_same(model, results[0], results[1])
    assert_same(model, results[0], results[2])


@pytest.mark.parametrize("training", [True, False])
def test_model_is_left_as_a_training_forward_leaves_it(loss, mode, training):
    model, (x, y) = conv_net().train(training), batch(n=4, shape=(3, 8, 8), dtype=torch.float32)
    model[3].train(False)  # dropout off: each module has its own flag
    flags = [m.training for m in model.modules()]
    forwards = 2 if isinstance(loss, STN) else 1
    dataclasses.replace(loss, mode=mode)(model, x, y).backward()
    assert [m.training for m in model.modules()] == flags
    assert model[1].num_batches_tracked == (forwards if training else 0)
    plain = conv_net().train(training)
    plain[3].train(False)
    if training and not isinstance(loss, (STN, SOAR)):  # which train on other points than x
        plain(x)
        torch.testing.assert_close(model[1].running_mean, plain[1].running_mean)
    assert all(p.requires_grad and p.grad.isfinite().all() for p in model.parameters())


class Failing(nn.Module):
    """Raises in forward number `left`."""

    def __init__(self, left):
        super().__init__()
        self.model = conv_net()
        self.left = left

    def forward(self, x):
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("out of memory")
        return self.model(x)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_model_is_left_as_it_was_by_an_exception(loss, mode, at):
    model, (x, y) = Failing(at).train(), batch(n=4, shape=(3, 8, 8), dtype=torch.float32)
    loss = dataclasses.replace(loss, mode=mode)
    if loss.passes().forward < at:
        pytest.skip("fewer forwards")
    tf32 = torch.backends.cudnn.allow_tf32
    with pytest.raises(RuntimeError, match="out of memory"):
        loss(model, x, y)
    assert all(m.training for m in model.modules()) and torch.backends.cudnn.allow_tf32 == tf32
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert model.model[1].num_batches_tracked <= (2 if isinstance(loss, STN) else 1)


def test_frozen_parameters_stay_frozen(loss, mode):
    model, (x, y) = smooth_net(), batch()
    model[1].weight.requires_grad_(False)
    dataclasses.replace(loss, mode=mode)(model, x, y).backward()
    assert not model[1].weight.requires_grad and model[1].weight.grad is None
    assert model[3].weight.grad is not None and x.grad is None and not x.requires_grad


def test_the_value_is_the_same_without_gradients(loss, mode):
    loss = dataclasses.replace(loss, mode=mode)
    model, (x, y) = smooth_net(), batch()
    expected = value(loss, model, x, y)
    with torch.no_grad():
        assert torch.equal(value(loss, model, x, y), expected)
    with torch.inference_mode():
        assert value(loss, model, x.clone(), y).item() == expected.item()


def test_without_weight_it_is_cross_entropy(loss, mode):
    model, (x, y) = smooth_net(), batch()
    if isinstance(loss, SOAR):
        loss = dataclasses.replace(loss, start="x")
    fields = {"strength": 0.0, "mode": mode, **({"mu": 0.0} if isinstance(loss, LLR) else {})}
    assert_same(model, dataclasses.replace(loss, **fields)(model, x, y), CrossEntropy()(model, x, y))


def test_channels_last(loss):
    model, (x, y) = conv_net().eval(), batch(n=3, shape=(3, 8, 8), dtype=torch.float32)
    loss(model, x.contiguous(memory_format=torch.channels_last), y).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("loss", DIFFERENCES, ids=name)
class TestFullPrecision:
    """A difference of passes of three digits is noise, so it is refused."""

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_batch(self, loss, dtype):
        message = f"{type(loss).__name__} takes differences .* needs float32 or float64, got x of {dtype}"
        with pytest.raises(TypeError, match=message):
            loss(relu_net(dtype), *batch(dtype=dtype))

    def test_half_model(self, loss):
        model = nn.Sequential(nn.Identity(), relu_net(torch.bfloat16))
        with pytest.raises(TypeError, match=r"got a model with parameters of torch\.bfloat16"):
            loss(model, *batch(dtype=torch.float32))

    def test_autocast(self, loss):
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="got autocast to torch"):
            loss(relu_net(torch.float32), *batch(dtype=torch.float32))


@pytest.mark.parametrize("loss", [loss for loss in DIFFERENCES if not isinstance(loss, (SOAR, LLR))], ids=name)
def test_float32_is_enough(loss):
    model, (x, y) = smooth_net(), batch()
    narrow = loss(smooth_net(torch.float32), x.float(), y)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), loss(model, x, y), rtol=1e-3, atol=1e-4)
