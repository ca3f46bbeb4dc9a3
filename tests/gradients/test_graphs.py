"""CUDA graphs: on a GPU against eager; without one keys, addresses and lifetimes, with graphs that a CPU replays."""

import contextlib
import dataclasses
import gc
import weakref

import pytest
import torch
from torch import nn

import soatfast as sf
from soatfast.attacks import FGSM, HAAT, MIFGSM, PGD, FrankWolfe
from soatfast.gradients import InputGradient, graphs
from soatfast.gradients.full_precision import without_tf32
from soatfast.losses import SCORPIO, TRADES
from tests.gradients import fake_graphs


@pytest.fixture
def recordings(monkeypatch):
    monkeypatch.setattr(graphs, "check_device", lambda device: None)
    yield fake_graphs.install(monkeypatch).graphs
    graphs.release_graphs()


def problem(batch=4, device="cpu"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 3))
    x, y = torch.rand(batch, 1, 8, 8), torch.arange(batch) % 3
    model(x)
    return model.to(device), x.to(device), y.to(device)


ATTACKS = [
    FGSM(eps=0.1),
    PGD(eps=0.1, steps=3, random_start=False),
    PGD(eps=0.5, p=2, steps=3, random_start=False, best=True, objective="margin"),
    MIFGSM(eps=0.1, steps=3),
    FrankWolfe(eps=0.1),
    FrankWolfe(eps=0.1, scheme="cd", in_box=True),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_is_one_recording_for_all_batches_of_a_shape(recordings, attack):
    model, x, y = problem()
    graphed = dataclasses.replace(attack, engine="graph")
    for seed in range(3):
        points = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(graphed(model, points, y), attack(model, points, y))
    assert len(recordings) == 1
    graphed(model, x[:2], y[:2])
    assert len(recordings) == 2


def test_a_gradient_is_one_recording(recordings):
    model, x, y = problem()
    with InputGradient(model) as eager, InputGradient(model, engine="graph") as oracle:
        for points in (x, 1 - x):
            expected, found = eager(points, y), oracle(points, y)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
            assert torch.equal(oracle.logits, eager.logits)
    assert len(recordings) == 1


def test_what_changes_in_place_needs_no_new_recording(recordings):
    model, x, y = problem()
    attack = PGD(eps=torch.tensor(0.1), steps=2, random_start=False, engine="graph")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for eps in (0.1, 0.2, 0.05):  # an eps schedule
        attack = attack.with_eps(torch.tensor(eps))
        assert torch.equal(attack(model, x, y), dataclasses.replace(attack, engine="eager")(model, x, y))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.load_state_dict(problem()[0].state_dict())
    assert torch.equal(attack(model, x, y), dataclasses.replace(attack, engine="eager")(model, x, y))
    assert len(recordings) == 1


def test_what_is_structural_is_another_recording(recordings):
    model, x, y = problem()
    base = PGD(eps=0.1, steps=2, random_start=False, engine="graph")
    changed = [
        base,
        base.with_steps(3),
        dataclasses.replace(base, targeted=True),
        dataclasses.replace(base, objective="margin"),
        dataclasses.replace(base, mode="train"),
        dataclasses.replace(base, bounds=(-1.0, 2.0)),
    ]
    for count, attack in enumerate(changed, 1):
        for _ in range(2):
            assert torch.equal(attack(model, x, y), dataclasses.replace(attack, engine="eager")(model, x, y))
        assert len(recordings) == count
    model[0].weight.data = model[0].weight.data.clone()  # it lies elsewhere now
    base(model, x, y)
    assert len(recordings) == len(changed) + 1


def test_only_so_many_are_kept(recordings):
    model, x, y = problem()
    for steps in range(1, graphs.KEPT + 3):
        PGD(eps=0.1, steps=steps, engine="graph")(model, x, y)
    assert len(graphs._recordings[model]) == graphs.KEPT


def test_a_schedule_of_radii_by_numbers_is_one_recording(recordings):
    model, x, y = problem()
    attack = PGD(eps=0.1, steps=2, random_start=False, engine="graph")
    for step in range(1, 6):
        ramp = dataclasses.replace(attack, eps=0.02 * step, step_size=0.007 * step)
        assert torch.equal(ramp(model, x, y), dataclasses.replace(ramp, engine="eager")(model, x, y))
    assert len(recordings) == 1


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@contextlib.contextmanager
def setting(place, name, value):
    before = getattr(place, name)
    setattr(place, name, value)
    yield
    setattr(place, name, before)


@pytest.mark.parametrize(
    "around",
    [
        autocast,
        lambda: setting(torch.backends.cuda.matmul, "allow_tf32", True),
        lambda: setting(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32),
        lambda: setting(torch.backends.cudnn, "deterministic", True),
    ],
    ids=["autocast", "matmul", "cudnn", "deterministic"],
)
def test_a_setting_of_precision_around_the_call_is_another_recording(recordings, around):
    model, x, y = problem()
    attack = PGD(eps=0.1, steps=2, random_start=False, engine="graph")
    attack(model, x, y)
    with around():
        found = attack(model, x, y)
        assert torch.equal(found, dataclasses.replace(attack, engine="eager")(model, x, y))
    assert len(recordings) == 2
    attack(model, x, y)
    assert len(recordings) == 2
    assert not any(graph.cached_casts for graph in recordings) and torch.is_autocast_cache_enabled()


def test_a_full_precision_gradient_is_not_served_by_a_tf32_recording(recordings):
    model, x, y = problem()
    with setting(torch.backends.cuda.matmul, "allow_tf32", True):
        with InputGradient(model, engine="graph") as oracle:
            oracle.gradient(x, y)
        with InputGradient(model, engine="graph") as oracle, without_tf32():
            oracle.gradient(x, y)
    assert len(recordings) == 2


def test_inference_mode_and_plain_calls_share_a_recording(recordings):
    model, x, y = problem()
    attack = PGD(eps=0.1, steps=2, random_start=False, engine="graph")
    with torch.inference_mode():
        first = attack(model, x.clone(), y)
    expected = dataclasses.replace(attack, engine="eager")(model, x, y)
    assert torch.equal(first, expected) and torch.equal(attack(model, x, y), expected)
    assert len(recordings) == 1


def test_an_input_that_requires_grad_leaves_no_graph_behind(recordings):
    model, x, y = problem()
    leaf = x.clone().requires_grad_()
    with InputGradient(model, engine="graph") as oracle:
        loss, g = oracle(leaf * 1.0, y)
        kept = next(iter(graphs._recordings[model].values()))[0]._inputs
    assert not any(t.requires_grad for t in kept) and not loss.requires_grad and not g.requires_grad


def test_two_recordings_replayed_in_turn_do_not_spoil_each_other(recordings):
    model, x, y = problem()
    attacks = [PGD(eps=0.1, steps=n, random_start=False, engine="graph") for n in (1, 2)]
    expected = [dataclasses.replace(attack, engine="eager")(model, x, y) for attack in attacks]
    for attack in attacks:
        attack(model, x, y)
    found = [attack(model, x, y) for attack in attacks]  # both are kept while the other runs
    assert len({graph.pool for graph in recordings}) == 1
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_a_recording_is_made_on_one_stream_apart_that_waits_for_the_callers(recordings):
    model, x, y = problem()
    FGSM(eps=0.1, engine="graph")(model, x, y)
    (graph,) = recordings
    assert graph.mode == "thread_local" and graph.stream.device == x.device
    assert graph.stream.waited == [torch.cuda.current_stream()] and torch.cuda.current_stream().waited == [graph.stream]


def test_recordings_are_freed_on_request_and_with_the_model(recordings):
    model, x, y = problem()
    attack = FGSM(eps=0.1, engine="graph")
    attack(model, x, y)
    sf.release_graphs(model)
    assert model not in graphs._recordings
    attack(model, x, y)
    assert len(recordings) == 2
    gone = weakref.ref(model)
    del model
    recordings.clear()
    gc.collect()
    assert gone() is None and len(graphs._recordings) == 0


def test_where_a_model_lies_is_read_in_a_fraction_of_a_pass():
    """Counted, not timed: one look at each tensor and module, and no walk of the tree."""
    model = nn.Sequential(*[nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(5)])
    modules = list(model.modules())
    found = graphs._addresses(modules)
    assert len(found) == len(modules) + 3 * (len(list(model.parameters())) + len(list(model.buffers())))
    weight = model[0][0].weight
    for change in (lambda t: t.t(), lambda t: t.double(), lambda t: t.clone()):
        weight.data = change(weight.data)
        assert graphs._addresses(modules) != found
        found = graphs._addresses(modules)


def test_labels_of_every_batch_are_checked(recordings, monkeypatch):
    model, x, y = problem()
    attack = FGSM(eps=0.1, engine="graph")
    attack(model, x, y)
    monkeypatch.setattr(graphs.Recording, "__call__", lambda self, inputs: self._outputs)  # a GPU's kernel checks none
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 3"):
        attack(model, x, torch.full_like(y, 3))


def test_on_a_cpu_there_are_no_cuda_graphs():
    model, x, y = problem()
    with pytest.raises(ValueError, match='engine "graph" needs tensors on a CUDA device, got cpu'):
        PGD(eps=0.1, engine="graph")(model, x, y)


def test_what_cannot_be_recorded():
    with pytest.raises(ValueError, match="got a callable"):
        PGD(objective=lambda z, y: z.sum(1), engine="graph")
    model, x, y = problem()
    with pytest.raises(ValueError, match="got a callable"):
        TRADES(eps=0.1, engine="graph")(model, x, y)
    with pytest.raises(TypeError, match=r"needs an nn\.Module"):
        InputGradient(lambda x: x, engine="graph")
    with (
        pytest.raises(ValueError, match=r"model\.to\(memory_format"),
        InputGradient(nn.Conv2d(3, 4, 3), engine="channels_last+graph"),
    ):
        pass


@pytest.mark.cuda
@pytest.mark.parametrize("engine", ["graph", "bf16+graph"])
@pytest.mark.parametrize("attack", [*ATTACKS, HAAT(eps=0.1, full_precision=False)])
def test_on_a_gpu_attacks_agree_with_eager(attack, engine):
    model, x, y = problem(batch=32, device="cuda")
    plain = engine.removesuffix("graph").removesuffix("+") or "eager"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        expected = dataclasses.replace(attack, engine=plain)(model, x, y)
        found = dataclasses.replace(attack, engine=engine)(model, x, y)
        assert ((found - expected).abs() > 1e-5).float().mean() < 0.02  # signs of gradients near zero
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


@pytest.mark.cuda
def test_on_a_gpu_random_starts_are_new_in_each_replay_and_follow_the_seed():
    model, x, y = problem(batch=8, device="cuda")
    attack = PGD(eps=0.1, steps=1, step_size=0.0, engine="graph")
    attack(model, x, y)
    torch.cuda.manual_seed(3)
    first, second = attack(model, x, y), attack(model, x, y)
    torch.cuda.manual_seed(3)
    again = attack(model, x, y)
    assert not torch.equal(first, second) and torch.equal(first, again)
    generator = torch.Generator("cuda").manual_seed(5)
    own = dataclasses.replace(attack, generator=generator)
    assert not torch.equal(own(model, x, y), own(model, x, y))
    generator.manual_seed(5)
    third = own(model, x, y)
    generator.manual_seed(5)
    assert torch.equal(own(model, x, y), third)


@pytest.mark.cuda
def test_on_a_gpu_a_scorpio_step_agrees_with_eager():
    values = []
    for engine in ("eager", "graph"):
        model, x, y = problem(batch=32, device="cuda")
        loss = SCORPIO(eps=0.1, engine=engine)(model, x, y)
        loss.backward()
        values.append([loss.detach(), *(p.grad for p in model.parameters())])
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
