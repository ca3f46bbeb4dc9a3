"""Averaged weights against plain sums, and in a training: saved, resumed exactly, and of use in eval mode."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from soatfast.losses import Free, FreeState
from soatfast.train import TrainConfig, build_model, train
from soatfast.train.averaging import averaged
from soatfast.train.checkpoint import AVERAGED, WEIGHTS
from tests.nets import conv_net
from tests.train.conftest import make_data


def moved(model, step):
    with torch.no_grad():
        for t in model.state_dict().values():
            t.add_(step if not t.is_floating_point() else (step + 1) * torch.ones_like(t) / 7)


@pytest.mark.parametrize("decay", [0.5, 0.95])
def test_weights_and_statistics_are_the_weighted_sum_of_all_steps(decay):
    model = conv_net(dtype=torch.float64)
    average, expected = averaged(model, decay), None
    for step in range(40):
        moved(model, step)
        average.update_parameters(model)
        state = {name: t.clone() for name, t in model.state_dict().items()}
        d = min(decay, step / (step + 10))
        expected = state if expected is None else {k: d * expected[k] + (1 - d) * t for k, t in state.items()}
    found = average.module.state_dict()
    for name, t in expected.items():
        if t.is_floating_point() and found[name].is_floating_point():
            torch.testing.assert_close(found[name], t)
    assert found["1.num_batches_tracked"] == model[1].num_batches_tracked


def test_the_model_and_its_copy_share_nothing():
    model = nn.Linear(2, 2)
    average = averaged(model, 0.9)
    average.update_parameters(model)
    before = copy.deepcopy(average.module.state_dict())
    moved(model, 1)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), average.module.state_dict().values(), strict=True))


def config(**fields):
    return TrainConfig(
        batch_size=16,
        optimizer="sgd",
        lr=0.1,
        nesterov=True,
        schedule="triangle",
        average=0.9,
        eps_ramp_epochs=0,
        **fields,
    )


def fresh():
    torch.manual_seed(0)
    return build_model("fast", 1, 4, width=4, size=9)


def test_a_training_writes_both_and_resumes_both_exactly(tmp_path, monkeypatch):
    data, loss = make_data(64, (1, 9, 9)), Free(eps=0.1, replays=2)
    whole = train(fresh(), loss, data, config(epochs=3), tmp_path / "whole")
    assert whole.steps == 3 * 4 * 2
    for name in (WEIGHTS, AVERAGED):
        assert (tmp_path / "whole" / name).is_file()

    class Stop(Exception):
        pass

    from soatfast.train import checkpoint

    save = checkpoint.save_checkpoint

    def until(accelerator, folder, place, *rest):
        save(accelerator, folder, place, *rest)
        if place == (2, 0):
            raise Stop

    monkeypatch.setattr(checkpoint, "save_checkpoint", until)
    with pytest.raises(Stop):
        train(fresh(), Free(eps=0.1, replays=2), data, config(epochs=3), tmp_path / "parts")
    monkeypatch.setattr(checkpoint, "save_checkpoint", save)
    train(fresh(), Free(eps=0.1, replays=2, state=FreeState()), data, config(epochs=3), tmp_path / "parts")
    for name in (WEIGHTS, AVERAGED):
        a, b = (load_file(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert all(torch.equal(a[key], b[key]) for key in a), name
    last, average = (load_file(tmp_path / "whole" / name) for name in (WEIGHTS, AVERAGED))
    assert last.keys() == average.keys() and any(not torch.equal(last[key], average[key]) for key in last)
    assert all(row["cpu_seconds"] >= 0 for row in whole.history)


def test_each_batch_is_given_as_often_as_the_loss_asks(tmp_path):
    seen = []

    class Watched(Free):
        def __call__(self, model, x, y):
            seen.append(x.clone())
            return super().__call__(model, x, y)

    train(fresh(), Watched(eps=0.1, replays=3), make_data(32, (1, 9, 9)), config(epochs=1), tmp_path)
    seen = seen[1:]  # the first is the counting step
    assert len(seen) == 6
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2]) and not torch.equal(seen[2], seen[3])


def test_the_triangle_rises_and_falls():
    rates = [TrainConfig(schedule="triangle", lr=0.2).lr_at(done) for done in (0, 0.15, 0.3, 0.65, 1)]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.1, 0])


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"average": 1.0}, "average must be at least 0 and less than 1, got 1.0"),
        ({"average": -0.1}, "average must be at least 0 and less than 1, got -0.1"),
        ({"nesterov": True}, "nesterov needs sgd with a momentum, got adam"),
        ({"nesterov": True, "optimizer": "sgd", "momentum": 0.0}, "got sgd, momentum 0.0"),
    ],
)
def test_bad_fields(fields, text):
    with pytest.raises(ValueError, match=text):
        TrainConfig(**fields)
