"""benchmarks.peak_memory: the peak against cases by hand, and the table."""

import pytest
import torch

from benchmarks import peak_memory
from soatfast.attacks import PGD

MEGABYTE = 2**20


def floats(megabytes: int) -> torch.Tensor:
    return torch.empty(megabytes * MEGABYTE // 4)


def one_after_the_other():
    a = floats(1)
    b = floats(2)
    del a
    return b, floats(4)


def together():
    a = floats(1)
    b = floats(2)
    return a, b, floats(4)


def the_worst_moment_is_in_the_middle():
    a, b = floats(3), floats(5)
    del a, b
    return floats(1)


def inside_an_op():
    return floats(1) + floats(1)


@pytest.mark.parametrize(
    ("call", "megabytes"),
    [(one_after_the_other, 6), (together, 7), (the_worst_moment_is_in_the_middle, 8), (inside_an_op, 3)],
)
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_peak_by_hand(call, megabytes, device):
    with torch.device(device):
        assert peak_memory.peak(call, device) == megabytes * MEGABYTE


def test_what_was_there_before_does_not_count():
    held = [floats(4)]

    def replace():
        held[0] = floats(2)

    assert peak_memory.peak(replace) == 2 * MEGABYTE


def test_a_backward_holds_what_its_graph_saved():
    """exp saves its result: leaf.exp().exp() has two of them, and the backward makes gradients beside them."""
    x = floats(1).zero_()

    def passes(depth):
        y = x.detach().requires_grad_()
        for _ in range(depth):
            y = y.exp()
        y.backward(torch.ones_like(y))

    deeper, deep = peak_memory.peak(lambda: passes(6)), peak_memory.peak(lambda: passes(5))
    assert deeper - deep == MEGABYTE


def test_table(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(peak_memory, "ATTACKS", (PGD(eps=0.1, steps=2),))
    monkeypatch.setattr(peak_memory, "DIMENSIONS", (2,))
    monkeypatch.setattr(peak_memory, "ResNet18", lambda: peak_memory.SmallCNN(in_channels=3, size=32))
    options = peak_memory.Options(batches=(4, 2), run_dir=tmp_path)
    found = peak_memory.table(options)
    assert [row["attack"] for row in found.rows] == ["PGD", "SOAE newton, m = 2", "SOAE tr, m = 2"] * 2
    for row in found.rows:
        allowed = row["bare"] + (row["basis"] or 0)
        assert row["added"] == pytest.approx(row["used"] / allowed) and row["used"] > row["bare"]
        assert row["whole"] == pytest.approx((row["held"] + row["used"]) / (row["held"] + allowed))
    pgd, newton, _ = found.rows[:3]
    assert pgd["basis"] is None and newton["basis"] == pytest.approx(3 * 4 * 784 * 4 / 1e6)
    parameters = sum(p.numel() for p in peak_memory.SmallCNN().parameters())
    assert pgd["held"] == pytest.approx((4 * parameters + 4 * 4 * 784 + 8 * 4) / 1e6)
    peak_memory.main(options)
    assert (tmp_path / "peak_memory.md").read_text() in capsys.readouterr().out


@pytest.mark.parametrize("attack", ["PGD", "FrankWolfe, fe"])
def test_an_attack_holds_no_gradient_through_the_next_pass(attack):
    """Beside a bare pass: PGD its iterate; Frank-Wolfe the gradient at x, v and the probe."""
    torch.manual_seed(0)
    model, x, y = peak_memory.SmallCNN().eval(), torch.rand(64, 1, 28, 28), torch.randint(0, 10, (64,))
    made = {name: one for name, one, _ in peak_memory._attacks()}[attack]
    bare = peak_memory.peak(lambda: peak_memory.bare_passes(model, x, y, 1))
    used = peak_memory.peak(lambda: made(model, x, y))
    assert used - bare <= {"PGD": 1, "FrankWolfe, fe": 3}[attack] * x.nbytes + 0.1 * x.nbytes
