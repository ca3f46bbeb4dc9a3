"""The gradient engine: right gradients, and a model left exactly as it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soatfast.gradients import InputGradient
from tests.nets import batch, conv_net, relu_net, slow_gradient, smooth_net


def state(model):
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [t.clone() for t in model.state_dict().values()],
        [None if p.grad is None else p.grad.clone() for p in model.parameters()],
    )


def assert_same_state(before, after):
    assert before[:2] == after[:2]
    for a, b in zip(before[2] + before[3], after[2] + after[3], strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def mixed_model():
    """A model in train mode with one frozen batch norm, one frozen weight and gradients from before."""
    model = conv_net().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    return model


@pytest.mark.parametrize("net", [relu_net, smooth_net])
def test_gradient_is_each_samples_own(net):
    model, (x, y) = net(), batch()
    with InputGradient(model) as oracle:
        loss, grad = oracle(x, y)
    torch.testing.assert_close(grad, slow_gradient(model, x, y))
    torch.testing.assert_close(loss, F.cross_entropy(model(x), y, reduction="none").detach())
    assert not grad.requires_grad and grad.shape == x.shape


def test_targeted_turns_the_sign():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model) as up, InputGradient(model, targeted=True) as down:
        (loss, grad), (target_loss, target_grad) = up(x, y), down(x, y)
    assert torch.equal(loss, -target_loss) and torch.equal(grad, -target_grad)


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
def test_model_is_left_as_it_was(mode):
    model, (x, y) = mixed_model(), batch(shape=(3, 8, 8), dtype=torch.float32)
    before = state(model)
    with InputGradient(model, mode=mode) as oracle:
        assert not any(p.requires_grad for p in model.parameters())
        oracle(x, y)
        oracle.loss(x, y)
    assert_same_state(before, state(model))


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
def test_model_is_left_as_it_was_after_an_exception(mode):
    model, (x, y) = mixed_model(), batch(shape=(3, 8, 8), dtype=torch.float32)
    before = state(model)
    broken = torch.nn.Sequential(model, torch.nn.Linear(99, 2))
    with pytest.raises(RuntimeError), InputGradient(broken, mode=mode) as oracle:
        oracle(x, y)
    assert_same_state(before, state(model))


def test_modes():
    model, (x, y) = conv_net().train(), batch(shape=(3, 8, 8), dtype=torch.float32)
    seen = []
    model[0].register_forward_hook(lambda m, *_: seen.append(m.training))
    for mode in ("eval", "train", "keep"):
        with InputGradient(model, mode=mode) as oracle:
            oracle(x, y)
    model.eval()
    with InputGradient(model, mode="keep") as oracle:
        oracle(x, y)
    assert seen == [False, True, True, False]


def test_works_under_no_grad_and_inference_mode():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model) as oracle:
        _, expected = oracle(x, y)
        with torch.no_grad():
            assert torch.equal(oracle(x, y)[1], expected)
        with torch.inference_mode():
            assert torch.equal(oracle(x.clone(), y)[1], expected)  # an inference tensor


def test_exact_hvp_equals_the_hessian():
    model, (x, y) = smooth_net(), batch(n=3)
    v = torch.randn_like(x)
    with InputGradient(model) as oracle:
        _, grad, hvp = oracle.differentiable(x, y)
        product, again = hvp(v), hvp(v)
    assert torch.equal(product, again)
    torch.testing.assert_close(grad, slow_gradient(model, x, y))
    for i in range(3):
        hessian = torch.autograd.functional.hessian(
            lambda z, i=i: F.cross_entropy(model(z.view(1, 1, 4, 4)), y[i : i + 1]), x[i].flatten()
        )
        torch.testing.assert_close(product[i].flatten(), hessian @ v[i].flatten())


def test_linear_objective_has_zero_hessian():
    with InputGradient(torch.nn.Identity(), objective=lambda z, y: z.sum(1)) as oracle:
        x = torch.rand(2, 3)
        assert not oracle.differentiable(x, torch.tensor([0, 1]))[2](torch.ones_like(x)).any()


@pytest.mark.parametrize("engine", ["bf16", "fp16"])
def test_reduced_precision_passes(engine):
    model, (x, y) = relu_net(torch.float32), batch(dtype=torch.float32)
    with InputGradient(model) as full, InputGradient(model, engine=engine) as reduced:
        expected, (loss, grad) = full(x, y)[1], reduced(x, y)
    assert grad.dtype == torch.float32 and loss.dtype == torch.float32
    assert reduced.model[1].weight.dtype == torch.float32
    error = (grad - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)
    assert (error > 0).all() and (error < 0.05).all()


def test_float16_passes_keep_tiny_gradients():
    # Derivatives of 1e-9 are zero in float16; each sample goes back at unit scale instead.
    model = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.eye_(model.weight)
    x, y = torch.tensor([[20.0, 0.0]]), torch.tensor([0])
    with InputGradient(model, engine="fp16") as oracle:
        _, grad = oracle(x, y)
    torch.testing.assert_close(grad, torch.tensor([[-1.0, 1.0]]) * 2.061e-9, rtol=1e-2, atol=0)


def test_compiled_model():
    torch._dynamo.reset()
    model, (x, y) = relu_net(torch.float32), batch(dtype=torch.float32)
    compiled = torch.compile(model, backend="aot_eager")
    with InputGradient(model) as plain, InputGradient(compiled) as oracle:
        torch.testing.assert_close(oracle(x, y)[1], plain(x, y)[1])


def test_shared_pass_gives_the_training_gradients():
    model, (x, y) = relu_net(), batch()
    total = F.cross_entropy(model(x), y, reduction="sum")
    expected = torch.autograd.grad(3 * total, list(model.parameters()))
    with InputGradient(model, mode="keep") as oracle:
        loss, grad = oracle.shared(x, y)
        oracle(x, y)
    (3 * loss).backward()
    torch.testing.assert_close(loss.detach(), total.detach())
    torch.testing.assert_close(grad, slow_gradient(model, x, y))
    for p, g in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)


def test_the_shared_gradients_are_given_away_once():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model, mode="keep") as oracle:
        loss, _ = oracle.shared(x, y)
    (3 * loss).backward(retain_graph=True)
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (3 * F.cross_entropy(model(x), y, reduction="sum")).backward()
    for p, g in zip(model.parameters(), found, strict=True):
        torch.testing.assert_close(g, p.grad)
    with pytest.raises(RuntimeError, match="needs recycle=False"):
        loss.backward()


def test_a_shared_pass_of_a_model_without_parameters():
    with InputGradient(nn.Identity(), mode="keep") as oracle:
        loss, g = oracle.shared(torch.rand(2, 3), torch.tensor([0, 1]))
    assert loss.shape == () and g.shape == (2, 3)


def test_shared_pass_updates_batch_norm_once():
    x, y = batch(shape=(3, 8, 8), dtype=torch.float32)
    model, twin = conv_net().train(), conv_net().train()
    twin(x)
    with InputGradient(model, mode="keep") as oracle:
        oracle.shared(x, y)
        oracle(x, y)
        oracle(x, y)
    assert model[1].num_batches_tracked == 1
    torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)


def test_shared_pass_leaves_unused_and_frozen_parameters_alone():
    model, (x, y) = relu_net(), batch()
    model.spare = torch.nn.Parameter(torch.zeros(3))
    model[1].bias.requires_grad_(False)
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    with InputGradient(model, mode="keep") as oracle:
        loss, _ = oracle.shared(x, y)
    loss.backward()
    assert model.spare.grad is None and model[1].bias.grad is None and model[1].weight.grad is not None


class Returns(torch.nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return self.value(x)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda x: x, r"logits of shape \(6, K\), got \(6, 1, 4, 4\)"),
        (lambda x: x.flatten(1)[:3], r"logits of shape \(6, K\), got \(3, 16\)"),
        (lambda x: (x[:1], "a"), r"logits of shape \(6, K\), got tuple of \(1, 1, 4, 4\), str: say which with output="),
        (lambda x: x.flatten(1)[:, :0], r"logits of shape \(6, K\), got \(6, 0\)"),
        (lambda x: x.flatten(1)[:, :1], r"labels must lie in 0\.\.1, got 0\.\.3"),
        (lambda x: x.flatten(1)[:, :2], r"labels must lie in 0\.\.1, got 0\.\.3"),
    ],
)
def test_bad_model_output(value, message):
    x, y = batch(seed=3)
    assert y.max() == 3 and y.min() == 0
    with pytest.raises(ValueError, match=message), InputGradient(Returns(value)) as oracle:
        oracle(x, y)


def test_negative_label():
    x, y = batch()
    with pytest.raises(ValueError, match="labels must lie in"), InputGradient(relu_net()) as oracle:
        oracle(x, y - 10)


def test_bad_arguments():
    with pytest.raises(ValueError, match="mode must be"):
        InputGradient(relu_net(), mode="test")
    with pytest.raises(ValueError, match="engine must be"):
        InputGradient(relu_net(), engine="fp32")
    with pytest.raises(TypeError, match="model must be a module or a callable, got str"):
        InputGradient("resnet")


def test_a_graph_that_the_caller_holds_survives_an_attack_in_train_mode():
    model, (x, y) = conv_net().train(), batch(shape=(3, 8, 8), dtype=torch.float32)
    loss = F.cross_entropy(model(x), y)  # as in TRADES: the clean logits first, then the attack, then backward
    with InputGradient(model, mode="train") as oracle:
        oracle.gradient(x, y)
    loss.backward()
    assert model[0].weight.grad is not None


def test_gradient_alone_and_loss_alone_agree_with_both():
    model, (x, y) = relu_net(), batch()
    with InputGradient(model) as oracle:
        loss, grad = oracle(x, y)
        assert torch.equal(oracle.gradient(x, y), grad) and torch.equal(oracle.loss(x, y), loss)


def test_loss_of_a_callable_objective_under_inference_mode():
    model, (x, y) = relu_net(), batch()
    with torch.inference_mode(), InputGradient(model, objective=lambda z, y: z.sum(1)) as oracle:
        torch.testing.assert_close(oracle.loss(x, y), model(x).sum(1))
