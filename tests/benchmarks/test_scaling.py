"""benchmarks.scaling: the fit of an exponent, which sizes it takes, and that every line runs."""

import math

import pytest
import torch

from benchmarks import scaling


def test_fit_finds_the_exponent_and_the_factor():
    sizes = [64, 128, 256, 1024]
    found = scaling.fit(sizes, [3e-6 * n**1.25 for n in sizes])
    assert found.exponent == pytest.approx(1.25) and found.factor == pytest.approx(3e-6)
    assert found.error == pytest.approx(0, abs=1e-6) and found.at(100) == pytest.approx(3e-6 * 100**1.25)


def test_fit_by_hand_where_the_points_lie_on_no_line():
    """Logarithms 0, 1, 2 to 0, 3, 3: slope 3/2, residuals -1/2, 1, -1/2, so the error is sqrt(1.5 / 1 / 2)."""
    found = scaling.fit([1, math.e, math.e**2], [1, math.e**3, math.e**3])
    assert found.exponent == pytest.approx(1.5) and found.error == pytest.approx(math.sqrt(0.75))


def test_fit_needs_three_points():
    with pytest.raises(ValueError, match="at least 3 points, got 2 values and 2 times"):
        scaling.fit([1, 2], [1.0, 2.0])


def test_a_fit_begins_beyond_four_caches():
    line = scaling.Line("op", "B", (1, 2, 4, 8), lambda n: None, nbytes=lambda n: 200 * n)
    assert line.fitted(cache=100) == [2, 4, 8] and line.fitted(cache=401) == []
    assert scaling.Options(cache=1).cache == 1 and scaling.Options().cache == scaling.last_cache() >= 2**20
    assert scaling.Line("attack", "B", (1, 2, 4, 8), lambda n: None, start=4).fitted(cache=100) == [4, 8]


def test_medians_in_turns(monkeypatch):
    clock = iter(range(10_000))
    monkeypatch.setattr(scaling.time, "perf_counter", lambda: next(clock))
    called = []
    calls = {n: (lambda n=n: called.append(n)) for n in (1, 2)}
    assert scaling.measure(calls, rounds=3) == {1: 1, 2: 1}
    assert called == [1, 1, 2, 2, 1, 2, 1, 2, 1, 2], "a warm call, the choice of repeats, then turns"


def test_threads_are_set_and_put_back(restored_threads):
    torch.set_num_threads(1)
    seen = []
    scaling.with_threads(2, lambda: seen.append(torch.get_num_threads()))()
    assert seen == [2] and torch.get_num_threads() == 1


def test_a_small_run(tmp_path, capsys, restored_threads):
    scaling.main(scaling.Options(rounds=1, cache=1, largest=16, only=("pgd_step", "gmres, D"), run_dir=tmp_path))
    text = (tmp_path / "scaling.md").read_text()
    assert text in capsys.readouterr().out
    assert text.count("pgd_step") == 2 and "gmres, D = 3072" in text and "frank_wolfe" not in text
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_every_line_and_thread_call_makes_a_valid_call():
    for line in scaling.lines(64):
        assert list(line.values) == sorted(line.values)
        line.make(line.values[0])()
    for call in scaling.thread_calls(2).values():
        call()


def test_a_wrong_result_is_not_timed(monkeypatch):
    monkeypatch.setattr(scaling, "EPS", 0.01)  # the attack keeps its own 0.1
    with pytest.raises(AssertionError, match="left the ball"):
        scaling.attack(scaling.PGD(eps=0.1), 2, 28)
