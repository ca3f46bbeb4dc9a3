"""The adapter of torchattacks' AutoAttack: in the ball, at least as strong as PGD, the model left as it was."""

import builtins
import math

import numpy as np
import pytest
import torch

from soatfast.attacks import PGD
from soatfast.attacks.autoattack import AutoAttack
from soatfast.evaluate import EvaluationWarning, load_suite, standard_attacks, suite
from soatfast.evaluate.accuracies import accuracy
from tests.nets import batch, conv_net


@pytest.fixture
def small(monkeypatch):
    """Square with 100 queries in place of 5 000."""
    torchattacks = pytest.importorskip("torchattacks")
    make = torchattacks.AutoAttack.__init__

    def fewer(self, *args, **kwargs):
        make(self, *args, **kwargs)
        self._autoattack.attacks[-1].n_queries = 100

    monkeypatch.setattr(torchattacks.AutoAttack, "__init__", fewer)


@pytest.mark.parametrize("p", [2, math.inf])
def test_stronger_than_pgd_and_inside(small, p):
    model = conv_net().train()
    x, y = batch(6, (3, 8, 8), 5, torch.float32)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    model.train()
    eps = 3.0 if p == 2 else 0.3
    attack = AutoAttack(eps=eps, p=p, classes=5)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    x_adv = attack(model, x, y)
    assert model.training and all(q.requires_grad for q in model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not x_adv.requires_grad and x_adv.min() >= 0 and x_adv.max() <= 1
    assert (x_adv - x).flatten(1).norm(p, dim=1).max() <= eps * 1.0001
    auto, pgd = (accuracy(model, (x, y), a).accuracy for a in (attack, PGD(eps=eps, p=p, steps=10)))
    assert auto <= pgd and auto < 1
    assert torch.equal(attack(model, x, y), x_adv), "the seed fixes it"


def test_in_the_suite(small, tmp_path):
    model = conv_net().eval()
    x, _ = batch(10, (3, 8, 8), 5, torch.float32)
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    attacks = {"pgd": PGD(eps=0.22, steps=3), "auto": AutoAttack(eps=0.15, classes=5, seed=3)}
    loader = list(zip(x.split(5), y.split(5), strict=True))
    seen = []
    handle = model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    whole = suite(model, loader, attacks, worst_case=True)
    handle.remove()
    asked_before = 6 * 5  # the checks of the model, on the first batch
    assert sum(seen) == whole.passes.forward_samples + asked_before
    auto = whole["auto"]
    assert list(whole.results) == ["clean", "pgd", "auto"]
    assert np.array_equal(auto.attacked, whole["pgd"].correct) and auto.attacked.sum() < 9, "PGD fools some"
    assert 0 < auto.correct.sum() < auto.attacked.sum(), "some withstand it, some do not"
    assert (auto.forward[~auto.attacked] == 0).all() and (auto.forward[auto.attacked] > 100).all()
    alone = AutoAttack(eps=0.15, classes=5, seed=3)(model, x[:5][auto.attacked[:5]], y[:5][auto.attacked[:5]])
    assert np.array_equal(auto.prediction[:5][auto.attacked[:5]], model(alone).argmax(1).numpy())

    def stop(name, done, total):
        if (name, done) == ("pgd", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        suite(model, loader, attacks, worst_case=True, folder=tmp_path, progress=stop)
    suite(model, loader, attacks, worst_case=True, folder=tmp_path)
    for key in ("correct", "margin", "norm", "psnr", "forward", "backward"):
        assert np.array_equal(getattr(load_suite(tmp_path)["auto"], key), getattr(auto, key))


def test_in_the_standard_attacks():
    found = standard_attacks(eps=0.1, p=2, classes=7, autoattack=True, seed=4)["autoattack"]
    assert found == AutoAttack(eps=0.1, p=2, classes=7, seed=4)


def test_an_empty_batch_and_bad_arguments():
    assert len(AutoAttack()(conv_net(), torch.rand(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64))) == 0
    with pytest.raises(TypeError, match="AutoAttack needs a module, got function"):
        AutoAttack()(lambda x: x, torch.rand(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="p = 2"):
        AutoAttack(p=1)
    for classes, error in ((1, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match="classes must be"):
            AutoAttack(classes=classes)
    x, y = batch(2, (3, 8, 8), 5, torch.float32)
    with pytest.raises(ValueError, match="told classes=10, and the model tells 5 apart: leave classes out"):
        AutoAttack(classes=10)(conv_net(), x, y)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4"):
        AutoAttack()(conv_net(), x, torch.tensor([0, 7]))
    with pytest.raises(ValueError, match="eps"):
        AutoAttack(eps=-1.0)


def test_without_torchattacks_the_message_says_what_to_do(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "torchattacks":
            raise ImportError("no such package")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    x, y = batch(2, (3, 8, 8), 5, torch.float32)
    with pytest.raises(ImportError, match="pip install --no-deps torchattacks"):
        AutoAttack(classes=5)(conv_net(), x, y)


@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_few_classes(p, classes, monkeypatch):
    """One sigmoid unit, two and three classes: in the ball, stronger than the clean figure, not weaker than PGD."""
    torchattacks = pytest.importorskip("torchattacks")
    make, losses = torchattacks.Square, []
    monkeypatch.setattr(torchattacks, "Square", lambda *args, **kwargs: make(*args, **{**kwargs, "n_queries": 100}))
    apgd = torchattacks.APGD

    def noted(*args, **kwargs):
        losses.append(kwargs["loss"])
        return apgd(*args, **kwargs)

    model = conv_net(classes=classes).eval()
    x, _ = batch(8, (3, 8, 8), 2, torch.float32)
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)  # or one class has it all
        y = model(x).argmax(1) if classes > 1 else (model(x)[:, 0] > 0).long()
    eps = 2.0 if p == 2 else 0.2
    attack = AutoAttack(eps=eps, p=p)
    x_adv = attack(model, x, y)
    assert (x_adv - x).flatten(1).norm(p, dim=1).max() <= eps * 1.0001 and 0 <= x_adv.min() <= x_adv.max() <= 1
    monkeypatch.setattr(torchattacks, "APGD", noted)
    with pytest.warns(EvaluationWarning, match=f"with {max(classes, 2)} classes AutoAttack has"):
        found = accuracy(model, (x, y), attack)
    assert losses == (["ce", "dlr"] if classes == 3 else ["ce"])
    assert found.accuracy <= accuracy(model, (x, y), PGD(eps=eps, p=p, steps=10)).accuracy and found.accuracy < 1
