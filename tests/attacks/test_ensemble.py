"""AutoAttack's ensemble against torchattacks', part by part; few classes; what each part left."""

import math

import pytest
import torch

from soatfast.attacks.ensemble import Ensemble
from tests.attacks.peers import NETS, SHAPE, reckoned_in, right_batch
from tests.nets import batch, conv_net, relu_net

NAME = {2: "L2", math.inf: "Linf"}
EPS = {2: 0.1, math.inf: 0.008}


def theirs(model, x, y, p, dtype, steps, queries, version="standard"):
    """(their images, how many each part left)."""
    torchattacks = pytest.importorskip("torchattacks")
    with reckoned_in(dtype):
        whole = torchattacks.AutoAttack(
            model, norm=NAME[p], eps=EPS[p], n_classes=6, seed=0, version=version
        )._autoattack
        for attack in whole.attacks:
            attack.steps, attack.n_queries = steps, queries
        whole._accumulate_multi_atk_records, whole._multi_atk_records = True, [0] * (len(whole.attacks) + 1)
        return whole(x, y), whole._multi_atk_records


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("p", "version"), [(2, "standard"), (math.inf, "standard"), (math.inf, "plus")])
def test_each_part_leaves_what_torchattacks_leaves(net, p, version):
    model = NETS[net](torch.float64)
    (x, y), steps = right_batch(model, 24), 5 if version == "plus" else 10
    y[0] = model(x[:1]).argmax()  # theirs counts the whole batch as right before the first part
    found = Ensemble(eps=EPS[p], p=p, version=version, steps=steps, queries=30).search(model, x, y)
    want, records = theirs(model, x, y, p, torch.float64, steps, 30, version)
    if p == math.inf:  # for p = 2 their targeted APGD takes the first sample's step size for all
        assert [*found.left.values()] == records[: len(found.left)]
    wrong = model(want).argmax(1) != y
    assert torch.equal(found.fooled, wrong) and torch.equal(model(found.x_adv).argmax(1) != y, wrong)
    assert 3 <= wrong.sum() < 24
    assert ((found.x_adv - x).flatten(1).norm(p, dim=1) <= EPS[p] * (1 + 1e-9)).all()


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
@pytest.mark.parametrize("p", [2, math.inf])
@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_few_classes(classes, p, version):
    model = conv_net(classes=classes).eval()
    x, _ = batch(8, (3, 8, 8), 2, torch.float32)
    with torch.no_grad():
        model[-1].bias -= model(x).mean(0)
        y = model(x).argmax(1) if classes > 1 else (model(x)[:, 0] > 0).long()
    found = Ensemble(eps=1e-6, p=p, version=version, steps=3, queries=5).search(model, x, y)
    dlr, towards = ["apgd-dlr"] * (classes > 2), ["apgd-t"] * (classes > 3)
    want = {
        "standard": [*(towards or dlr), "fab-t", "square"],
        "plus": [*dlr, "fab", "square", *towards, "fab-t"],
        "rand": dlr,
    }
    assert [*found.left] == ["clean", "apgd-ce", *want[version]] and found.left["clean"] == 8
    found = Ensemble(eps=EPS[p] * 5, p=p, version=version, steps=3, queries=5).search(model, x, y)
    assert found.fooled.any() and found.left[next(reversed(found.left))] == (~found.fooled).sum()


def test_the_model_is_left_as_it_was_and_the_seed_fixes_the_result():
    model = conv_net().train()
    x, y = batch(6, SHAPE, 5, torch.float32)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    attack = Ensemble(eps=0.02, steps=4, queries=10, seed=3)
    x_adv = attack(model, x, y)
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert torch.equal(attack(model, x, y), x_adv) and not x_adv.requires_grad


def test_an_empty_batch():
    found = Ensemble().search(conv_net(), torch.rand(0, *SHAPE), torch.zeros(0, dtype=torch.int64))
    assert len(found.x_adv) == 0 and found.left == {"clean": 0}


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Ensemble(p=1), ValueError, r"Ensemble knows p = 2 and math\.inf, got 1"),
        (lambda: Ensemble(version="best"), ValueError, "version must be"),
        (lambda: Ensemble(classes=1), ValueError, "classes must be"),
        (lambda: Ensemble(queries=0), ValueError, "queries must be"),
        (lambda: Ensemble(eps=-1.0), ValueError, "eps must be"),
        (lambda: Ensemble(classes=9)(relu_net(), *batch()), ValueError, "told classes=9, and the model tells 4 apart"),
        (lambda: Ensemble()(relu_net(), batch()[0], batch()[1] + 9), ValueError, r"labels must lie in 0\.\.3"),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()
