"""Warnings about models whose figures mislead, and none about others."""

import itertools
import json
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from soatfast.attacks import FGSM, PGD, SimBA
from soatfast.attacks.named import TL
from soatfast.evaluate import (
    AutoAttack,
    EvaluationWarning,
    RandomisedWarning,
    SoftmaxWarning,
    ZeroGradientWarning,
    accuracy,
    load_suite,
    standard_attacks,
    suite,
)
from soatfast.evaluate.checks import Check, check_model, lines_of, looks_like_softmax, square_check
from soatfast.gradients import count_passes
from tests.nets import batch, conv_net, linear_net, relu_net, smooth_net

DATA = [batch(8, dtype=torch.float32)]


class Noisy(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.net, self.scale = relu_net(torch.float32), scale

    def forward(self, x):
        z = self.net(x)
        return z + self.scale * torch.randn_like(z)


def test_softmax_outputs():
    model = nn.Sequential(relu_net(torch.float32), nn.Softmax(1))
    with pytest.warns(SoftmaxWarning, match="returns probabilities, not logits"):
        suite(model, DATA, {"fgsm": FGSM()})
    assert looks_like_softmax(torch.randn(5, 7).softmax(1).bfloat16())
    assert not looks_like_softmax(torch.randn(5, 7).sigmoid())
    assert not looks_like_softmax(torch.randn(5, 7).log_softmax(1)), "as good as logits"


def test_a_randomised_model():
    state = torch.get_rng_state()
    with pytest.warns(RandomisedWarning, match="different outputs in 5 draws"):
        suite(Noisy(0.1), DATA, {"fgsm": FGSM()})
    assert not torch.equal(torch.get_rng_state(), state), "the model's layers were drawn here"
    state = torch.get_rng_state()
    model = Noisy.__new__(Noisy)
    nn.Module.__init__(model)
    model.net, model.scale = nn.Flatten(), 0.1
    with pytest.warns(RandomisedWarning):
        check_model(model, *DATA[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_infinite_logits():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    nn.init.constant_(model[1].bias, float("inf"))
    with pytest.warns(EvaluationWarning, match="not finite"):
        check_model(model, *DATA[0])


@pytest.mark.parametrize("model", [relu_net(torch.float32), conv_net(channels=1, classes=4), Noisy(0.0)])
def test_no_warning_without_reason(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        suite(model, DATA, {"fgsm": FGSM()})  # dropout is off in eval mode


# ------------------------------------------------------------------------------------------ AutoAttack's rules


class After(nn.Module):
    """A network with a function before it and one behind it."""

    def __init__(self, before=lambda x: x, behind=lambda z: z, net=None):
        super().__init__()
        self.before, self.behind, self.net = before, behind, relu_net(torch.float32) if net is None else net

    def forward(self, x):
        return self.behind(self.net(self.before(x)))


class Sign(nn.Module):
    def forward(self, x):
        return x.sign()


class Through(torch.autograd.Function):
    """Rounding whose gradient is passed through."""

    @staticmethod
    def forward(ctx, x):
        return (8 * x).round() / 8

    @staticmethod
    def backward(ctx, g):
        return g


class Purified(nn.Module):
    """Takes a gradient step of its own before it answers."""

    def __init__(self, by):
        super().__init__()
        self.net, self.by = relu_net(torch.float32), by

    def forward(self, x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            loss = self.net(leaf).logsumexp(1).sum()
            if self.by == "grad":
                (g,) = torch.autograd.grad(loss, leaf)
            elif self.by == "func":
                g = torch.func.grad(lambda t: self.net(t).logsumexp(1).sum())(x.detach())
            else:
                loss.backward()
                g = leaf.grad
        return self.net(x - 0.01 * g)


def dead():
    net = relu_net(torch.float32)
    nn.init.constant_(net[1].bias, -1e3)
    return net


def steep(scale):
    net = relu_net(torch.float32)
    return After(behind=lambda z: scale * z, net=net)


FOUND = {
    "plain ReLU": (relu_net(torch.float32), set()),
    "plain, smooth": (smooth_net(torch.float32), set()),
    "plain, convolutions with batch norm and dropout": (conv_net(channels=1, classes=4), set()),
    "plain, linear": (linear_net(torch.float32, classes=4), set()),
    "log-softmax": (After(behind=lambda z: z.log_softmax(1)), set()),
    "sigmoid of each class": (After(behind=torch.sigmoid), set()),
    "logits times 100": (steep(100), None),
    "rounding passed through": (After(Through.apply), set()),
    "softmax at the end": (After(behind=lambda z: z.softmax(1)), {"probabilities"}),
    "softmax, cold": (After(behind=lambda z: (z / 10).softmax(1)), {"probabilities"}),
    "constant": (After(behind=lambda z: 0 * z + torch.tensor([1.0, 2.0, 0.0, 0.0])), {"zero gradients"}),
    "uniform probabilities": (After(behind=lambda z: 0 * z + 0.25), {"probabilities", "zero gradients"}),
    "rounded inputs": (After(lambda x: (8 * x).round() / 8), {"zero gradients"}),
    "thresholded inputs": (After(lambda x: (x > 0.5).float()), {"zero gradients"}),
    "sign activations": (
        nn.Sequential(nn.Flatten(), nn.Linear(16, 20), Sign(), nn.Linear(20, 4)),
        {"zero gradients"},
    ),
    "dead activations": (dead(), {"zero gradients"}),
    "saturated tanh": (After(behind=lambda z: torch.tanh(1e4 * z)), {"zero gradients"}),
    "logits times 1e4": (steep(1e4), {"zero gradients"}),
    "detached": (After(lambda x: x.detach()), {"zero gradients"}),
    "noise in forward": (Noisy(0.1), {"randomised"}),
    "noise too small to matter": (Noisy(1e-7), set()),
    "noise on the input": (After(lambda x: x + 0.1 * torch.randn_like(x)), {"randomised"}),
    "dropout in forward": (After(lambda x: F.dropout(x, 0.5)), {"randomised"}),
    "gradients inside forward": (Purified("grad"), {"autograd inside"}),
    "backward inside forward": (Purified("backward"), {"autograd inside"}),
    "torch.func inside forward": (Purified("func"), {"autograd inside"}),
    "two classes": (relu_net(torch.float32, classes=2), set()),
    "three classes": (relu_net(torch.float32, classes=3), set()),
    "three classes, softmax": (
        After(behind=lambda z: z.softmax(1), net=relu_net(torch.float32, classes=3)),
        {"probabilities"},
    ),
}


def rules(model, x, y):
    """The rules of the authors' checks.py, from its description, for what the model returns."""
    found = set()
    with torch.no_grad():
        draws = [model(x) for _ in range(5)]
    unit = [z / (z.norm(dim=1, keepdim=True) + 1e-10) for z in draws]
    right = {int((z.max(1)[1] == y).sum()) for z in draws}
    if len(right) > 1 or max((a - b).norm(dim=1).max() for a, b in itertools.combinations(unit, 2)) > 1e-4:
        found.add("randomised")
    z = draws[0]
    if z.max() < 1 + 1e-5 and z.min() > -1e-5 and bool(((z.sum(-1) - 1).abs() < 1e-5).all()):
        found.add("probabilities")
    names, before = [], sys.gettrace()

    def trace(frame, event, argument):
        if event == "call" and frame.f_code.co_name in ("grad", "backward", "_make_grads"):
            names.append(frame.f_code.co_name)

    sys.settrace(trace)
    with torch.no_grad():
        model(x)
    sys.settrace(before)
    if names:
        found.add("autograd inside")
    leaf = x.clone().requires_grad_()
    z = model(leaf)
    g = (
        torch.autograd.grad(F.cross_entropy(z, y, reduction="sum"), leaf, allow_unused=True)[0]
        if z.requires_grad
        else None
    )
    g = 0 * x if g is None else g
    if (g.flatten(1).abs().sum(1) == 0).any():
        found.add("zero gradients")
    return found


def problem(model, n=40):
    x, _ = batch(n, dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.mark.parametrize("name", FOUND)
def test_the_checks_agree_with_autoattacks_rules(name):
    model, expected = FOUND[name]
    x, y = problem(model)
    if name == "detached":
        for p in model.parameters():
            p.requires_grad_(False)
    theirs = rules(model, x, y)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ours = {check.name for check in check_model(model, x, y) if check.found}
    assert ours == theirs, "the authors' rules"
    assert expected is None or ours == expected
    assert len(seen) == len(ours) and all(issubclass(w.category, EvaluationWarning) for w in seen)
    assert all("\n" not in str(w.message) for w in seen)


def test_there_are_enough_models():
    assert len(FOUND) >= 25 and sum(not expected for _, expected in FOUND.values()) >= 8


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_are_said_where_autoattack_runs(classes):
    model = relu_net(torch.float32, classes=classes)
    x, y = problem(model)
    for attacks in ({}, {"pgd": PGD()}):
        assert not any(check.found for check in check_model(model, x, y, attacks))
    if classes == 4:
        assert not any(check.found for check in check_model(model, x, y, {"a": AutoAttack()}))
        return
    with pytest.warns(EvaluationWarning, match=f"with {classes} classes AutoAttack has") as seen:
        found = check_model(model, x, y, {"a": AutoAttack()})
    assert len(seen) == 1 and [check.name for check in found if check.found] == ["classes"]


def test_one_sigmoid_unit_has_two_classes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    x, _ = batch(20, dtype=torch.float32)
    y = (model(x)[:, 0] > 0).long()
    assert not any(check.found for check in check_model(model, x, y))
    zero = After(torch.round, net=model)
    with pytest.warns(ZeroGradientWarning, match="20 of 20 samples have a gradient of zero"):
        suite(zero, [(x, y)], {"fgsm": FGSM()})


def test_what_the_checks_cost():
    model = conv_net(channels=1, classes=4)
    x, y = problem(model, 100)
    with count_passes(model) as passes:
        check_model(model, x, y)
    total = passes.total()
    assert total.forward <= 8 and total.forward_samples == 64 * total.forward
    assert (total.backward_input, total.backward_input_samples, total.backward_parameters) == (1, 64, 0)


def test_the_checks_stand_in_records_table_and_result(tmp_path):
    model = FOUND["rounded inputs"][0]
    x, y = problem(model)
    loader = [(x[:30], y[:30]), (x[30:], y[30:])]
    with pytest.warns(ZeroGradientWarning, match="30 of 30 samples") as seen:
        found = suite(model, loader, {"pgd": PGD(eps=0.01, steps=2, random_start=False)}, folder=tmp_path)
    assert len(seen) == 1, "once"
    assert found["pgd"].accuracy == 1, "which is no accuracy at all"
    names = ["finite", "probabilities", "randomised", "autograd inside", "zero gradients", "classes"]
    assert [check.name for check in found.checks] == names
    for result in (found, load_suite(tmp_path)):
        assert result.checks == found.checks and [c.name for c in result.checks if c.found] == ["zero gradients"]
        assert "Checks of the model found: 30 of 30 samples have a gradient of zero" in result.table().note
    with pytest.warns(ZeroGradientWarning):  # of the records, without a pass
        suite(model, loader, {"pgd": PGD(eps=0.01, steps=2, random_start=False)}, folder=tmp_path)
    plain = suite(FOUND["plain ReLU"][0], loader, {"fgsm": FGSM()})
    assert "Checks of the model: finite, probabilities," in plain.table().note
    assert plain.table().note.endswith("nothing was found.")
    json.dumps([vars(check) for check in found.checks])


def test_accuracy_says_it_too():
    model = FOUND["rounded inputs"][0]
    x, y = problem(model)
    with pytest.warns(ZeroGradientWarning, match="40 of 40"):
        found = accuracy(model, (x, y), FGSM())
    assert [check.name for check in found.checks if check.found] == ["zero gradients"] and found.accuracy == 1
    assert found.passes["forward"] == 3, "the checks are not among the passes"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert accuracy(model, (x, y)).checks == (), "no attack, no check"


def test_a_gradient_that_raises_is_found_and_simba_runs():
    class Raising(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("no backward for this\nand more lines")

    model = After(Raising.apply)
    x, y = problem(model)
    with pytest.warns(ZeroGradientWarning, match=r"cannot be taken \(no backward for this\): no attack"):
        assert suite(model, [(x, y)], {"simba": SimBA(eps=0.3)}).worst_case < 1


def test_a_wrong_number_of_classes_is_told():
    model = relu_net(torch.float32, classes=12)
    x, y = problem(model)
    for attack in (TL(classes=10), AutoAttack(classes=10)):
        with pytest.raises(ValueError, match="a: the attack is told classes=10, and the model tells 12 apart"):
            suite(model, [(x, y)], {"a": attack})
        with pytest.raises(ValueError, match="the attack is told classes=10"):
            accuracy(model, (x, y), attack)


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize("shape", [(1, 4, 4), (20,)])
@pytest.mark.parametrize("p", [1, 2, float("inf")])
def test_the_default_suite_runs_on_few_entries_and_classes(classes, shape, p):
    model = relu_net(torch.float32, shape, classes)
    x, _ = batch(12, shape, dtype=torch.float32)
    y = model(x).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = suite(model, [(x, y)], None if p == float("inf") else standard_attacks(p=p), quality=False)
    assert len(found.results) > 6 and found["simba"].attacked.all()


def test_what_the_checks_say_in_a_line():
    assert lines_of([]) == "" and lines_of([Check("a", False), Check("b", True, "it is so")]).endswith("it is so.")


def test_a_square_that_finds_more():
    assert square_check({"pgd": 0.5, "ul": 0.6, "square": 0.497}, ["square"]).text.startswith("Square, which asks")
    assert not square_check({"pgd": 0.5, "square": 0.4985}, ["square"]).found
    assert square_check({"square": 0.5}, ["square"]) is None and square_check({"pgd": 0.5}, []) is None
