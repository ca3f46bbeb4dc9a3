import math

import pytest
import torch
from torch import nn

from soatfast.gradients import count_passes
from soatfast.gradients.timing import candidates, tune


def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 36, 3))
    return model, torch.rand(6, 1, 8, 8), torch.arange(6) % 3


def test_eager_is_always_among_them_and_the_fastest_comes_first():
    model, x, y = problem()
    seen = []
    with count_passes(model) as passes:
        found = tune(
            model, x, y, ["channels_last", "bf16"], steps=2, rounds=3, report=lambda *stage: seen.append(stage)
        )
    assert passes.forward == passes.backward_input == 3 * 2 * 4  # engines, steps, the first turn and three that count
    assert sorted(t.engine for t in found) == ["bf16", "channels_last", "eager"]
    times = [t.milliseconds for t in found]
    assert times == sorted(times) and times[0] > 0
    eager = next(t for t in found if t.engine == "eager")
    assert (eager.speed, eager.signs) == (1.0, 1.0) and eager.cosine > 1 - 1e-9
    for t in found:
        assert t.speed == pytest.approx(eager.milliseconds / t.milliseconds)
        assert not t.error and t.signs > 0.9 and 0.99 < t.cosine <= 1 + 1e-9
    assert next(t for t in found if t.engine == "bf16").signs < 1  # it is another precision
    assert [done for _, done, _ in seen] == list(range(12)) and {total for *_, total in seen} == {12}


class Refuses(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        z = self.linear(x)
        if z.dtype == torch.bfloat16:
            raise RuntimeError("no kernel for\n bfloat16")
        return z


def test_an_engine_that_does_not_run_is_named_with_its_reason():
    x, y = torch.rand(3, 4), torch.tensor([0, 1, 0])
    found = tune(Refuses(), x, y, ["bf16", "channels_last"], rounds=1, steps=1)
    assert found[-1].engine == "bf16" and found[-1].error == "RuntimeError: no kernel for bfloat16"
    assert math.isnan(found[-1].milliseconds)
    assert not any(t.error for t in found[:-1])


def test_an_error_of_eager_is_the_callers():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        tune(Refuses(), torch.rand(3, 5), torch.tensor([0, 1, 0]), ["bf16"])


def test_candidates():
    assert "fp16" in candidates("cuda") and "fp16" not in candidates("cpu")
    assert set(candidates("cpu")) < set(candidates("cuda"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engines": ["fast"]}, "engine must be"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"x": torch.rand(0, 1, 8, 8), "y": torch.zeros(0, dtype=torch.long)}, "at least one sample"),
    ],
)
def test_bad_input(change, message):
    model, x, y = problem()
    arguments = {"x": x, "y": y, **change}
    with pytest.raises(ValueError, match=message):
        tune(model, **arguments)
