"""Models by name and import path; weights files that fit, do not fit, are damaged, or are code."""

import pickle
import sys

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from soatfast.runs.errors import ModelError
from soatfast.runs.files import fingerprint
from soatfast.train import SmallCNN, load_weights, make_model
from soatfast.train.subject import Subject
from tests.train.conftest import same, weights

MODULE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, in_channels, num_classes, size=1, depth=2):
        super().__init__()
        self.layer = nn.Linear(in_channels * size * size, num_classes)
        self.drop = nn.Dropout()
        self.asked = (in_channels, num_classes, size, depth)
    def forward(self, x):
        return self.layer(self.drop(x.flatten(1)))

def plain():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10)).eval()

def wide(*, classes, width):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.Linear(width, classes))

def greedy(depth, heads): ...
def nothing(): ...
def failing(): raise RuntimeError("no such checkpoint")
def pairs(): return nn.LSTM(28, 4)
def fixed(): return nn.Conv2d(3, 5, 3)
def five(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))
def bare(): return nn.Sequential(nn.Flatten(), nn.Identity())
made = plain()
number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "own_net.py").write_text(MODULE)
    (tmp_path / "broken_net.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "raising_net.py").write_text("1 / 0\n")
    yield tmp_path
    for name in ("own_net", "broken_net", "raising_net"):
        sys.modules.pop(name, None)


def test_a_factory_gets_what_its_signature_takes(here):
    before = torch.random.get_rng_state()
    model = make_model("own_net:Net", (1, 8, 8), 10)
    assert model.asked == (1, 10, 8, 2)
    assert model.training and model.drop.training
    assert not make_model("own_net:plain", (3, 8, 8), 10).training, "the factory's own mode"
    assert make_model("own_net:wide", (3, 8, 8), 7, 12)[1].out_features == 12
    assert sys.path[0] != str(here) and sys.path[-1] == str(here)
    torch.random.set_rng_state(before)
    again = make_model("own_net:Net", (1, 8, 8), 10)
    assert same(weights(model), weights(again))


def test_names_of_models():
    assert make_model("small-cnn", (1, 8, 8), 10, 4).features[0].out_channels == 4
    assert make_model("resnet18", (3, 16, 16), 5, 4).linear.out_features == 5


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("own_net:Nett", "own_net has no Nett; it has Net, plain, wide, greedy and 6 more"),
        ("own_nett:Net", "there is no module own_nett in the current folder"),
        ("own_net.sub:Net", r"(there is no module own_net\.sub|importing own_net\.sub failed)"),
        ("broken_net:Net", "importing broken_net failed: No module named 'no_such_package_at_all'"),
        ("raising_net:Net", "importing raising_net failed: ZeroDivisionError"),
        (":Net", r"expected package\.module:factory"),
        ("own_net:", r"expected package\.module:factory"),
        ("own_net:made", "a function or class that makes the model, got a Sequential"),
        ("own_net:number", "got a int"),
        ("own_net:nothing", "own_net:nothing returned a NoneType, not an nn.Module"),
        ("own_net:failing", "own_net:failing failed: RuntimeError: no such checkpoint"),
        ("own_net:greedy", "own_net:greedy needs depth, heads: write a function without arguments"),
        ("own_net:pairs", "own_net:pairs fails on images of shape"),
        ("own_net:fixed", "own_net:fixed fails on images of shape"),
        ("own_net:five", r"must return logits \(B, 10\) for 10 classes, got shape \(2, 5\) at B = 2"),
        ("own_net:bare", "own_net:bare has no parameters"),
    ],
)
def test_a_wrong_factory_is_named(here, spec, text):
    with pytest.raises(ModelError, match=text):
        make_model(spec, (1, 8, 8), 10)


def test_wrong_names_and_widths(here):
    with pytest.raises(ValueError, match=r"small-cnn, fast, resnet18, wrn-34-10 or package.module:factory, got 'vgg'"):
        make_model("vgg", (1, 8, 8), 10)
    with pytest.raises(ValueError, match="got 8 for wrn-34-10"):
        make_model("wrn-34-10", (3, 8, 8), 10, 8)
    with pytest.raises(ValueError, match="width must be at least 1"):
        Subject(width=0)
    with pytest.raises(ModelError, match="takes no width, got width 4"):
        make_model("own_net:plain", (1, 8, 8), 10, 4)
    with pytest.raises(ModelError, match=r"small-cnn fails on images of shape \(1, 28, 20\)"):
        make_model("small-cnn", (1, 28, 20), 10)
    with pytest.raises(ModelError, match="got samples of shape"):
        make_model("small-cnn", (28,), 10)


def test_more_outputs_than_classes_are_fine(here):
    assert make_model("own_net:plain", (1, 8, 8), 3)[1].out_features == 10


def cnn(seed):
    torch.manual_seed(seed)
    return SmallCNN(width=4, size=8)


@pytest.mark.parametrize("ending", ["safetensors", "pt", "pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_weights_of_every_kind(tmp_path, ending, prefix):
    source, target = cnn(0), cnn(1)
    state = {prefix + name: value for name, value in source.state_dict().items()}
    path = tmp_path / f"w.{ending}"
    if ending == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if ending == "pt" else {"epoch": 3, "state_dict": state}, path)
    assert fingerprint(source) != fingerprint(target)
    load_weights(target, path)
    assert same(weights(source), weights(target))
    assert fingerprint(source) == fingerprint(target)


def test_shared_weights_and_subject(tmp_path, here):
    def tied():
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 4))
        model[2].weight = model[1].weight
        return model

    source, target = tied(), tied()
    save_model(source, str(tmp_path / "w.safetensors"))
    load_weights(target, tmp_path / "w.safetensors")
    assert same(weights(source), weights(target))
    found = Subject(data="digits8", width=4, weights=tmp_path / "cnn.pt")
    pytest.importorskip("sklearn")
    torch.save(cnn(3).state_dict(), tmp_path / "cnn.pt")
    assert same(weights(found.make_model(found.load_data())), weights(cnn(3)))


def test_what_does_not_fit_is_listed_in_one_line(tmp_path):
    state = cnn(0).state_dict()
    del state["features.0.bias"]
    state["head.weight"] = torch.zeros(1)
    state["classifier.3.weight"] = torch.zeros(3, 100)
    save_file(state, tmp_path / "w.safetensors")
    target = cnn(1)
    with pytest.raises(ModelError) as caught:
        load_weights(target, tmp_path / "w.safetensors")
    assert str(caught.value) == (
        f"{tmp_path / 'w.safetensors'} does not fit SmallCNN: missing: features.0.bias; unexpected: head.weight; "
        "other shapes: classifier.3.weight is (3, 100), the model's (10, 100)"
    )
    assert same(weights(target), weights(cnn(1))), "nothing is loaded in part"
    save_file({}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"missing: features.0.weight, .* and 4 more"):
        load_weights(target, tmp_path / "w.safetensors")


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_malicious_pickle_does_not_run(tmp_path, write):
    trace = tmp_path / "ran"
    for name in ("w.pt", "w.pth", "w.safetensors", "w.bin"):
        write({"weight": Evil(trace), "bias": torch.zeros(2)}, tmp_path / name)
        with pytest.raises(ModelError, match=name):
            load_weights(cnn(0), tmp_path / name)
        assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))
    assert trace.exists(), "the file is not as evil as it says"


def test_damaged_missing_and_foreign_weights(tmp_path):
    def refused(name, text):
        with pytest.raises(ModelError, match=text):
            load_weights(cnn(0), tmp_path / name)

    refused("none.safetensors", r"there is no weights file .*none\.safetensors")
    (tmp_path / "run").mkdir()
    refused("run", r"run is a folder$")
    save_model(cnn(0), str(tmp_path / "run" / "model.safetensors"))
    refused("run", r"run is a folder; it has .*run/model\.safetensors")
    (tmp_path / "w.onnx").write_bytes(b"")
    refused("w.onnx", r"must be a \.safetensors, \.pt or \.pth file")
    torch.save(cnn(0).state_dict(), tmp_path / "w.pt")
    for ending, whole in (
        ("safetensors", (tmp_path / "run" / "model.safetensors").read_bytes()),
        ("pt", (tmp_path / "w.pt").read_bytes()),
    ):
        for size in (0, 5, 100, len(whole) - 20):
            (tmp_path / f"cut.{ending}").write_bytes(whole[:size])
            refused(f"cut.{ending}", rf"cut\.{ending} is (damaged|not read: it is damaged)")
    for value, text in (([torch.zeros(2)], "got list"), ({"epoch": 3}, "entries such as 'epoch'")):
        torch.save(value, tmp_path / "w.pt")
        refused("w.pt", f"expected a state dict of tensors, {text}" if "list" in text else text)
