"""Precision inside a forward, torch's TF32 switches, models compiled in place, torch.compile around the caller."""

import contextlib
import copy
import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soatfast.attacks import HAAT, PGD, SOAE
from soatfast.gradients import InputGradient, count_passes, full_precision
from soatfast.gradients.engine import is_compiled
from soatfast.gradients.full_precision import without_tf32
from soatfast.losses import CURE, LLR, SCORPIO, SOAR, TRADES, AdversarialTraining, InputGradientPenalty
from soatfast.solvers import top_eigenpair
from tests.nets import batch, conv_net, relu_net, smooth_net


def data():
    return batch(dtype=torch.float32)


class Lowered(nn.Module):
    """Autocast inside the forward, and an output in float32, as wrappers of mixed precision have it."""

    def __init__(self, inner, dtype):
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x):
        with torch.autocast("cpu", dtype=self.dtype):
            return self.inner(x).float()


class Cast(Lowered):
    """The same without autocast: a part of the model in half precision."""

    def __init__(self, inner, dtype):
        super().__init__(copy.deepcopy(inner).to(dtype), dtype)

    def forward(self, x):
        return self.inner(x.to(self.dtype)).float()


DIFFERENCES = [CURE(), SOAR(eps=0.1), LLR(eps=0.1), InputGradientPenalty(variant="difference"), CURE(mode="keep")]


@pytest.mark.parametrize("wrap", [Lowered, Cast])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", DIFFERENCES, ids=lambda loss: f"{type(loss).__name__}-{loss.mode}")
def test_losses_of_differences_see_the_precision_inside(loss, dtype, wrap):
    model, (x, y) = wrap(relu_net(torch.float32), dtype), data()
    with pytest.raises(TypeError, match=r"differences .* needs float32 or float64, .*(forward runs in|parameters of)"):
        loss(model, x, y)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("attack", [HAAT(eps=0.1, steps=1, power=1), SOAE(eps=0.1)])
def test_attacks_of_differences_see_the_precision_inside(attack):
    model, (x, y) = Lowered(relu_net(torch.float32), torch.bfloat16), data()
    with pytest.raises(TypeError, match=f"{type(attack).__name__} with full_precision=True takes differences"):
        attack(model, x, y)
    PGD(eps=0.1, steps=2)(model, x, y)  # which takes none


def test_the_eigenpair_sees_the_precision_of_the_pass():
    x, y = data()
    lowered, refused = Lowered(smooth_net(torch.float32), torch.bfloat16), pytest.raises(TypeError, match="differences")
    with refused, InputGradient(lowered) as oracle:
        top_eigenpair(oracle, x, y, max_dim=2)
    with InputGradient(smooth_net(torch.float32)) as oracle:
        assert top_eigenpair(oracle, x, y, max_dim=2).value.isfinite().all()
        with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(TypeError, match="top_eigenpair"):
            top_eigenpair(oracle, x, y, max_dim=2)


def test_attacks_of_differences_pass_by_the_autocast_of_accelerate():
    accelerate = pytest.importorskip("accelerate")
    net, (x, y) = relu_net(torch.float32), data()
    attack = HAAT(eps=0.1, steps=2, power=2)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # another test's
    try:
        wrapped = accelerate.Accelerator(mixed_precision="bf16", cpu=True).prepare(copy.deepcopy(net))
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    before, results = wrapped.forward, []
    for model in (net, wrapped):
        torch.manual_seed(0)
        results.append(attack(model, x, y))
    torch.testing.assert_close(results[1], results[0])
    assert wrapped.forward == before
    with pytest.raises(TypeError, match="CURE takes differences"):
        CURE()(wrapped, x, y)


def test_tiny_gradients_survive_a_forward_that_runs_in_float16_inside():
    model = nn.Linear(2, 2, bias=False)
    nn.init.eye_(model.weight)
    with InputGradient(Lowered(model, torch.float16)) as oracle:
        grad = oracle.gradient(torch.tensor([[20.0, 0.0]]), torch.tensor([0]))
    torch.testing.assert_close(grad, torch.tensor([[-1.0, 1.0]]) * 2.061e-9, rtol=1e-2, atol=0)


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_the_shared_pass_waits_for_the_scalers_scale_in_float16(where):
    torch.manual_seed(0)
    net, (x, y) = relu_net(torch.float32), data()
    with torch.no_grad():
        net[3].weight.mul_(200)  # confident: unscaled derivatives underflow in float16
    y = net(x).argmax(1)
    grads = {}
    for recycle in (True, False):
        model = copy.deepcopy(net)
        called = Lowered(model, torch.float16) if where == "inside" else model
        autocast = torch.autocast("cpu", dtype=torch.float16) if where == "outside" else contextlib.nullcontext()
        with autocast, count_passes(called) as passes:
            loss = SCORPIO(eps=1e-3, mode="keep", strength=0.5, recycle=recycle)
            value = loss(called, x, y)
        (value * 2.0**14).backward()
        assert passes.backward_input >= 3
        grads[recycle] = torch.cat([p.grad.flatten() for p in model.parameters()]) / 2.0**14
    torch.testing.assert_close(grads[True], grads[False], rtol=1e-2, atol=1e-8)
    assert grads[True].any()


def test_a_scaler_accumulation_and_clipping_with_the_shared_pass():
    (x, y), net = data(), relu_net(torch.float32)
    twin = copy.deepcopy(net)
    loss = SCORPIO(eps=0.1, mode="keep")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for half in (slice(0, 3), slice(3, 6)):
        scaler.scale(loss(net, x[half], y[half]) / 2).backward()
        (SCORPIO(eps=0.1, mode="keep", recycle=False)(twin, x[half], y[half]) / 2).backward()
    scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(twin.parameters(), 0.5))
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)
    scaler.step(optimizer)


# ------------------------------------------------------------------------------------- TF32


def switches():
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    return [s.fp32_precision for s in (cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)]


@pytest.fixture
def restored_switches():
    yield
    torch.backends.fp32_precision = "none"
    for place in (torch.backends.cuda.matmul, torch.backends.cudnn.rnn, torch.backends.mkldnn.matmul):
        place.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def legacy(value):
    torch.backends.cuda.matmul.allow_tf32 = value


def new(value):
    torch.backends.cuda.matmul.fp32_precision = value


def everything(value):
    torch.backends.fp32_precision = value


@pytest.mark.parametrize(
    ("switch", "value"),
    [
        (legacy, True),
        (torch.set_float32_matmul_precision, "medium"),
        (torch.set_float32_matmul_precision, "high"),
        (new, "tf32"),
        (everything, "tf32"),
        (everything, "ieee"),
    ],
)
def test_without_tf32_understands_both_switches(restored_switches, switch, value):
    switch(value)
    before = switches()
    with without_tf32():
        assert not {"tf32", "bf16"} & set(switches())
    assert switches() == before
    model, (x, y) = relu_net(torch.float32), data()
    HAAT(eps=0.1, steps=1, power=1)(model, x, y)
    CURE()(model, x, y)
    assert switches() == before


def test_the_switch_above_still_rules_afterwards(restored_switches):
    torch.backends.fp32_precision = "tf32"
    new("tf32")
    with without_tf32():
        pass
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


# ------------------------------------------------------------------------------------- torch.compile


def test_a_model_compiled_in_place_is_known_as_compiled():
    torch._dynamo.reset()
    model, (x, y) = conv_net().train(), batch(shape=(3, 8, 8), dtype=torch.float32)
    expected = PGD(eps=0.1, steps=2, random_start=False)(model, x, y)
    assert not is_compiled(model)
    model.compile(backend="aot_eager")
    assert is_compiled(model) and is_compiled(torch.compile(conv_net()))
    for engine in ("eager", "compile"):
        attack = PGD(eps=0.1, steps=2, random_start=False, engine=engine)
        torch.testing.assert_close(attack(model, x, y), expected)
    assert model.training and model[1].num_batches_tracked == 0
    AdversarialTraining(PGD(eps=0.1, steps=2))(model, x, y).backward()
    assert all(p.grad is not None for p in model.parameters())


BREAKS = {
    "attack": (PGD(eps=0.1, steps=2, random_start=False), 14),
    "AdversarialTraining": (AdversarialTraining(PGD(eps=0.1, steps=2, random_start=False)), 18),
    "TRADES": (TRADES(eps=0.1, steps=2), 32),
    "SCORPIO": (SCORPIO(eps=0.1, steps=2), 24),
}
"""Bounds of the graph breaks, as docs/any-model.md gives them: torch 2.13 made fewer."""


@pytest.mark.parametrize("name", BREAKS)
def test_torch_compile_around_an_attack_or_a_loss_breaks_the_graph_and_keeps_the_values(name):
    torch._dynamo.reset()
    run, most = BREAKS[name]
    model, (x, y) = relu_net(torch.float32), data()
    results = []
    for call in (run, torch.compile(lambda *given: run(*given), backend="eager")):
        torch.manual_seed(0)
        model.zero_grad()
        value = call(model, x, y)
        if value.requires_grad:
            value.backward()
        results.append([value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for compiled, plain in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(compiled, plain)
    torch._dynamo.reset()
    found = torch._dynamo.explain(lambda *given: run(*given))(model, x, y)
    assert 1 <= found.graph_break_count <= most
    assert F.cross_entropy(model(x), y).requires_grad


class HalfInside(nn.Module):
    """Autocast inside the forward; with `on` False a float32 model."""

    def __init__(self, on: bool):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.on = nn.Linear(16, 20), nn.Linear(20, 4), on

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.on):
            z = self.last(torch.relu(self.first(x.flatten(1))))
        return z.to(torch.float32)


class ScriptedHalf(HalfInside):
    """TorchScript takes constants only."""

    def forward(self, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            z = self.last(torch.relu(self.first(x.flatten(1))))
        return z.to(torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_half_precision_in_a_compiled_or_scripted_forward_is_refused_or_said():
    """A compiled model by what it saves, a scripted one by its nodes; where nothing is seen, once a warning."""
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 3])
    attack = SOAE(steps=1, max_dim=2)
    compiled = functools.partial(torch.compile, backend="aot_eager")
    for model in (compiled(HalfInside(True)), torch.jit.script(ScriptedHalf(True))):
        for _ in range(3):  # TorchScript fuses after its first calls
            with pytest.raises(TypeError, match=r"part of the model's forward runs in torch\.bfloat16"):
                attack(model, x, y)
    full_precision._warn_unseen.cache_clear()
    model = compiled(HalfInside(False))
    with pytest.warns(UserWarning, match="SOAE .*takes differences .* compiled or scripted: half precision") as seen:
        attack(model, x, y)
        attack(model, x, y)
    assert len([w for w in seen if "compiled or scripted" in str(w.message)]) == 1
    full_precision._warn_unseen.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attack(HalfInside(False), x, y)
        PGD(steps=1)(model, x, y)  # takes no differences
