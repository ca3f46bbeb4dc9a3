"""The pass counter on hand-written code, where the right numbers are known."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from soatfast.gradients import count_passes
from soatfast.gradients.passes import Passes, passes_of, unwrap
from tests.nets import batch, relu_net


def test_forward_only():
    model, (x, _) = relu_net(), batch()
    with count_passes(model) as passes:
        model(x)
        with torch.no_grad():
            model(torch.cat([x, x]))
    model(x)
    assert passes.total() == Passes(forward=2, forward_samples=18)


def test_training_step_is_one_traversal_through_all_its_forwards():
    model, (x, y) = relu_net(), batch()
    with count_passes(model) as passes:
        (F.cross_entropy(model(x), y) + F.cross_entropy(model(x * 0.5), y)).backward()
    assert passes.total() == Passes(2, 0, 1, 12, 0, 12)


def test_input_gradient_by_autograd_grad_reaches_no_parameters():
    model, (x, y) = relu_net(), batch()
    x.requires_grad_()
    with count_passes(model) as passes:
        torch.autograd.grad(F.cross_entropy(model(x), y), x)
    assert passes.total() == passes_of(6, forward=1, backward_input=1)


def test_backward_that_fills_parameter_gradients_counts_as_such():
    model, (x, y) = relu_net(), batch()
    x.requires_grad_()
    with count_passes(model) as passes:
        F.cross_entropy(model(x), y).backward()
    assert passes.total() == passes_of(6, forward=1, backward_parameters=1)


def test_input_that_is_no_leaf():
    model, (x, y) = relu_net(), batch()
    delta = torch.zeros_like(x, requires_grad=True)
    with count_passes(model) as passes:
        torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
    assert passes.total() == passes_of(6, forward=1, backward_input=1)


def test_double_backward_is_two_traversals():
    model, (x, y) = relu_net(), batch()
    x.requires_grad_()
    with count_passes(model) as passes:
        (g,) = torch.autograd.grad(F.cross_entropy(model(x), y), x, create_graph=True)
        torch.autograd.grad((g * g).sum(), x)
    assert (passes.forward, passes.backward_input, passes.backward_parameters) == (1, 2, 0)


def test_same_leaf_twice_in_one_backward():
    model, (x, y) = relu_net(), batch()
    x.requires_grad_()
    with count_passes(model) as passes:
        torch.autograd.grad(F.cross_entropy(model(x), y) + F.cross_entropy(model(x), y), x)
    assert passes.total() == Passes(2, 1, 0, 12, 12, 0)


def test_counts_another_librarys_attack():
    torchattacks = pytest.importorskip("torchattacks")
    model, (x, y) = relu_net(torch.float32), batch(dtype=torch.float32)
    with count_passes(model) as passes:
        torchattacks.PGD(model, eps=0.1, alpha=0.02, steps=7)(x, y)
    assert passes.total() == passes_of(6, forward=7, backward_input=7)


def test_counts_through_a_compiled_model():
    torch._dynamo.reset()
    model, (x, y) = torch.compile(relu_net(), backend="aot_eager"), batch()
    with count_passes(model) as passes:
        F.cross_entropy(model(x), y).backward()
        x.requires_grad_()
        torch.autograd.grad(F.cross_entropy(model(x), y), x)
    assert (passes.forward, passes.backward_parameters) == (2, 1)


def test_hooks_are_gone_afterwards_also_after_an_exception():
    model = relu_net()
    with pytest.raises(KeyError), count_passes(model):
        raise KeyError
    assert not model._forward_hooks
    assert not any(p._backward_hooks for p in model.parameters())


def test_live_counts_and_arithmetic():
    model, (x, _) = relu_net(), batch()
    with count_passes(model) as passes:
        model(x)
        assert passes.forward == 1
        model(x)
    assert passes.forward == 2 and "forward=2" in repr(passes)
    assert 2 * passes_of(3, forward=1) + Passes(backward_input=1) == Passes(2, 1, 0, 6, 0, 0)


def test_unwrap_takes_off_a_compiled_ddp_wrapper():
    inner = relu_net()
    wrapper = DistributedDataParallel.__new__(DistributedDataParallel)  # without its process group
    torch.nn.Module.__init__(wrapper)
    wrapper.module = inner
    assert unwrap(inner) is unwrap(wrapper) is unwrap(torch.compile(wrapper)) is inner
    compiled = torch.compile(inner)
    assert unwrap(compiled) is compiled
