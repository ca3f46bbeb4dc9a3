"""Passes are counted rightly, however the model is called, or a warning says that they are not known."""

import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from soatfast.attacks import PGD, FrankWolfe
from soatfast.gradients import count_passes
from soatfast.gradients.passes import Passes, passes_of

X, Y = torch.rand(5, 4), torch.arange(5) % 3
STEP = passes_of(5, forward=1, backward_parameters=1)
GRADIENT = passes_of(5, forward=1, backward_input=1)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def step(call):
    F.cross_entropy(call(X), Y).backward()


def gradient(call):
    leaf = X.clone().requires_grad_()
    torch.autograd.grad(F.cross_entropy(call(leaf), Y), leaf)


def counted(model, run, call=None):
    with warnings.catch_warnings(), count_passes(model) as passes:
        warnings.simplefilter("error")
        run(model if call is None else call)
    return passes.total()


def check(model, call=None):
    assert counted(model, step, call) == STEP
    assert counted(model, gradient, call) == GRADIENT


@dataclasses.dataclass
class Output:
    hidden: torch.Tensor
    logits: torch.Tensor


class Keywords(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = net(), kind

    def forward(self, *, pixel_values, mask=None):
        hidden, logits = pixel_values.tanh(), self.net(pixel_values)
        if mask is not None:
            logits = logits + self.net(mask)
        kinds = {"dict": {"hidden": hidden, "logits": logits}, "tuple": (hidden, [logits])}
        return kinds.get(self.kind, Output(hidden, logits))


@pytest.mark.parametrize(
    ("kind", "read"),
    [("dict", lambda out: out["logits"]), ("tuple", lambda out: out[1][0]), ("dataclass", lambda out: out.logits)],
)
def test_inputs_by_keyword_and_outputs_of_any_form(kind, read):
    model = Keywords(kind)
    check(model, lambda x: read(model(pixel_values=x)))
    with count_passes(model) as passes:
        PGD(eps=0.1, steps=7)(lambda x: read(model(pixel_values=x)), X, Y)
    assert passes.total() == PGD(steps=7).passes(5)


def test_the_gradient_by_another_input():
    model = Keywords("dataclass")
    assert counted(model, gradient, lambda z: model(pixel_values=X, mask=z).logits) == GRADIENT


def test_parameters_that_are_frozen_and_unfrozen_inside():
    model = net()

    def thaw(call):
        call.requires_grad_(True)
        step(call)

    model.requires_grad_(False)
    assert counted(model, thaw) == STEP

    def freeze(call):
        call.requires_grad_(False)
        gradient(call)
        call.requires_grad_(True)
        step(call)

    assert counted(model, freeze) == STEP + GRADIENT


def test_functional_call():
    model = net()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    check(model, lambda x: torch.func.functional_call(model, weights, (x,)))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        for layer in (self.first, self.second):
            x = checkpoint(layer, x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    model = Checkpointed(reentrant)

    def trained(call):
        F.cross_entropy(call(X.clone().requires_grad_()), Y).backward()

    with count_passes(model) as passes:
        trained(model)
        trained(model)
    assert passes.total() == 2 * STEP
    if not reentrant:
        check(model)


def test_a_backward_that_raises_inside_a_run_spoils_nothing_later():
    model = Checkpointed(True)

    def stop(_):
        raise RuntimeError("stop")

    with count_passes(model) as passes:
        leaf = X.clone().requires_grad_()
        leaf.register_hook(stop)
        with pytest.raises(RuntimeError, match="stop"):
            F.cross_entropy(model(leaf), Y).backward()
        before = passes.total()
        F.cross_entropy(model(X.clone().requires_grad_()), Y).backward()
        F.cross_entropy(model(X.clone().requires_grad_()), Y).backward()
    assert passes.backward_parameters - before.backward_parameters == 2


def test_a_checkpoint_around_the_model_is_two_forwards():
    model = net()
    with count_passes(model) as passes:
        F.cross_entropy(checkpoint(model, X.clone().requires_grad_(), use_reentrant=True), Y).backward()
    assert passes.total() == Passes(2, 0, 1, 10, 0, 5)


class OwnGradient(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self.layer(x).logsumexp(1).sum(), self.layer.weight, create_graph=True)
        return F.linear(x, self.layer.weight - 0.1 * slope)


def test_gradients_that_a_forward_takes_are_part_of_it():
    check(OwnGradient())


def test_double_backward_through_a_linear_loss_knows_its_samples():
    model, leaf = nn.Linear(4, 3), X.clone().requires_grad_()
    with count_passes(model) as passes:
        (g,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf, create_graph=True)
        (g * g).sum().backward()
    assert passes.total() == Passes(1, 1, 1, 5, 5, 5)


def test_a_backward_that_only_shares_the_input_is_no_pass():
    model, leaf = net(), X.clone().requires_grad_()
    with count_passes(model) as passes:
        model(leaf)
        leaf.square().sum().backward()
    assert passes.total() == passes_of(5, forward=1)


def test_the_outer_of_a_compiled_model_and_one_compiled_in_place():
    torch._dynamo.reset()
    check(torch.compile(net(), backend="aot_eager"))
    model = net()
    model.compile(backend="aot_eager")
    own = model._compiled_call_impl
    check(model)
    assert model._compiled_call_impl is own
    with count_passes(model) as passes:
        attack = FrankWolfe(eps=0.1, steps=2)
        attack(model, X, Y)
    assert passes.total() == attack.passes(5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_frozen_and_exported_models():
    model = net().eval()
    check(torch.jit.script(model))
    assert counted(torch.jit.freeze(torch.jit.script(model)), gradient) == GRADIENT
    check(torch.export.export(model, (X,)).module())


UNKNOWN = "the numbers of passes are not known: "


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("run", [step, gradient])
def test_the_module_inside_a_compiled_model_is_said_not_to_be_counted(run, first):
    torch._dynamo.reset()
    model = net()
    compiled = torch.compile(model, backend="aot_eager")
    if not first:
        run(compiled)
    with pytest.warns(UserWarning, match=UNKNOWN + r".*torch\.compile"), count_passes(model):
        run(compiled)


def test_vmap_is_said_not_to_be_counted():
    model = net()

    def loss(x, y):
        return F.cross_entropy(model(x[None]), y[None])

    with pytest.warns(UserWarning, match=UNKNOWN + "the model runs under vmap"), count_passes(model):
        torch.func.vmap(torch.func.grad(loss))(X, Y)


def test_a_backward_without_a_seen_forward_is_said():
    model = net()
    value = F.cross_entropy(model(X), Y)
    with pytest.warns(UserWarning, match=UNKNOWN + "a backward reached the parameters"), count_passes(model):
        value.backward()
    with pytest.warns(UserWarning, match=UNKNOWN + "a backward reached the parameters"), count_passes(model):
        F.cross_entropy(model.forward(X), Y).backward()


def test_a_gradient_by_something_inside_is_said():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = torch.zeros(4, requires_grad=True)
            self.net = net().requires_grad_(False)

        def forward(self, x):
            return self.net(x + self.shift)

    model = Shifted()
    reason = UNKNOWN + "a backward through the model reached neither"
    with pytest.warns(UserWarning, match=reason), count_passes(model):
        torch.autograd.grad(F.cross_entropy(model(X), Y), model.shift)


def test_no_hook_is_left():
    for model in (net(), torch.export.export(net(), (X,)).module()):
        before = len(model._forward_hooks), len(model._forward_pre_hooks)
        with count_passes(model):
            gradient(model)
        assert (len(model._forward_hooks), len(model._forward_pre_hooks)) == before
        assert not any(p._backward_hooks for p in model.parameters())
