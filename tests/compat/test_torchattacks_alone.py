"""torchattacks' interface by itself: what needs no torchattacks to compare with."""

import contextlib
import os

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import soatfast.compat.torchattacks as compat
from soatfast.attacks import FGSM as FastFGSM
from soatfast.attacks import PGD as FastPGD
from soatfast.gradients import count_passes
from tests.nets import batch, conv_net, relu_net

NAMES = [name for name in compat.__all__ if name not in compat.__wrapper__]
MEAN, STD = [0.5, 0.4, 0.6], [0.2, 0.3, 0.25]


def images_and_labels(n=12, seed=1):
    return batch(n=n, shape=(3, 8, 8), classes=5, dtype=torch.float32, seed=seed)


def test_attacks_are_this_packages():
    model, (x, y) = conv_net().eval(), images_and_labels()
    pgd = FastPGD(eps=8 / 255, steps=5, step_size=2 / 255, random_start=False)
    assert torch.equal(compat.PGD(model, steps=5, random_start=False)(x, y), pgd(model, x, y))
    assert torch.equal(compat.FGSM(model)(x, y), FastFGSM()(model, x, y))


@pytest.mark.parametrize(
    ("name", "forwards", "backwards"),
    [
        *(("PGD", 10, 10), ("FGSM", 1, 1), ("TPGD", 11, 10), ("GN", 0, 0), ("UPGD", 10, 10), ("PGDRS", 10, 10)),
        *(("PGDRSL2", 10, 10), ("DIFGSM", 10, 10), ("TIFGSM", 10, 10), ("NIFGSM", 10, 10), ("SINIFGSM", 50, 50)),
        *(("VMIFGSM", 55, 55), ("VNIFGSM", 55, 55), ("Jitter", 10, 10), ("PIFGSM", 10, 10), ("PIFGSMPP", 10, 10)),
    ],
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
            size = delta.norm(dim=1) if name in ("PGDL2", "PGDRSL2") else delta.abs().amax(1)
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
    for set_mode in (attack.set_mode_targeted_least_likely, attack.set_mode_targeted_random):
        set_mode(quiet=True)
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.4, got 3\.\.7"):
            attack(x[:2], torch.tensor([3, 7]))


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
        AttributeError, match=r"has no CW; it has BIM, .*MultiAttack\. Take CW from torchattacks itself"
    ):
        _ = compat.CW
    with pytest.raises(AttributeError, match=r"has no PDG; it has BIM, .*MultiAttack$"):
        _ = compat.PDG
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
    for name, fields, message in (
        ("UPGD", {"loss": "cw"}, 'loss must be "ce", "dlr", "margin" or a callable, got \'cw\''),
        ("PGDRS", {"noise_type": "laplace"}, r'noise_type must be "guassian" \(sic\) or "uniform", got \'laplace\''),
        ("PGDRSL2", {"noise_sd": -1.0}, "sigma must be finite and >= 0, got -1.0"),
        ("DIFGSM", {"resize_rate": 1.0}, "rate must not be 1"),
        ("DIFGSM", {"resize_rate": 1.05}, "an image of width 8 has no other size at rate 1.05"),
        ("TIFGSM", {"diversity_prob": 2.0}, r"prob must be a number in \[0, 1\], got 2.0"),
        ("NIFGSM", {"decay": float("nan")}, "decay must be finite and >= 0, got nan"),
        ("SINIFGSM", {"m": 0}, "scales must be at least 1, got 0"),
        ("VMIFGSM", {"N": -1}, "neighbours must be at least 0, got -1"),
        ("Jitter", {"scale": 0}, "scale must be finite and > 0, got 0"),
        ("PIFGSM", {"num_iter_set": 0}, "steps must be at least 1, got 0"),
        ("PIFGSMPP", {"project_factor": -1}, "project_factor must be finite and >= 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            getattr(compat, name)(model, **fields)(x, y)
    with pytest.raises(ValueError, match='kernel_name must be "gaussian", "linear" or "uniform", got \'box\''):
        compat.TIFGSM(model, kernel_name="box")
    two = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    with pytest.raises(ValueError, match='loss "dlr" needs 3 classes here, got 2'):
        compat.UPGD(two, loss="dlr")(x, y % 2)
    with pytest.raises(ValueError, match="one number a channel"):
        attack.set_normalization_used([0.5, 0.5], [0.2])
    with pytest.raises(ValueError, match="call set_normalization_used"):
        compat.PGD(model).normalize(x)
    with pytest.raises(ValueError, match="More than two attacks"):
        compat.MultiAttack([attack])
    with pytest.raises(ValueError, match="different model"):
        compat.MultiAttack([attack, compat.FGSM(conv_net())])
    assert len(attack(x[:0], y[:0])) == 0
    multi = compat.MultiAttack([attack, compat.FGSM(model)], verbose=True)
    with pytest.raises(TypeError, match="MultiAttack needs labels, got None"):
        multi(x)
    with pytest.raises(TypeError, match=r"images must be a floating tensor, got torch\.uint8"):
        multi((255 * x).to(torch.uint8), y)
    assert len(multi(x[:0], y[:0])) == 0
    before = x.clone()
    assert multi(x, y).data_ptr() != x.data_ptr() and torch.equal(x, before)


def test_a_file_of_another_hand_cannot_run_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"adv_inputs": torch.zeros(1), "labels": Payload(), "save_type": "float"}, tmp_path / "adv.pt")
    with pytest.raises(ValueError, match=r"adv\.pt is not read: it is damaged, or holds more than tensors"):
        compat.PGD.load(tmp_path / "adv.pt")
    assert not (tmp_path / "ran").exists()
    torch.save({"adv_inputs": torch.zeros(1), "save_type": "float"}, tmp_path / "adv.pt")
    with pytest.raises(ValueError, match=r"has no labels, preds: expected a file of attack\.save"):
        compat.PGD.load(tmp_path / "adv.pt", load_predictions=True)


@pytest.mark.parametrize("content", [b"", b"abc", b"PK" + 90 * b"0"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "adv.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"adv\.pt is not read: it is damaged"):
        compat.PGD.load(tmp_path / "adv.pt")
    torch.save({"adv_inputs": [1.0], "labels": torch.zeros(1), "save_type": "float"}, tmp_path / "adv.pt")
    with pytest.raises(ValueError, match=r"adv_inputs must be tensors: expected a file of attack\.save"):
        compat.PGD.load(tmp_path / "adv.pt")
    with pytest.raises(FileNotFoundError):
        compat.PGD.load(tmp_path / "none.pt")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bytes_of_images_in_any_floating_type(tmp_path, dtype):
    """torchattacks stores other types than float32 as they are, and then reads them divided by 255."""
    model, (x, y) = relu_net(dtype), batch(dtype=dtype)
    attack = compat.VANILA(model)
    attack.save([(x, y)], tmp_path / "adv.pt", verbose=False, save_type="int")
    assert torch.load(tmp_path / "adv.pt", weights_only=True)["adv_inputs"].dtype == torch.uint8
    ((images, _),) = attack.load(tmp_path / "adv.pt")
    assert ((x.double() - images.double()) >= -1e-6).all() and ((x.double() - images.double()) < 1 / 255 + 1e-6).all()


def test_a_missing_folder_is_said_before_the_attack(tmp_path):
    model, data = conv_net(), [images_and_labels()]
    with count_passes(model) as passes, pytest.raises(ValueError, match="save_path must be in a folder that is there"):
        compat.FGSM(model).save(data, tmp_path / "none" / "adv.pt", verbose=False)
    assert passes.forward == 0


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


class HostReads(TorchDispatchMode):
    """Counts how often a number is read from a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


ITERATED = [name for name in NAMES if name not in ("VANILA", "GN", "FGSM", "FFGSM")]


@pytest.mark.parametrize("name", ITERATED)
def test_no_step_reads_a_number_from_the_device(name):
    """DIFGSM and TIFGSM draw the size and the place of an image on the CPU: four numbers a step."""
    model, (x, y) = conv_net(), images_and_labels()
    field = "num_iter_set" if name.startswith("PIFGSM") else "steps"
    reads = []
    for steps in (2, 6):
        with HostReads() as counted:
            getattr(compat, name)(model, **{field: steps})(x, y)
        reads.append(counted.count)
    assert reads[1] - reads[0] == (4 * 4 if name in ("DIFGSM", "TIFGSM") else 0)
