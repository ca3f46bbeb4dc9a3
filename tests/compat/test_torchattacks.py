"""A script for torchattacks runs with one changed import and gives its results; and what torchattacks gets wrong."""

import contextlib
import inspect
import io
import os
import pickle
import re

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import soatfast.compat.torchattacks as compat
from soatfast.attacks import FGSM as FastFGSM
from soatfast.attacks import PGD as FastPGD
from soatfast.gradients import count_passes
from tests.nets import batch, conv_net, relu_net

NAMES = [name for name in compat.__all__ if name not in ("Attack", "MultiAttack")]
TARGETED = [name for name in NAMES if name not in ("GN", "TPGD", "VANILA")]
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


# ---------------------------------------------------------------------------------------- without torchattacks


def test_attacks_are_this_packages():
    model, (x, y) = conv_net().eval(), images_and_labels()
    pgd = FastPGD(eps=8 / 255, steps=5, step_size=2 / 255, random_start=False)
    assert torch.equal(compat.PGD(model, steps=5, random_start=False)(x, y), pgd(model, x, y))
    assert torch.equal(compat.FGSM(model)(x, y), FastFGSM()(model, x, y))


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"), [("PGD", 10, 10), ("FGSM", 1, 1), ("TPGD", 11, 10), ("GN", 0, 0)]
)
def test_passes(name, forwards, backwards):
    model, (x, y) = conv_net(), images_and_labels()
    attack = getattr(compat, name)(model)
    with count_passes(model) as passes:
        attack(x, y)
    assert (passes.forward, passes.backward_input, passes.backward_parameters) == (forwards, backwards, 0)
    if name == "PGD":
        for set_mode in (attack.set_mode_targeted_random, attack.set_mode_targeted_least_likely):
            set_mode(quiet=True)
            with count_passes(model) as passes:
                attack(x, y)
            assert passes.forward == 11


def test_normalisation_is_the_models_own_layer_seen_from_outside():
    model, (x, y) = conv_net().eval(), images_and_labels()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    expected = FastFGSM(eps=0.03)(lambda z: model((z - mean) / std), x, y)
    attack = compat.FGSM(model, eps=0.03)
    attack.set_normalization_used(MEAN, STD)
    torch.testing.assert_close(attack((x - mean) / std, y) * std + mean, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(attack.inverse_normalize(attack.normalize(x)), x)
    attack.eps = 0.0
    torch.testing.assert_close(attack((x - mean) / std, y), (x - mean) / std, rtol=0, atol=1e-5)


class Failing(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.broken = conv_net(), False

    def forward(self, x):
        if self.broken:
            raise RuntimeError("out of memory")
        return self.model(x)


@pytest.mark.parametrize("name", NAMES)
def test_model_and_normalisation_are_restored_after_an_error(name):
    model, (x, y) = Failing().train(), images_and_labels()
    model.model[1].eval()  # a frozen batch norm, which torchattacks would put in train mode
    attack = getattr(compat, name)(model)
    attack.set_normalization_used(MEAN, STD)
    flags = [m.training for m in model.modules()]
    x = attack.normalize(x)
    torch.manual_seed(0)
    before = attack(x, y)
    model.broken = True
    if name not in ("VANILA", "GN"):
        with pytest.raises(RuntimeError, match="out of memory"):
            attack(x, y)
    assert [m.training for m in model.modules()] == flags
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    model.broken = False
    torch.manual_seed(0)
    assert torch.equal(attack(x, y), before)


@pytest.mark.parametrize("name", NAMES)
def test_inside_ball_and_box_under_no_grad_and_inference_mode(name):
    model, (x, y) = conv_net(), images_and_labels()
    x[:4] = x[:4].round()
    attack = getattr(compat, name)(model)
    for block in (contextlib.nullcontext(), torch.no_grad(), torch.inference_mode()):
        with block:
            x_adv = attack(x, y)
        assert x_adv.min() >= 0 and x_adv.max() <= 1
        if hasattr(attack, "eps"):
            delta = (x_adv - x).flatten(1)
            size = delta.norm(dim=1) if name == "PGDL2" else delta.abs().amax(1)
            assert (size <= attack.eps * (1 + 1e-5) + 1e-7).all()


def test_targets_reach_the_attack():
    model, (x, y) = conv_net().eval(), images_and_labels()
    attack = compat.PGD(model, random_start=False)
    seen = []
    attack.set_mode_targeted_by_function(lambda images, labels: seen.append(images) or (labels + 1) % 5, quiet=True)
    pgd = FastPGD(eps=8 / 255, steps=10, step_size=2 / 255, random_start=False, targeted=True)
    assert torch.equal(attack(x, y), pgd(model, x, (y + 1) % 5)) and torch.equal(seen[0], x)
    attack.set_mode_targeted_by_label(quiet=True)
    assert torch.equal(attack(x, (y + 1) % 5), pgd(model, x, (y + 1) % 5)) and attack.targeted
    with pytest.raises(ValueError, match="Targeted mode is not supported"):
        compat.TPGD(model).set_mode_targeted_random()
    with pytest.raises(ValueError, match="kth_min must be at least 1, got 0"):
        attack.set_mode_targeted_least_likely(kth_min=0)
    with pytest.raises(ValueError, match="k must be at most 4"):
        attack.set_mode_targeted_least_likely(kth_min=5, quiet=True)
        attack(x, y)


def test_a_zero_gradient_does_not_freeze_a_sample():
    """torchattacks' momentum becomes NaN, whose sign is 0 for ever."""

    class Once(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.first = relu_net(torch.float32), True

        def forward(self, x):
            z = self.model(x) * (0.0 if self.first else 1.0)
            self.first = False
            return z

    x, y = batch(dtype=torch.float32)
    assert ((compat.MIFGSM(Once(), steps=3)(x, y) - x).abs().flatten(1).amax(1) > 0).all()


def test_a_subclass_of_the_base_class():
    class Negative(compat.Attack):
        def __init__(self, model, inner):
            super().__init__("Negative", model)
            self.inner = inner
            self.supported_mode = ["default", "targeted"]

        def forward(self, images, labels):
            self.logits = self.get_logits(images)
            return self.inner(1 - images, labels)

    model, (x, y) = conv_net().eval(), images_and_labels()
    inner = compat.FGSM(model, eps=0.1)
    attack = Negative(model, inner)
    attack.set_normalization_used(MEAN, STD)
    attack.set_mode_targeted_by_label(quiet=True)
    assert inner.targeted and inner.normalization_used is not None
    normal = attack.normalize(x)
    x_adv = attack.inverse_normalize(attack(normal, y))
    assert ((x_adv - (1 - x)).abs() <= 0.1 + 1e-5).all()
    torch.testing.assert_close(attack.logits, model(normal), rtol=1e-4, atol=1e-5)


def test_what_is_missing_says_what_there_is():
    with pytest.raises(
        AttributeError, match=r"has no CW; it has BIM, EOTPGD, .*Attack, MultiAttack\. Take CW from torchattacks"
    ):
        _ = compat.CW
    assert not hasattr(compat, "AutoAttack") and compat.__version__ == "3.5.1"


def test_bad_input():
    model, (x, y) = conv_net(), images_and_labels()
    attack = compat.PGD(model)
    normal = (x - 0.5) / 0.2
    for images, message in (
        (normal, r"images must lie in \[0, 1\].*call set_normalization_used"),
        (torch.where(x < 0.5, torch.nan, x), "without NaN"),
    ):
        for name in NAMES:
            if name != "VANILA":
                with pytest.raises(ValueError, match=message):
                    getattr(compat, name)(model)(images, y)
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4"):
        attack(x, y + 1)
    with pytest.raises(TypeError, match="PGD needs labels, got None"):
        attack(x)
    with pytest.raises(TypeError, match=r"images must be a floating tensor, got torch\.uint8"):
        attack((255 * x).to(torch.uint8), y)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        compat.PGD(lambda z: z)
    with pytest.raises(ValueError, match=r"eps must be finite and >= 0, got -0\.1"):
        compat.FGSM(model, eps=-0.1)(x, y)
    with pytest.raises(ValueError, match="one number a channel"):
        attack.set_normalization_used([0.5, 0.5], [0.2])
    with pytest.raises(ValueError, match="call set_normalization_used"):
        compat.PGD(model).normalize(x)
    with pytest.raises(ValueError, match="More than two attacks"):
        compat.MultiAttack([attack])
    with pytest.raises(ValueError, match="different model"):
        compat.MultiAttack([attack, compat.FGSM(conv_net())])
    assert len(attack(x[:0], y[:0])) == 0


def test_a_file_of_another_hand_cannot_run_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"adv_inputs": torch.zeros(1), "labels": Payload(), "save_type": "float"}, tmp_path / "adv.pt")
    with pytest.raises(pickle.UnpicklingError):
        compat.PGD.load(tmp_path / "adv.pt")
    assert not (tmp_path / "ran").exists()
    torch.save({"adv_inputs": torch.zeros(1), "save_type": "float"}, tmp_path / "adv.pt")
    with pytest.raises(ValueError, match=r"has no labels, preds: expected a file of attack\.save"):
        compat.PGD.load(tmp_path / "adv.pt", load_predictions=True)


def test_save_and_load(tmp_path, capsys):
    model, (x, y) = conv_net().train(), images_and_labels(10)
    attack = compat.FGSM(model, eps=0.1)
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    assert attack.save(loader, tmp_path / "adv.pt", verbose=False, save_predictions=True) is None
    assert capsys.readouterr().out == "" and model.training
    adv, labels, predictions = next(iter(compat.FGSM.load(tmp_path / "adv.pt", load_predictions=True)))
    assert torch.equal(adv, torch.cat([attack(a, b) for a, b in loader])) and torch.equal(labels, y)
    assert torch.equal(predictions, model.eval()(adv).argmax(1))
    accuracy, l2, _ = attack.save(loader, verbose=False, return_verbose=True)
    wrong = predictions != y
    assert accuracy == pytest.approx(100 * (~wrong).double().mean().item())
    assert l2 == pytest.approx((adv - x).flatten(1).norm(dim=1)[wrong].mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match="data_loader has no batches"):
        attack.save(DataLoader(TensorDataset(x[:0], y[:0]), batch_size=4))
    with pytest.raises(ValueError, match="half is not a valid type"):
        attack.save(loader, save_type="half")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_stay_inside_the_ball(dtype):
    model, (x, y) = relu_net(dtype), batch(dtype=dtype)
    for name in ("PGD", "MIFGSM", "FGSM"):
        x_adv = getattr(compat, name)(model, eps=0.1)(x, y)
        assert x_adv.dtype == dtype and (x_adv.double() - x.double()).abs().max() <= 0.1 + 1e-9
