"""A model is used, and left, as its owner means it: modes, gradients, buffers, weights of every kind."""

import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from soatfast.attacks import PGD, FrankWolfe
from soatfast.evaluate import accuracy
from soatfast.gradients import InputGradient
from soatfast.losses import MART, SCORPIO, STN, TRADES, AdversarialTraining, CrossEntropy, InputGradientPenalty
from tests.nets import batch, conv_net, relu_net

SHAPE = (3, 8, 8)
PLAIN = PGD(eps=0.05, steps=3, random_start=False)


def images():
    return batch(shape=SHAPE, dtype=torch.float32)


class Adapter(nn.Linear):
    """A low-rank adapter's layer: eval folds it into the weight, train takes it out again."""

    def __init__(self, size, out):
        super().__init__(size, out)
        self.adapter, self.folded = nn.Parameter(torch.randn(out, size) / 50), False
        self.weight.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        if mode == self.folded:
            self.weight.data += (-1 if mode else 1) * self.adapter.data
            self.folded = not mode
        return self

    def forward(self, x):
        return F.linear(x, self.weight if self.folded else self.weight + self.adapter, self.bias)


def adapted():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), Adapter(192, 16), nn.ReLU(), nn.Linear(16, 5)).train()


@pytest.mark.parametrize("use", ["attack", "evaluate", "loss", "compat", "regulariser"])
def test_a_class_with_its_own_train_is_unfolded_again(use):
    model, (x, y) = adapted(), images()
    weight = model[1].weight.clone()
    if use == "attack":
        PLAIN(model, x, y)
    elif use == "evaluate":
        accuracy(model, (x, y), PLAIN)
    elif use == "loss":
        AdversarialTraining(PLAIN)(model, x, y).backward()
        assert model[1].adapter.grad is not None
    elif use == "regulariser":
        InputGradientPenalty()(model, x, y).backward()
        assert model[1].adapter.grad is not None
    else:
        from soatfast.compat import torchattacks

        torchattacks.PGD(model, steps=2)(x, y)
    assert model[1].training and not model[1].folded
    assert torch.equal(model[1].weight, weight)  # to the last bit: folding in and out rounds


class Shy(nn.Sequential):
    """train() does not reach its layers, which it does not name as children."""

    def named_children(self):
        return iter(())


class Told(nn.Dropout):
    """Sets its flag in its own way, and says so."""

    said = ()

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "training":
            self.__dict__["said"] = (*self.said, value)


def test_modes_reach_what_train_reaches_and_are_set_as_the_class_does():
    shy, told = Shy(nn.Dropout(0.5)), Told(0.5)
    model, (x, y) = nn.Sequential(shy, told, nn.Flatten(), nn.Linear(192, 5)), images()
    said = told.said
    with InputGradient(model) as oracle:
        oracle.gradient(x, y)
        assert shy[0].training and not shy.training and not told.training
    assert told.said == (*said, False, True)
    assert all(module.training for module in model.modules())


def test_a_class_that_keeps_layers_in_eval_mode_does_so_in_train_mode():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    model, (x, y) = Frozen(*conv_net()).eval(), images()
    seen = []
    model[1].register_forward_hook(lambda m, *_: seen.append(m.training))
    PGD(eps=0.05, steps=2, mode="train")(model, x, y)
    assert seen == [False, False] and not any(m.training for m in model.modules())


# ------------------------------------------------------------------------------------- modules behind a callable

MODEL = conv_net()


def call_global(x):
    return MODEL(x)


class Predictor:
    def __init__(self, model):
        self.parts = {"net": [model]}

    def logits(self, x):
        return self.parts["net"][0](x)

    __call__ = logits


class Hidden(nn.Module):
    """Holds its model in a list, so that torch does not see it."""

    def __init__(self, model):
        super().__init__()
        self.held = [model]

    def forward(self, x):
        return self.held[0](x)


def default_argument(model):
    def call(x, net=model):
        return net(x)

    return call


CALLABLES = {
    "lambda": lambda m: lambda x: m(x),
    "nested": lambda m: (lambda inner: lambda x: inner(x))(lambda x: m(x)),
    "method": lambda m: Predictor(m).logits,
    "object": Predictor,
    "forward": lambda m: m.forward,
    "partial": lambda m: functools.partial(lambda net, x: net(x), m),
    "default": default_argument,
    "hidden": Hidden,
    "functional_call": lambda m: lambda x: torch.func.functional_call(m, dict(m.named_parameters()), (x,)),
    "global": lambda m: call_global,
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_mode_and_state_of_a_model_behind_a_callable(kind):
    (x, y) = images()
    model = MODEL if kind == "global" else conv_net()
    model.train()
    model[1].reset_running_stats()
    expected = PLAIN(model, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(PLAIN(CALLABLES[kind](model), x, y), expected)
    assert model[1].num_batches_tracked == 0 and model.training
    assert all(p.requires_grad for p in model.parameters())


def test_a_callable_without_modules_is_said_once_unless_the_mode_is_kept():
    weight, (x, y) = torch.randn(192, 5), images()

    def call(x):
        return x.flatten(1) @ weight

    with pytest.warns(UserWarning, match='mode="eval" has no effect: no module was found behind .*call'):
        PLAIN(call, x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PGD(steps=2, mode="keep")(call, x, y)


# ------------------------------------------------------------------------------------- buffers


class Observer(nn.Module):
    """Counts what it sees, in eval mode as well, in place and by another tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("later", None)

    def forward(self, x):
        self.seen += 1
        self.largest = torch.maximum(self.largest, x.detach().max())
        self.later = x.detach().mean()
        return x


@pytest.mark.parametrize("mode", ["eval", "train", "keep"])
@pytest.mark.parametrize("use", ["attack", "evaluate", "shared"])
def test_every_buffer_is_as_it_was(mode, use):
    model, (x, y) = nn.Sequential(Observer(), nn.Flatten(), nn.Linear(192, 5)), images()
    before = model[0].largest
    if use == "attack":
        PGD(eps=0.05, steps=2, mode=mode)(model, x, y)
    elif use == "evaluate":
        accuracy(model, (x, y), PGD(eps=0.05, steps=2, mode=mode))
    else:
        with InputGradient(model, mode=mode) as oracle:
            oracle.shared(x, y)  # which counts as the training's
            oracle(x, y)
        assert model[0].seen == 1 and model[0].largest == x.max()
        return
    assert model[0].seen == 0 and model[0].largest is before and before == 0 and model[0].later is None


def test_quantisation_observers_do_not_count_the_attack():
    observers = pytest.importorskip("torch.ao.quantization.observer")
    model, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(192, 5)).eval(), images()
    model.insert(0, observers.MinMaxObserver())
    PLAIN(model, x, y)
    assert model[0].min_val == torch.inf and model[0].max_val == -torch.inf


# ------------------------------------------------------------------------------------- weights of every kind


def meta_clone(model):
    """As MAML's inner loop makes it: the weights are results of an operation, no leaves."""
    twin = copy.copy(model)
    twin._parameters = {k: p if p is None else p.clone() for k, p in model._parameters.items()}
    twin._modules = {k: meta_clone(m) for k, m in model._modules.items()}
    return twin


def test_weights_that_are_no_leaves_and_the_gradient_through_them():
    (x, y) = batch()
    for loss in (SCORPIO(eps=0.1, mode="keep"), SCORPIO(eps=0.1), AdversarialTraining(PLAIN)):
        plain, outer = relu_net(), relu_net()
        loss(plain, x, y).backward()
        loss(meta_clone(outer), x, y).backward()
        for p, q in zip(outer.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad)


class Adapts(nn.Module):
    """Its forward takes a gradient step on its own weight."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x):
        with torch.enable_grad():
            (step,) = torch.autograd.grad(self.layer(x).logsumexp(1).sum(), self.layer.weight, create_graph=True)
        return F.linear(x, self.layer.weight - 0.1 * step, self.layer.bias)


def test_a_forward_that_differentiates_by_its_own_parameters():
    x, y = torch.rand(6, 16), torch.arange(6) % 4
    torch.manual_seed(0)
    model = Adapts()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(model(leaf), y, reduction="sum"), leaf)
    with InputGradient(model) as oracle:
        torch.testing.assert_close(oracle.gradient(x, y), expected)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    value = SCORPIO(eps=0.1, mode="keep")(model, x, y)
    value.backward()
    twin = copy.deepcopy(model)
    twin.zero_grad()
    other = SCORPIO(eps=0.1, mode="keep", recycle=False)(twin, x, y)
    other.backward()
    torch.testing.assert_close(value, other)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


@pytest.mark.parametrize("kind", ["scripted", "frozen", "exported", "exported inside"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_and_exported_models(kind):
    net, (x, y) = relu_net(torch.float32).eval(), batch(dtype=torch.float32)
    if kind.startswith("exported"):
        model = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
        if kind == "exported inside":
            model = nn.Sequential(nn.Dropout(0.5), model)
    else:
        model = torch.jit.script(net)
        model = torch.jit.freeze(model) if kind == "frozen" else model
    for attack in (PLAIN, FrankWolfe(eps=0.05, steps=2)):
        torch.testing.assert_close(attack(model, x, y), attack(net, x, y))
    if kind != "exported inside":
        assert accuracy(model, (x, y), PLAIN).correct.equal(accuracy(net, (x, y), PLAIN).correct)
    else:
        assert model[0].training


def test_an_exported_model_of_one_batch_size_is_evaluated_in_whole_batches():
    net, (x, y) = relu_net(torch.float32).eval(), batch(dtype=torch.float32)
    y[:3] = net(x).argmax(1)[:3]
    expected, found = (accuracy(m, (x, y), PLAIN) for m in (net, torch.export.export(net, (x,)).module()))
    assert torch.equal(found.correct, expected.correct) and 6 > found.attacked == expected.attacked > 0
    assert found.passes["forward_samples"] == 6 * found.passes["forward"], "what fills a batch up is counted"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_model_in_train_mode_gets_its_buffers_back():
    model, (x, y) = torch.jit.script(conv_net().train()), images()
    before = [b.clone() for b in model.buffers()]
    PGD(eps=0.05, steps=2, mode="train")(model, x, y)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True)) and model.training


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("kind", ["pruned", "weight_norm", "parametrized", "spectral"])
def test_weights_that_are_computed(kind):
    (x, y) = batch()
    plain, model = relu_net(), relu_net()
    for net in (plain, model):
        if kind == "pruned":
            prune.l1_unstructured(net[1], "weight", amount=0.5)
        elif kind == "weight_norm":
            nn.utils.weight_norm(net[1])
        elif kind == "parametrized":
            parametrizations.weight_norm(net[1])
        else:
            torch.manual_seed(3)
            parametrizations.spectral_norm(net[1])
            net.eval()
    x_adv = PLAIN(model, x, y)
    F.cross_entropy(plain(x_adv), y).backward()
    AdversarialTraining(PLAIN)(model, x, y).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_an_attack_in_parametrize_cached_leaves_no_frozen_weight_there():
    model, (x, y) = relu_net(), batch()
    parametrizations.weight_norm(model[1])
    with parametrize.cached():
        AdversarialTraining(PLAIN)(model, x, y).backward()
    assert all(p.grad is not None and p.grad.any() for p in model[1].parameters())


@pytest.mark.parametrize(
    "attack", [PLAIN, FrankWolfe(eps=0.05, steps=2), FrankWolfe(eps=0.05, steps=2, scheme="exact")]
)
def test_weights_made_in_inference_mode(attack):
    (x, y) = images()
    with torch.inference_mode():
        model = conv_net().eval()
    weight, mean = model[0].weight, model[1].running_mean
    torch.testing.assert_close(attack(model, x, y), attack(conv_net().eval(), x, y))
    assert model[0].weight is weight and model[1].running_mean is mean


LOSSES = [
    AdversarialTraining(PLAIN),
    TRADES(steps=2),
    TRADES(steps=2, mode="keep"),
    MART(steps=2),
    SCORPIO(),
    SCORPIO(mode="keep"),
    STN(sigma=0.1),
    InputGradientPenalty(),
    CrossEntropy(),
]


@pytest.mark.parametrize("made", ["outside", "inside"])
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: f"{type(loss).__name__}-{getattr(loss, 'mode', '')}")
def test_losses_under_inference_mode(loss, made):
    model, (x, y) = relu_net(), batch()
    torch.manual_seed(0)
    expected = loss(model, x, y)
    with torch.inference_mode():
        if made == "inside":
            x, y = x.clone(), y.clone()
        torch.manual_seed(0)
        torch.testing.assert_close(loss(model, x, y), expected.detach())


def test_what_cannot_be_attacked_says_what_to_do():
    (x, y) = images()
    with pytest.raises(ValueError, match=r"LazyLinear has no weights before its first forward: run model\(x\) once"):
        PLAIN(nn.Sequential(nn.Flatten(), nn.LazyLinear(5)), x, y)

    class Constant(nn.Module):
        def forward(self, x):
            return torch.round(x.detach().flatten(1)[:, :5])

    for mode in ("eval", "keep"):
        with pytest.raises(ValueError, match=r"no gradient by its input .*SimBA"):
            PGD(steps=2, mode=mode)(Constant(), x, y % 5)
