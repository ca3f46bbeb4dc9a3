"""The suite: figures, resuming to the bit, what it leaves behind, and what it refuses."""

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from soatfast.attacks import FGSM, HAAT, PGD, SOAE, FrankWolfe
from soatfast.evaluate import accuracy, load_suite, progress_bar, standard_attacks, suite
from soatfast.evaluate.batch import FIELDS
from soatfast.evaluate.results import AttackResult
from soatfast.evaluate.standard import cheapest_first
from soatfast.runs.errors import RunFolderError
from tests.nets import batch, conv_net, relu_net

EPS = 0.1
ATTACKS = {"pgd": PGD(eps=EPS, steps=4), "fgsm": FGSM(eps=0.05), "haat": HAAT(eps=EPS, steps=2, power=2)}


@pytest.fixture
def loader(samples):
    """Batches of 20, 20 and 10."""
    return DataLoader(TensorDataset(*samples), 20)


class Interrupted(FGSM):
    """Ctrl-C in its n-th call."""

    def __call__(self, model, x, y):
        calls[0] -= 1
        if calls[0] < 0:
            raise KeyboardInterrupt
        return super().__call__(model, x, y)


calls = [10**9]
STOPPING = {**ATTACKS, "last": Interrupted(eps=EPS)}


def same(a: AttackResult, b: AttackResult) -> bool:
    return all(np.array_equal(getattr(a, key), getattr(b, key), equal_nan=True) for key in FIELDS) and (
        a.passes,
        a.saved,
    ) == (
        b.passes,
        b.saved,
    )


def test_the_figures(net, samples, loader):
    found = suite(net, loader, ATTACKS)
    assert list(found.results) == ["clean", *ATTACKS]
    clean = net(samples[0]).argmax(1) == samples[1]
    assert np.array_equal(found["clean"].correct, clean.numpy()) and np.array_equal(found.label, samples[1].numpy())
    for name in ATTACKS:
        assert found[name].accuracy == found[name].correct.mean()
        assert not (found[name].correct & ~clean.numpy()).any()
        assert np.array_equal(found[name].attacked, clean.numpy())
        assert np.array_equal(found[name].prediction == found.label, found[name].correct)
    expected = accuracy(net, samples, ATTACKS["fgsm"])
    assert np.array_equal(found["fgsm"].correct, expected.correct.numpy()), "one step has one point"
    worst = np.logical_and.reduce([result.correct for result in found.results.values()])
    assert found.worst_case == worst.mean() < found["fgsm"].accuracy < found["clean"].accuracy


def test_any_point_on_the_way_counts(net, samples, loader):
    attack = PGD(eps=EPS, steps=12, step_size=0.09, random_start=False)
    final = accuracy(net, samples, attack).correct.numpy()
    found = suite(net, loader, {"pgd": attack})["pgd"].correct
    assert not (found & ~final).any() and found.sum() < final.sum()


@pytest.mark.parametrize("worst_case", [False, True])
def test_compaction_changes_the_passes_and_not_the_figures(net, loader, worst_case):
    active = suite(net, loader, ATTACKS, worst_case=worst_case)
    plain = suite(net, loader, ATTACKS, worst_case=worst_case, compact=False)
    for name in plain.results:
        for key in ("correct", "prediction", "first"):
            assert np.array_equal(getattr(active[name], key), getattr(plain[name], key))
        np.testing.assert_allclose(active[name].margin, plain[name].margin, rtol=1e-4, atol=1e-6)
    assert active.worst_case == plain.worst_case
    assert plain.share == 1.0 and active.share < 0.9
    total = plain.passes
    assert total.forward_samples == active.passes.forward_samples + active.saved.forward_samples
    assert total.backward_input_samples == active.passes.backward_input_samples + active.saved.backward_input_samples
    per_sample = 1 + 2 + 5 + 7  # forwards: clean, and each attack's and the one that scores its examples
    assert (total.forward_samples, total.backward_input_samples) == (50 * per_sample, 50 * (1 + 4 + 6))


def test_worst_case_attacks_survivors_cheapest_first(net, loader):
    each = suite(net, loader, ATTACKS)
    chain = suite(net, loader, ATTACKS, worst_case=True)
    assert list(chain.results) == ["clean", "fgsm", "pgd", "haat"]
    right = each["clean"].correct
    for name in ("fgsm", "pgd", "haat"):
        assert np.array_equal(chain[name].attacked, right)
        right = right & each[name].correct
        assert np.array_equal(chain[name].correct, right), "the starts do not depend on who is attacked"
    assert chain.worst_case == each.worst_case == chain["haat"].accuracy
    assert chain.share < each.share
    fell = chain["fgsm"].correct & ~chain["pgd"].correct
    later = ~chain["pgd"].correct
    assert np.array_equal(chain["haat"].margin[later], chain["pgd"].margin[later]) and fell.any()


def test_the_order_of_cost():
    attacks = {"f": lambda model, x, y: x, **standard_attacks(eps=0.1)}
    assert list(cheapest_first(attacks))[:2] == ["fgsm", "quadratic"] and list(cheapest_first(attacks))[-1] == "f"


def test_the_seed_fixes_everything(net, loader):
    attack = {"pgd": PGD(eps=EPS, steps=1)}
    one, two, other = (suite(net, loader, attack, seed=seed)["pgd"] for seed in (0, 0, 1))
    assert same(one, two) and not np.array_equal(one.margin, other.margin)
    more = suite(net, loader, {"fgsm": FGSM(), **attack, "new": PGD(eps=EPS, steps=2)})
    assert same(more["pgd"], one), "other attacks do not change its random numbers"


@pytest.mark.parametrize("worst_case", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_resuming_gives_the_same_records_to_the_bit(net, loader, tmp_path, stop, worst_case):
    whole = suite(net, loader, STOPPING, worst_case=worst_case)
    calls[0] = stop
    with pytest.raises(KeyboardInterrupt):
        suite(net, loader, STOPPING, folder=tmp_path, worst_case=worst_case)
    calls[0] = 10**9
    if stop:
        with pytest.raises(RunFolderError, match=rf"evaluation.npz is of an unfinished evaluation \({stop} batches"):
            load_suite(tmp_path)
    seen = []
    handle = net.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    resumed = suite(net, loader, STOPPING, folder=tmp_path, worst_case=worst_case)
    handle.remove()
    read = load_suite(tmp_path)
    for name in whole.results:
        assert same(whole[name], resumed[name]) and same(whole[name], read[name])
    assert np.array_equal(read.label, whole.label) and read.worst_case == whole.worst_case
    assert sum(seen) <= sum(r.passes.forward_samples for r in whole.results.values()) * (3 - stop) / 3 + 20 + 6 * 20


def test_a_finished_run_is_not_run_again(net, loader, tmp_path):
    first = suite(net, loader, ATTACKS, folder=tmp_path)
    seen = []
    net.register_forward_hook(lambda module, args, output: seen.append(1))
    again = suite(net, loader, ATTACKS, folder=tmp_path)
    assert not seen and all(same(first[name], again[name]) for name in first.results)
    fresh = suite(net, loader, ATTACKS, folder=tmp_path, resume=False)
    assert seen and same(fresh["pgd"], first["pgd"])
    assert (tmp_path / "evaluation.md").read_text(encoding="utf-8").startswith("# Evaluation\n")


def test_a_new_run_leaves_no_old_report(net, loader, tmp_path):
    suite(net, loader, ATTACKS, folder=tmp_path)
    calls[0] = 0
    with pytest.raises(KeyboardInterrupt):
        suite(net, loader, STOPPING, folder=tmp_path, resume=False)
    calls[0] = 10**9
    assert not list(tmp_path.iterdir())
    with pytest.raises(RunFolderError, match=r"there is no evaluation: expected the file .*evaluation\.npz"):
        load_suite(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"compact": False}, "compact was True, now False"),
        ({"attacks": {**ATTACKS, "pgd": PGD(eps=EPS, steps=5)}}, r"attacks.pgd.steps was 4, now 5"),
        ({"attacks": {"pgd": ATTACKS["pgd"]}}, "attacks.fgsm was .*, now not set"),
        ({"attacks": dict(reversed(ATTACKS.items()))}, "the order of attacks"),
        ({"model": relu_net(seed=3)}, "weights was"),
    ],
)
def test_a_folder_of_another_evaluation(net, loader, tmp_path, change, text):
    suite(net, loader, ATTACKS, folder=tmp_path)
    arguments = {"model": net, "loader": loader, "attacks": ATTACKS, "folder": tmp_path, **change}
    with pytest.raises(RunFolderError, match=f"evaluation with other options .*{text}"):
        suite(**arguments)


def test_another_loader(net, samples, loader, tmp_path):
    suite(net, loader, ATTACKS, folder=tmp_path)
    x, y = samples
    with pytest.raises(RunFolderError, match="batch 0 of the loader is not the one of the interrupted run"):
        suite(net, [(x[20:40], y[20:40])], ATTACKS, folder=tmp_path)
    with pytest.raises(RunFolderError, match="holds 3 batches, the loader only 1"):
        suite(net, [(x[:20], y[:20])], ATTACKS, folder=tmp_path)
    with pytest.raises(RunFolderError, match="finished after 3 batches; the loader has more"):
        suite(net, [*loader, (x, y)], ATTACKS, folder=tmp_path)


def test_a_folder_that_cannot_be_written(net, loader, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunFolderError, match="file cannot be written"):
        suite(net, loader, ATTACKS, folder=tmp_path / "file")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunFolderError, match=r"evaluation.npz cannot be written: No space left"):
        suite(net, loader, ATTACKS, folder=tmp_path / "new")


def test_state_is_left_alone(samples, tmp_path):
    model = conv_net(dtype=torch.float64, channels=1, classes=4).train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    flags = [m.training for m in model.modules()]
    values = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    with torch.no_grad():
        suite(model, [samples], ATTACKS)
    for wrong in ({"bad": lambda model, x, y: 1 / 0},):
        with pytest.raises(ZeroDivisionError):
            suite(model, [samples], wrong)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(t, values[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 5
    assert all(p.grad is None for p in model.parameters()) and not model._forward_hooks


def test_under_inference_mode(net, samples):
    expected = suite(net, [samples], ATTACKS)
    with torch.inference_mode():
        found = suite(net, [samples], ATTACKS)
    assert all(same(expected[name], found[name]) for name in expected.results)


def test_streaming_and_progress(net, samples, loader):
    done = []
    expected = suite(net, loader, ATTACKS, progress=lambda *now: done.append(now))
    assert done[0] == ("clean", 0, 50) and done[-1] == ("", 50, 50) and len(done) == 3 * 5
    read = []

    def stream():
        for pair in loader:
            read.append(len(done))
            yield pair

    done.clear()
    found = suite(net, stream(), ATTACKS, progress=lambda *now: done.append(now))
    assert read == [0, 5, 10], "a batch is read when the one before it is done"
    assert done[-1] == ("", 50, None) and same(found["pgd"], expected["pgd"])
    out = io.StringIO()
    with progress_bar(Console(file=out, force_terminal=True, width=80)) as progress:
        suite(net, loader, ATTACKS, progress=progress)
    assert "50/50" in out.getvalue()


def test_the_table(net, loader):
    text = suite(net, loader, ATTACKS).table("digits").to_markdown()
    assert text.startswith("# digits\n") and "worst case" in text and "of plain" in text
    assert "survivors" in suite(net, loader, ATTACKS, worst_case=True).table().note


@pytest.mark.parametrize("p", [1, 2, float("inf")])
def test_the_standard_attacks(p):
    net = relu_net(torch.float32)
    x, y = batch(30, dtype=torch.float32)
    y = net(x).argmax(1)
    attacks = standard_attacks(eps=0.5, p=p, steps=5, simba_steps=16)
    assert ("haat" in attacks) == (p == float("inf"))
    found = suite(net, [(x, y)], attacks)
    assert found["clean"].accuracy == 1 and found.worst_case < 1
    assert isinstance(attacks["soae"], SOAE) and isinstance(attacks["quadratic"], FrankWolfe)


def test_no_attack_but_the_clean_figure(net, loader):
    found = suite(net, loader, {})
    assert list(found.results) == ["clean"] and found.worst_case == found["clean"].accuracy


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": lambda x: x}, TypeError, "needs a module, got function"),
        ({"attacks": {"t": PGD(targeted=True)}}, ValueError, "t: suite needs untargeted"),
        ({"attacks": {"clean": PGD()}}, ValueError, "names other than"),
        ({"attacks": {"pgd": 3}}, TypeError, "pgd: an attack is called"),
        (
            {"attacks": {"pgd": PGD(eps=torch.rand(50))}},
            ValueError,
            r"pgd: eps must be one number, .* got shape \(50,\)",
        ),
        ({"loader": []}, ValueError, "no samples"),
        ({"loader": [torch.rand(2, 1, 4, 4)]}, ValueError, "batch 0: a loader yields pairs"),
        ({"loader": iter([(torch.rand(2, 16),)])}, ValueError, "batch 0: a loader yields pairs"),
        ({"loader": [(torch.rand(0, 16), torch.zeros(0, dtype=torch.int64))]}, ValueError, "batch 0: there are no"),
        ({"loader": [(255 * torch.rand(2, 16), torch.zeros(2, dtype=torch.int64))]}, ValueError, "batch 0: x must lie"),
        ({"loader": [(torch.rand(2, 16), torch.zeros(3, dtype=torch.int64))]}, ValueError, "batch 0: y must have"),
        ({"loader": [(torch.rand(2, 16), torch.zeros(2))]}, TypeError, "batch 0: y must be"),
        ({"loader": [(torch.rand(2, 16).double(), torch.tensor([0, 4]))]}, ValueError, r"labels must lie in 0..3"),
        ({"model": nn.Conv2d(1, 2, 3).double()}, ValueError, "logits of shape"),
    ],
)
def test_wrong_arguments(net, samples, arguments, error, text):
    with pytest.raises(error, match=text), warnings.catch_warnings():
        warnings.simplefilter("error")
        suite(**{"model": net, "loader": [samples], "attacks": ATTACKS, **arguments})


def test_nothing_is_written_without_a_folder(net, loader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite(net, loader, ATTACKS)
    assert not list(Path(tmp_path).iterdir())
