"""Same results as torchattacks 3.5.1 under the same seed, on a small trained network: float64 to 1e-6, and float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import soatfast.compat.torchattacks as compat

torchattacks = pytest.importorskip("torchattacks")

ADDED = (
    *("UPGD", "PGDRS", "PGDRSL2", "DIFGSM", "TIFGSM", "NIFGSM", "SINIFGSM", "VMIFGSM", "VNIFGSM"),
    *("Jitter", "PIFGSM", "PIFGSMPP"),
)
TARGETED = [name for name in ADDED if name != "PIFGSM"]
RADIUS = {"PGDRSL2": 1.5, "PIFGSM": 0.08, "PIFGSMPP": 0.15}


def digits(n, seed):
    """Noisy copies of five patterns."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(99))
    y = torch.randint(0, 5, (n,), generator=generator)
    return 0.4 * pattern[y] + 0.6 * torch.rand(n, 3, 12, 12, generator=generator), y


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(144, 5)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    x, y = digits(1000, 1)
    for _ in range(4):
        for part in torch.randperm(1000).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
    return model.eval()


def wide(attack):
    """torchattacks' kernels are float32, which a convolution of float64 images refuses."""
    if hasattr(attack, "stacked_kernel"):
        attack.stacked_kernel = attack.stacked_kernel.double()
    for name in ("project_kern", "gaussian_kern"):
        made = getattr(attack, name, None)
        if made is not None:
            setattr(attack, name, lambda *given, made=made: _double(made(*given)))
    return attack


def _double(made):
    return (made[0].double(), *made[1:]) if isinstance(made, tuple) else made.double()


def both(name, model, x, y, mode=None, **fields):
    """(ours, theirs): adversarial images, and a random number drawn afterwards."""
    found = []
    for library in (compat, torchattacks):
        attack = getattr(library, name)(model, **fields)
        if library is torchattacks and x.dtype == torch.float64:
            wide(attack)
        if mode:
            getattr(attack, f"set_mode_targeted_{mode}")(quiet=True)
        torch.manual_seed(3)
        found.append((attack(x, y), torch.rand(1).item()))
    return found


def radius(name):
    return {"max_epsilon" if name.startswith("PIFGSM") else "eps": RADIUS.get(name, 0.06)}


@pytest.mark.parametrize("name", ADDED)
def test_float32_but_for_pixels_whose_sign_hangs_on_rounding(trained, name):
    x, y = digits(1000, 2)
    (ours, after), (theirs, drawn) = both(name, trained, x, y, **radius(name))
    verdicts = [trained(images).argmax(1) == y for images in (ours, theirs)]
    assert (verdicts[0] == verdicts[1]).double().mean() >= 0.999
    assert after == drawn, "the generator is left alike"
    # Jitter's softmax is nearly 1: the derivative of most samples is rounding, in either library.
    share = ((ours - theirs).abs() > 1e-6).double().mean()
    assert share <= (0.1 if name == "Jitter" else 1e-3)
    assert not torch.equal(theirs, x)


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, None) for name in ADDED]
    + [(name, mode) for name in TARGETED for mode in ("by_label", "random", "least_likely") if name != "PIFGSMPP"]
    + [("PIFGSMPP", "by_label")],
)
def test_float64_to_one_millionth(trained, name, mode):
    x, y = digits(60, 4)
    model = nn.Sequential(*trained).double()
    try:
        labels = (y + 1) % 5 if mode == "by_label" else y
        (ours, after), (theirs, drawn) = both(name, model, x.double(), labels, mode, **radius(name))
    finally:
        model.float()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert after == drawn


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("UPGD", {"loss": "dlr", "steps": 4, "random_start": True}),
        ("UPGD", {"loss": "margin", "eps": 0.06}),
        ("UPGD", {"eot_iter": 3, "steps": 3, "decay": 0.5}),
        ("PGDRS", {"noise_type": "uniform", "batch_max": 100, "noise_batch_size": 3, "noise_sd": 0.2}),
        ("PGDRSL2", {"batch_max": 100, "steps": 3, "noise_sd": 0.1}),
        ("DIFGSM", {"resize_rate": 1.4, "diversity_prob": 1.0, "decay": 1.0, "random_start": True}),
        ("DIFGSM", {"resize_rate": 0.5, "diversity_prob": 1.0}),
        ("TIFGSM", {"kernel_name": "linear", "len_kernel": 5, "random_start": True}),
        ("TIFGSM", {"kernel_name": "uniform", "len_kernel": 4, "decay": 1.0}),
        ("TIFGSM", {"len_kernel": 7, "nsig": 2}),
        ("NIFGSM", {"decay": 0.3, "steps": 3}),
        ("SINIFGSM", {"m": 2, "steps": 3}),
        ("VMIFGSM", {"N": 2, "beta": 0.5, "steps": 3}),
        ("VNIFGSM", {"N": 1, "steps": 2}),
        ("Jitter", {"std": 0.0, "random_start": False, "scale": 3}),
        ("PIFGSM", {"num_iter_set": 4, "amplification": 2.5}),
        ("PIFGSMPP", {"num_iter_set": 3, "project_factor": 0.5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", [None, "random"])
def test_other_arguments(trained, name, fields, mode):
    if mode and name.startswith("PIFGSM"):
        return
    x, y = digits(60, 5)
    model = nn.Sequential(*trained).double()
    try:
        (ours, after), (theirs, drawn) = both(name, model, x.double(), y, mode, **fields)
    finally:
        model.float()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert after == drawn


def test_a_loss_of_the_script(trained):
    x, y = digits(40, 6)
    found = []
    for library in (compat, torchattacks):

        def loss(images, labels, target_labels):
            z = attack.get_logits(images)  # noqa: B023
            aim = labels if target_labels is None else target_labels
            gap = z.gather(1, aim[:, None]).squeeze(1) - z.logsumexp(1)
            return (gap if target_labels is not None else -gap).sum()

        attack = library.UPGD(trained, steps=3, loss=loss, eot_iter=2)
        plain = attack(x, y)
        attack.set_mode_targeted_by_label(quiet=True)
        found.append((plain, attack(x, (y + 1) % 5)))
    for ours, theirs in zip(*found, strict=True):
        assert ((ours - theirs).abs() > 1e-6).double().mean() <= 1e-3
    attack = compat.UPGD(trained, loss=lambda images, labels, target_labels: images)
    with pytest.raises(ValueError, match="loss must return a scalar that depends on the images"):
        attack(x, y)


def test_a_targeted_pifgsmpp_goes_towards_the_target(trained):
    """torchattacks goes towards the label of the call, so that it attacks nothing."""
    x, y = digits(200, 7)
    (ours, _), (theirs, _) = both("PIFGSMPP", trained, x, y, "least_likely", max_epsilon=0.15)
    right = [(trained(images).argmax(1) == y).double().mean() for images in (ours, theirs)]
    assert right[1] >= (trained(x).argmax(1) == y).double().mean() and right[0] < right[1]


def test_attributes_are_theirs_but_for_the_noise(trained):
    for name in ADDED:
        ours, theirs = (set(vars(getattr(library, name)(trained))) for library in (compat, torchattacks))
        missing = {n for n in theirs - ours if not n.startswith("_")}
        assert missing == ({"noise_func"} if name.startswith("PGDRS") else set()), name
    torch.testing.assert_close(
        compat.TIFGSM(trained).stacked_kernel, torchattacks.TIFGSM(trained).stacked_kernel, rtol=1e-6, atol=0
    )
