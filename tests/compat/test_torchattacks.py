"""A script for torchattacks runs with one changed import and gives its results; and what torchattacks gets wrong."""

import contextlib
import inspect
import io
import os
import re

import pytest
import torch

import soatfast.compat.torchattacks as compat
from tests.nets import batch, conv_net

NAMES = [name for name in compat.__all__ if name not in compat.__wrapper__]
TARGETED = [name for name in NAMES if name not in ("GN", "TPGD", "VANILA", "PIFGSM", "PIFGSMPP")]
MEAN, STD = [0.5, 0.4, 0.6], [0.2, 0.3, 0.25]


def images_and_labels(n=12, seed=1):
    return batch(n=n, shape=(3, 8, 8), classes=5, dtype=torch.float32, seed=seed)


def same(ours, theirs):
    """Equal to 1e-6 but for one pixel in 1000, where a gradient's sign may hang on the order of a sum.

    torchattacks' L2 step divides by ||g|| + 1e-10: 2e-7. All else came out bit for bit equal when this was written.
    """
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype and not ours.requires_grad
    return ((ours - theirs).abs() > 1e-6).float().mean() <= 1e-3


SCRIPT = """
import IMPORT
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
model.train()
data = TensorDataset((images - mean) / std, labels)
loader = DataLoader(data, batch_size=8, shuffle=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

attack = torchattacks.PGD(model, eps=8/255, alpha=2/255, steps=3)
attack.set_normalization_used(mean=[0.5, 0.4, 0.6], std=[0.2, 0.3, 0.25])
print(attack)
kept = []
for x, y in loader:
    adv = attack(x, y)
    kept.append(adv)
    loss = torch.nn.functional.cross_entropy(model(adv), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    states.append([m.training for m in model.modules()])

model.eval()
loader = DataLoader(data, batch_size=8)
print(attack.get_mode())
attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % 5)
kept.append(attack(x, y))
attack.set_mode_targeted_random(quiet=True)
kept.append(attack(x, y))
attack.set_mode_targeted_least_likely(kth_min=2)
kept.append(attack(x, y))
attack.set_mode_targeted_by_label(quiet=True)
kept.append(attack(x, (y + 2) % 5))
print(attack.attack, attack.attack_mode, attack.targeted, attack.device, attack.eps, attack.supported_mode)
attack.set_mode_default()
figures = attack.save(loader, "adv.pt", return_verbose=True, save_predictions=True, save_clean_inputs=True)
attack.save(loader, save_path="bytes.pt", verbose=False, save_type="int")

again = attack.load("adv.pt", batch_size=5, load_predictions=True, load_clean_inputs=True,
                    normalize={"mean": [0.5, 0.4, 0.6], "std": [0.2, 0.3, 0.25]})
loaded = [torch.cat(parts) for parts in zip(*again)]
loaded += [torch.cat(parts) for parts in zip(*attack.load("bytes.pt"))]

multi = torchattacks.MultiAttack([
    torchattacks.FGSM(model, eps=0.05),
    torchattacks.PGDL2(model, eps=1.0, alpha=0.3, steps=3),
    torchattacks.MIFGSM(model, eps=0.2),
], verbose=True)
multi.set_normalization_used(mean=[0.5, 0.4, 0.6], std=[0.2, 0.3, 0.25])
kept.append(multi(x, y))
multi_figures = multi.save(loader, verbose=True, return_verbose=True)
print(multi)
states.append([m.training for m in model.modules()])
"""


def run_script(import_line, folder):
    images, labels = images_and_labels(24)
    names = {"model": conv_net(), "images": images, "labels": labels, "states": []}
    names |= {"mean": torch.tensor(MEAN).view(3, 1, 1), "std": torch.tensor(STD).view(3, 1, 1)}
    printed, before = io.StringIO(), os.getcwd()
    folder.mkdir()
    try:
        os.chdir(folder)
        with contextlib.redirect_stdout(printed):
            exec(SCRIPT.replace("import IMPORT", import_line), names)
    finally:
        os.chdir(before)
    names["printed"] = re.sub(r"\(\d+\.\d+ it/s\)", "(s)", printed.getvalue())
    return names


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    pytest.importorskip("torchattacks")
    folder = tmp_path_factory.mktemp("torchattacks")
    ours = run_script("import soatfast.compat.torchattacks as torchattacks", folder / "ours")
    theirs = run_script("import torchattacks", folder / "theirs")
    return ours, theirs, folder


def test_the_script_gives_the_same_images_and_trains_the_same_model(runs):
    ours, theirs, _ = runs
    assert len(ours["kept"]) == len(theirs["kept"]) == 8
    assert all(same(a, b) for a, b in zip(ours["kept"], theirs["kept"], strict=True))
    for (name, a), (other, b) in zip(
        ours["model"].state_dict().items(), theirs["model"].state_dict().items(), strict=True
    ):
        assert name == other
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_script_leaves_the_same_train_and_eval_state(runs):
    ours, theirs, _ = runs
    assert ours["states"] == theirs["states"] and all(ours["states"][0]) and not any(ours["states"][-1])


def test_the_script_prints_the_same(runs):
    ours, theirs, _ = runs
    assert ours["printed"] == theirs["printed"]
    assert (
        "Attack mode is changed to 'targeted(custom)'." in ours["printed"]
        and "Save progress: 100.00 %" in ours["printed"]
    )


def test_the_script_measures_the_same(runs):
    ours, theirs, _ = runs
    assert ours["figures"][:2] == pytest.approx(theirs["figures"][:2], rel=1e-4) and len(ours["figures"]) == 3
    assert ours["multi_figures"][0] == theirs["multi_figures"][0]
    assert ours["multi_figures"][1] == pytest.approx(theirs["multi_figures"][1])
    assert ours["multi_figures"][2] == pytest.approx(theirs["multi_figures"][2], rel=1e-4)


@pytest.mark.parametrize("name", ["adv.pt", "bytes.pt"])
def test_the_files_are_the_same_and_each_library_reads_the_others(runs, name):
    import torchattacks

    ours, theirs, folder = runs
    a, b = (torch.load(folder / who / name, weights_only=True) for who in ("ours", "theirs"))
    assert list(a) == list(b) and a["save_type"] == b["save_type"]
    for key in a:
        if key == "save_type":
            continue
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape
        if key in ("adv_inputs", "clean_inputs"):
            slack = 1.5 if a[key].dtype == torch.uint8 else 1e-6
            assert ((a[key].float() - b[key].float()).abs() > slack).float().mean() <= 1e-3
        else:
            assert torch.equal(a[key], b[key])
    assert len(ours["loaded"]) == 6
    for a, b in zip(ours["loaded"], theirs["loaded"], strict=True):
        assert a.dtype == b.dtype and ((a.float() - b.float()).abs() > 1.5 / 255).float().mean() <= 1e-3
    for loader in (torchattacks.PGD.load(folder / "ours" / name), compat.PGD.load(folder / "theirs" / name)):
        assert len(loader.dataset) == 24


@pytest.mark.parametrize(
    ("name", "mode"), [(n, None) for n in NAMES] + [(n, m) for n in TARGETED for m in ("random", "least_likely")]
)
def test_every_attack_with_its_defaults(name, mode):
    torchattacks = pytest.importorskip("torchattacks")
    model, (x, y) = conv_net(), images_and_labels()
    found = []
    for library in (compat, torchattacks):
        attack = getattr(library, name)(model)
        if mode:
            getattr(attack, f"set_mode_targeted_{mode}")(quiet=True)
        torch.manual_seed(3)
        found.append(attack(x, y))
    assert same(*found)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("PGD", {"eps": 0.1, "alpha": 0.05, "steps": 4, "random_start": False}),
        ("PGDL2", {"eps": 0.5, "alpha": 0.3, "steps": 3, "random_start": False}),
        ("BIM", {"eps": 0.02, "alpha": 0.01, "steps": 0}),
        ("MIFGSM", {"steps": 3, "decay": 0.4}),
        ("EOTPGD", {"steps": 2, "eot_iter": 3, "random_start": False}),
        ("RFGSM", {"alpha": 0.05, "steps": 2}),
    ],
)
def test_other_arguments(name, fields):
    torchattacks = pytest.importorskip("torchattacks")
    model, (x, y) = conv_net(), images_and_labels()
    found = []
    for library in (compat, torchattacks):
        attack = getattr(library, name)(model, **fields)
        torch.manual_seed(3)
        found.append(attack(x, y))
    assert same(*found) and repr(attack) == repr(getattr(compat, name)(model, **fields))


@pytest.mark.parametrize(
    "training", [(True, False, False), (True, True, False), (True, True, True), (False, True, True)]
)
def test_training_modes(training):
    torchattacks = pytest.importorskip("torchattacks")
    x, y = images_and_labels()
    found = []
    for library in (compat, torchattacks):
        model = conv_net()
        before = {name: t.clone() for name, t in model.state_dict().items()}
        attack = library.PGD(model, steps=3)
        attack.set_model_training_mode(*training)
        torch.manual_seed(3)
        found.append(attack(x, y))
        if library is compat:
            assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items()), (
                "statistics as they were"
            )
            assert all(m.training for m in model.modules())
    assert same(*found)


@pytest.mark.parametrize("name", [*NAMES, "MultiAttack"])
def test_constructors_have_the_same_arguments_and_defaults(name):
    torchattacks = pytest.importorskip("torchattacks")
    ours, theirs = (inspect.signature(getattr(library, name)).parameters for library in (compat, torchattacks))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


@pytest.mark.parametrize(
    "name",
    [
        "set_normalization_used",
        "set_mode_default",
        "set_mode_targeted_by_function",
        "set_mode_targeted_random",
        "set_mode_targeted_least_likely",
        "set_mode_targeted_by_label",
        "set_model_training_mode",
        "set_model",
        "set_device",
        "save",
        "load",
        "get_mode",
        "get_logits",
        "to_type",
    ],
)
def test_methods_have_the_same_arguments(name):
    torchattacks = pytest.importorskip("torchattacks")
    ours, theirs = (inspect.unwrap(getattr(cls, name)) for cls in (compat.PGD, torchattacks.PGD))
    if theirs.__name__ == "wrapper_func":  # hides its arguments
        theirs = next(cell.cell_contents for cell in theirs.__closure__ if callable(cell.cell_contents))
    pairs = [[(p.name, p.default) for p in inspect.signature(f).parameters.values()] for f in (ours, theirs)]
    assert pairs[0] == pairs[1]
