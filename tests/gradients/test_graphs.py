"""CUDA graphs: on a GPU against eager; without one the keys, with recordings that run their function again."""

import dataclasses

import pytest
import torch
from torch import nn

from soatfast.attacks import FGSM, HAAT, MIFGSM, PGD, FrankWolfe
from soatfast.gradients import InputGradient, graphs
from soatfast.losses import SCORPIO, TRADES


class Replayed:
    """As a CUDA graph: what Python decided is decided, the values behind the addresses are read anew."""

    made = 0

    def __init__(self, run, inputs, generator=None):
        type(self).made += 1
        self.inputs = [t.detach().clone() for t in inputs]
        self.run = run

    def __call__(self, inputs):
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        return tuple(t.clone() for t in self.run(*self.inputs))


@pytest.fixture
def recordings(monkeypatch):
    monkeypatch.setattr(graphs, "check_device", lambda device: None)
    monkeypatch.setattr(graphs, "Recording", Replayed)
    Replayed.made = 0
    return Replayed


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
    assert recordings.made == 1
    graphed(model, x[:2], y[:2])
    assert recordings.made == 2


def test_a_gradient_is_one_recording(recordings):
    model, x, y = problem()
    with InputGradient(model) as eager, InputGradient(model, engine="graph") as oracle:
        for points in (x, 1 - x):
            expected, found = eager(points, y), oracle(points, y)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
            assert torch.equal(oracle.logits, eager.logits)
    assert recordings.made == 1


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
    assert recordings.made == 1


def test_what_is_structural_is_another_recording(recordings):
    model, x, y = problem()
    base = PGD(eps=0.1, steps=2, random_start=False, engine="graph")
    changed = [
        base,
        base.with_eps(0.2),
        base.with_steps(3),
        dataclasses.replace(base, targeted=True),
        dataclasses.replace(base, objective="margin"),
        dataclasses.replace(base, mode="train"),
        dataclasses.replace(base, bounds=(-1.0, 2.0)),
    ]
    for count, attack in enumerate(changed, 1):
        for _ in range(2):
            assert torch.equal(attack(model, x, y), dataclasses.replace(attack, engine="eager")(model, x, y))
        assert recordings.made == count
    model[0].weight.data = model[0].weight.data.clone()  # it lies elsewhere now
    base(model, x, y)
    assert recordings.made == len(changed) + 1


def test_only_so_many_are_kept(recordings):
    model, x, y = problem()
    for steps in range(1, graphs.KEPT + 3):
        PGD(eps=0.1, steps=steps, engine="graph")(model, x, y)
    assert len(graphs._recordings[model]) == graphs.KEPT


def test_labels_of_every_batch_are_checked(recordings):
    model, x, y = problem()
    attack = FGSM(eps=0.1, engine="graph")
    attack(model, x, y)
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
