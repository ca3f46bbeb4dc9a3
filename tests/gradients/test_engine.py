"""Every engine gives eager's gradients within its precision, and leaves the model as it was."""

import copy
import dataclasses
import functools
import gc
import itertools
import re
import typing
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

from soatfast import ops
from soatfast.attacks import HAAT, MIFGSM, PGD, SOAE, FrankWolfe
from soatfast.gradients import InputGradient, cast_weights, count_passes
from soatfast.gradients import engine as engine_module
from soatfast.gradients.engine import Engine, Name, parse
from soatfast.losses import MART, SCORPIO, TRADES

ENGINES = ["channels_last", "compile", "folded", "bf16", "fp16", "bf16+channels_last", "bf16+folded", "bf16+compile"]


@pytest.fixture(autouse=True)
def _quick_to_compile(request, monkeypatch):
    """Traced and differentiated as ever, but run by PyTorch's own kernels: inductor takes seconds a graph."""
    if request.node.get_closest_marker("inductor") is None:
        monkeypatch.setattr(engine_module, "_compiled", functools.cache(partial(torch.compile, backend="aot_eager")))


class Net(nn.Module):
    """Smooth, so that rounding moves no unit across a kink."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(8, 4)

    def forward(self, x):
        return self.linear(self.drop(nn.functional.softplus(self.norm(self.conv(x)))).mean((2, 3)))


def problem(batch=5):
    torch.manual_seed(0)
    model = Net()
    x, y = torch.rand(batch, 3, 8, 8), torch.arange(batch) % 4
    model(x)  # statistics of their own
    return model, x, y


def state_of(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    layout = {name: (t.data_ptr(), t.stride(), t.requires_grad) for name, t in tensors.items()}
    flags = [m.training for m in model.modules()]
    return layout, flags, sorted(vars(model)), {name: t.detach().clone() for name, t in tensors.items()}


def assert_same_state(model, before):
    layout, flags, attributes, values = before
    assert state_of(model)[:3] == (layout, flags, attributes)
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        assert torch.equal(t, values[name]), name


def relative(a, b):
    return ((a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).max()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("eager", Engine()),
        ("bf16", Engine(torch.bfloat16)),
        ("fp16", Engine(torch.float16)),
        ("fp16+channels_last", Engine(torch.float16, channels_last=True)),
        ("bf16+channels_last+compile", Engine(torch.bfloat16, channels_last=True, compile=True)),
    ],
)
def test_names(name, expected):
    assert parse(name) == expected


@pytest.mark.parametrize(
    "name", ["", "fast", "eager+bf16", "bf16+fp16", "bf16+bf16", "BF16", "bf16 + compile", "+bf16"]
)
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="engine must be"):
        parse(name)


def test_every_engine_has_one_name_that_type_checkers_know():
    names = typing.get_args(Name)
    engines = [parse(name) for name in names]
    assert [engine.name for engine in engines] == list(names)
    assert len(set(engines)) == len(engines) == 30
    for name in names:
        parts = name.split("+")
        for other in set(itertools.permutations(parts)) - {tuple(parts)}:
            with pytest.raises(ValueError, match=re.escape(f"is written '{name}'")):
                parse("+".join(other))


@pytest.mark.parametrize("name", ["folded+compile", "folded+graph", "bf16+channels_last+folded+compile"])
def test_folded_takes_no_compile_or_graph(name):
    with pytest.raises(ValueError, match='takes no "compile" or "graph"'):
        parse(name)


def test_an_engine_is_named_by_a_string():
    with pytest.raises(TypeError, match="engine must be a string, got dtype"):
        PGD(engine=torch.bfloat16)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_agree_with_eager(engine, mode):
    model, x, y = problem()
    model.drop = nn.Identity()  # train mode would draw other masks
    with InputGradient(model, mode=mode) as eager:
        loss, g = eager(x, y)
    before = state_of(model)
    with InputGradient(model, mode=mode, engine=engine) as oracle:
        found_loss, found = oracle(x, y)
        again = oracle.gradient(x, y)
        alone = oracle.loss(x, y)
    tolerance = 1e-5 if parse(engine).precision is None else 5e-3 if "fp16" in engine else 4e-2
    assert found.dtype == torch.float32 and found_loss.dtype == torch.float32
    assert relative(found, g) < tolerance and relative(again, g) < tolerance
    torch.testing.assert_close(found_loss, loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(alone, loss, rtol=tolerance, atol=tolerance)
    assert_same_state(model, before)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("attack", [PGD(eps=0.1, steps=3), FrankWolfe(eps=0.1, scheme="cd"), MIFGSM(eps=0.1)])
def test_attacks_stay_in_the_ball_count_alike_and_leave_the_model_alone(attack, engine):
    model, x, y = problem()
    before = state_of(model)
    with count_passes(model) as passes:
        x_adv = dataclasses.replace(attack, engine=engine)(model, x, y)
    assert passes.total() == attack.passes(len(x))
    assert x_adv.dtype == x.dtype and x_adv.stride() == x.stride() and not x_adv.requires_grad
    assert (x_adv - x).abs().max() <= 0.1 + 1e-7 and x_adv.min() >= 0 and x_adv.max() <= 1
    assert_same_state(model, before)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_model_is_put_back_after_an_exception(engine):
    model, x, y = problem()
    before = state_of(model)

    def interrupt(module, args, output):
        raise KeyboardInterrupt

    handle = model.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        PGD(eps=0.1, engine=engine)(model, x, y)
    handle.remove()
    assert_same_state(model, before)


@pytest.mark.parametrize("outer", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("engine", ["eager", "channels_last", "bf16"])
def test_under_no_grad_and_inference_mode(engine, outer):
    model, x, y = problem()
    expected = PGD(eps=0.1, random_start=False, engine=engine)(model, x, y)
    with outer():
        assert torch.equal(PGD(eps=0.1, random_start=False, engine=engine)(model, x, y), expected)


class Heads(nn.Module):
    """Layers of several kinds: one that normalises its weight, one in full precision out of autocast."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.middle = nn.Linear(8, 8)
        self.cosine = nn.Linear(8, 8, bias=False)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.middle(nn.functional.softplus(self.conv(x)).mean((2, 3)))
        x = nn.functional.linear(x, nn.functional.normalize(self.cosine.weight, dim=1))
        with torch.autocast("cpu", enabled=False):
            return self.head(x.float())


class Casts(TorchDispatchMode):
    """Counts casts from float32 of tensors of one shape."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].shape == self.shape:
            self.count += args[0].dtype == torch.float32
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", [Net, Heads])
@pytest.mark.parametrize("engine", ["bf16", "fp16", "bf16+channels_last"])
def test_weights_are_cast_once_and_the_numbers_are_autocasts(engine, kind):
    _, x, y = problem()
    model = kind().eval()
    leaf, twin = x.clone().requires_grad_(), copy.deepcopy(model).requires_grad_(False)
    with torch.autocast("cpu", dtype=parse(engine).precision):
        logits = twin(leaf)
        (expected,) = torch.autograd.grad(logits, leaf, ops.cross_entropy_derivative(logits.detach(), y))
    before = state_of(model)
    with InputGradient(model, engine=engine) as oracle, Casts(model.conv.weight.shape) as casts:
        g = oracle.gradient(x, y)
        oracle.gradient(x, y)
        assert torch.equal(oracle.logits, logits)
    assert casts.count == 1
    assert engine != "bf16" or torch.equal(g, expected)  # fp16 goes back at unit scale, channels_last sums in its order
    assert_same_state(model, before)


def test_the_shared_pass_of_the_training_step_has_the_weights_of_the_training():
    model, x, y = problem()
    callers = torch.autocast("cpu", dtype=torch.bfloat16)
    with callers, InputGradient(model, mode="keep", engine="bf16") as oracle:
        oracle.gradient(x, y)
        total, _ = oracle.shared(x, y)
    total.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_layers_of_their_own_kind_are_left_to_autocast():
    """A subclass, a patched forward, a parametrised weight; and models with replicas or compiled parts."""
    layers = [Linear2(4, 2), nn.Linear(4, 2), parametrizations.weight_norm(nn.Linear(4, 2)), nn.Linear(4, 2)]
    layers[1].forward = partial(nn.Linear.forward, layers[1])
    assert cast_weights.CastWeights(layers[:3], torch.bfloat16)._layers == []
    half = parse("bf16")
    assert cast_weights.casts_once(half, layers)
    for other in (nn.DataParallel(nn.Linear(4, 2)), torch.compile(nn.Linear(4, 2))):
        assert not cast_weights.casts_once(half, [*layers, other])
    assert not cast_weights.casts_once(parse("bf16+compile"), layers)
    assert not cast_weights.casts_once(parse("bf16+graph"), layers)


class Linear2(nn.Linear):
    pass


def test_weights_that_change_are_cast_anew_also_inside_the_block():
    model, x, y = problem()
    with InputGradient(model, engine="bf16") as oracle:
        first = oracle.gradient(x, y)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(2)
        second = oracle.gradient(x, y)
    with InputGradient(copy.deepcopy(model), engine="bf16") as fresh:
        assert torch.equal(second, fresh.gradient(x, y)) and not torch.equal(first, second)


def test_the_copies_are_freed_with_the_block():
    model, x, y = problem()
    seen, usual = [], model.conv._conv_forward

    def conv_forward(x, weight, bias):
        seen.append(weakref.ref(weight))
        return usual(x, weight, bias)

    model.conv._conv_forward = conv_forward
    gc.disable()
    try:
        with InputGradient(model, engine="bf16") as oracle:
            oracle.gradient(x, y)
        assert seen and seen[0]() is None
    finally:
        gc.enable()


def test_the_model_is_the_callers_own_between_two_passes():
    model, x, y = problem()
    expected = copy.deepcopy(model).eval()(x)
    with InputGradient(model, engine="bf16") as oracle:
        oracle.gradient(x, y)
        assert torch.equal(model(x), expected)  # in float32, outside of autocast


def test_weights_made_in_inference_mode_have_no_version_and_are_left_to_autocast():
    with torch.inference_mode():
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    usual = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    usual.load_state_dict(model.state_dict())
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 0])
    found = []
    for each in (model, usual):
        with torch.inference_mode(), InputGradient(each, engine="bf16") as oracle:
            found.append(oracle.gradient(x, y))
    assert torch.equal(*found)


def test_weights_that_are_channels_last_already_are_not_copied():
    model, x, y = problem()
    model.to(memory_format=torch.channels_last)
    before = model.conv.weight.data_ptr()
    with InputGradient(model, engine="channels_last") as oracle:
        g = oracle.gradient(x, y)
        assert model.conv.weight.data_ptr() == before
    assert g.is_contiguous(memory_format=torch.channels_last)


def test_images_that_are_no_images_take_channels_last_too():
    torch.manual_seed(0)
    model, x, y = nn.Linear(6, 3), torch.rand(4, 6), torch.tensor([0, 1, 2, 0])
    found = PGD(eps=0.1, random_start=False, engine="channels_last")(model, x, y)
    assert torch.equal(found, PGD(eps=0.1, random_start=False)(model, x, y))


@pytest.mark.inductor
def test_compiled_forwards_follow_the_weights():
    model, x, y = problem()
    with InputGradient(model, engine="compile") as oracle:
        oracle.gradient(x, y)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    other = copy.deepcopy(model)
    other.load_state_dict(problem()[0].state_dict())
    for m in (model, other):
        with InputGradient(m) as eager, InputGradient(m, engine="compile") as oracle:
            assert relative(oracle.gradient(x, y), eager.gradient(x, y)) < 1e-5


def test_the_compiled_forward_keeps_no_model_alive():
    model, x, y = problem()
    gone = weakref.ref(model)
    PGD(eps=0.1, steps=1, engine="compile")(model, x, y)
    del model
    gc.collect()
    assert gone() is None


def test_compile_of_a_patched_and_of_a_compiled_model():
    model, x, y = problem()
    model.eval()
    with InputGradient(model) as eager:
        expected = eager.gradient(x, y)
    with InputGradient(torch.compile(model), engine="compile") as oracle:
        assert relative(oracle.gradient(x, y), expected) < 1e-5
    plain = model.forward
    model.forward = lambda x: 2 * plain(x)
    patched = model.forward
    with InputGradient(model) as eager, InputGradient(model, engine="compile") as oracle:
        assert relative(oracle.gradient(x, y), eager.gradient(x, y)) < 1e-5
    assert model.forward is patched


def test_exact_products_of_an_engine_that_compiles():
    model, x, y = problem()
    v = torch.randn_like(x)
    with InputGradient(model) as eager, InputGradient(model, engine="compile") as oracle:
        expected, found = eager.differentiable(x, y)[2](v), oracle.differentiable(x, y)[2](v)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("engine", ["compile", "channels_last"])
def test_a_callable_has_no_forward_to_compile_nor_weights(engine):
    with pytest.raises(TypeError, match=r"needs an nn\.Module, got function"):
        InputGradient(lambda x: x, engine=engine)


@pytest.mark.parametrize("attack", [SOAE, HAAT])
def test_tiny_differences_refuse_half_precision(attack):
    with pytest.raises(ValueError, match="full precision, got engine 'bf16'"):
        attack(eps=0.1, engine="bf16")
    attack(eps=0.1, engine="bf16", full_precision=False)
    attack(eps=0.1, engine="channels_last")


def test_short_steps_of_frank_wolfe_refuse_half_precision():
    FrankWolfe(h=0.1, engine="bf16")
    FrankWolfe(h=0.01)
    with pytest.raises(ValueError, match=r"needs h >= 0\.1, got 0\.01"):
        FrankWolfe(h=0.01, engine="bf16")
    with pytest.raises(ValueError, match=r"needs h >= 0\.1, got 0\.01"):
        SCORPIO(h=0.01, engine="fp16")


@pytest.mark.parametrize("loss", [SCORPIO, TRADES, MART])
def test_the_training_passes_keep_the_callers_precision(loss):
    model, x, y = problem()
    dtypes = []
    model.linear.register_forward_hook(lambda module, args, output: dtypes.append(output.dtype))
    criterion = loss(eps=0.1, engine="bf16")
    with count_passes(model) as passes:
        value = criterion(model, x, y)
        value.backward()
    assert passes.total() == criterion.passes(len(x))
    assert value.dtype == torch.float32 and dtypes[-2:] == [torch.float32] * 2
    assert dtypes.count(torch.bfloat16) == criterion.passes().forward - 2


def test_the_shared_clean_pass_is_the_callers():
    model, x, y = problem()
    model.eval()
    full, reduced = SCORPIO(eps=0.1, mode="keep"), SCORPIO(eps=0.1, mode="keep", engine="bf16+channels_last")
    grads = []
    for criterion in (full, reduced):
        oracle = criterion.attack.oracle(model)
        with oracle:
            total, g0 = oracle.shared(x, y)
        grads.append((total.detach(), g0, *torch.autograd.grad(total, list(model.parameters()))))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
        assert b.dtype == torch.float32


def test_an_attack_step_compiles_without_graph_breaks():
    model, x, y = problem()
    model.eval()

    def objective(points):
        return nn.functional.cross_entropy(model(points), y, reduction="sum")

    def step(x_adv, x):
        return ops.pgd_step(x_adv, torch.func.grad(objective)(x_adv), x, float("inf"), 0.1, 0.05)

    torch._dynamo.reset()
    found = torch.compile(step, fullgraph=True)(x, x)
    torch.testing.assert_close(found, PGD(eps=0.1, step_size=0.05, steps=1, random_start=False)(model, x, y))


@pytest.mark.parametrize("mode", ["eval", "keep", "train"])
@pytest.mark.parametrize("autocast", [False, True])
def test_a_sample_that_overflows_in_fp16_stops_no_other(mode, autocast):
    """Its logits are infinite: its derivative is NaN, and no part of the scale at which the others go back."""

    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.0), nn.Linear(16, 3))

        def forward(self, x):
            return self.head(x) * torch.where(x[:, :1] > 0.99, 1e30, 1.0)

    torch.manual_seed(0)
    model, x, y = Loud().train(), 0.9 * torch.rand(5, 8), torch.tensor([0, 1, 2, 0, 1])
    x[0, 0] = 1.0
    with (
        torch.autocast("cpu", torch.float16, enabled=autocast),
        InputGradient(model, mode=mode, engine="fp16") as oracle,
    ):
        g = oracle.gradient(x, y)
        quiet = oracle.gradient(x[1:], y[1:])
    assert not g[0].isfinite().all() and g[1:].isfinite().all()
    with InputGradient(model, mode=mode) as oracle:
        exact = oracle.gradient(x[1:], y[1:])
    torch.testing.assert_close(g[1:], exact, rtol=2e-2, atol=1e-4)
    assert torch.equal(g[1:], quiet)
