"""What every attack owes its user, whatever its method."""

import dataclasses
import math
import pickle

import pytest
import torch

from soatfast import attacks
from soatfast.attacks import (
    APGD,
    ASOD,
    FAB,
    FGSM,
    HAAT,
    MIFGSM,
    PGD,
    PIFGSM,
    SOAE,
    FrankWolfe,
    Jitter,
    NearPGD,
    SimBA,
    SmoothAdv,
    Square,
    TargetedAPGD,
    TargetedFAB,
    TargetedPGD,
    gaussian_kernel,
)
from soatfast.attacks.base import Attack
from soatfast.gradients import count_passes
from soatfast.gradients.precision import round_towards
from soatfast.losses import (
    CURE,
    LLR,
    MART,
    SCORPIO,
    SOAR,
    SORA,
    STN,
    TRADES,
    AdversarialTraining,
    CrossEntropy,
    InputGradientPenalty,
)
from tests.nets import batch, conv_net, relu_net, smooth_net

ATTACKS = [
    FGSM(eps=0.1),
    FGSM(eps=0.5, p=2),
    FGSM(eps=1.0, p=1),
    FGSM(eps=0.3, p=3),
    FGSM(eps=0.1, objective="margin"),
    PGD(eps=0.1, steps=3),
    PGD(eps=0.5, p=2, steps=3),
    PGD(eps=1.0, p=1, steps=3),
    PGD(eps=0.1, steps=3, random_start=False, objective="margin"),
    PGD(eps=0.1, steps=2, restarts=2, best=True),
    PGD(eps=0.1, steps=2, restarts=3),
    PGD(eps=0.5, p=2, steps=2, best=True, targeted=True),
    NearPGD(eps=0.1, steps=3),
    NearPGD(eps=0.5, p=2, steps=3),
    NearPGD(eps=0.1, steps=2, noise=0.0, random_start=False, best=True),
    FrankWolfe(eps=0.1, steps=2),
    FrankWolfe(eps=0.1, scheme="cd", init="lmo"),
    FrankWolfe(eps=0.5, p=2, steps=3, scheme="exact"),
    FrankWolfe(eps=1.0, p=1, init="raw"),
    FrankWolfe(eps=0.4, p=1.5, objective="margin"),
    FrankWolfe(eps=0.1, in_box=True, init="lmo", h=1.0),
    SOAE(eps=0.1, steps=2, max_dim=2, rtol=0),
    SOAE(eps=0.5, p=2, steps=2, variant="tr", scheme="cd", max_dim=2),
    SOAE(eps=1.0, p=1, steps=3, variant="tr", scheme="exact", max_dim=2),
    SOAE(eps=0.1, steps=2, variant="tr", max_dim=2, targeted=True),
    HAAT(eps=0.1, steps=2, power=2),
    HAAT(eps=0.1, steps=2, power=1, variant="paper", random_start=True),
    FrankWolfe(eps=0.1, steps=2, targeted=True),
    MIFGSM(eps=0.1, steps=3),
    MIFGSM(eps=0.5, p=2, steps=3, decay=0.5, step_size=0.2),
    MIFGSM(eps=0.1, steps=2, objective="margin", targeted=True),
    MIFGSM(eps=0.1, steps=3, nesterov=True, scales=2),
    MIFGSM(eps=0.1, steps=3, neighbours=2),
    MIFGSM(eps=0.5, p=2, steps=3, kernel=gaussian_kernel(3, 1.0)),
    PIFGSM(eps=0.1, steps=3),
    PIFGSM(eps=0.1, steps=2, carried=False, project_factor=0.8, targeted=True, kernel=gaussian_kernel(3, 1.0)),
    Jitter(eps=0.1, steps=3, std=0.0),
    Jitter(eps=0.1, steps=2, std=0.0, targeted=True, best=True),
    SmoothAdv(eps=0.1, steps=3, sigma=0.05, samples=2),
    SmoothAdv(eps=0.5, p=2, steps=2, sigma=0.0, samples=1),
    SimBA(eps=0.1, steps=8, early_stop=False, compact=False),
    SimBA(eps=0.5, p=2, steps=8, step_size=0.4, basis="dct", early_stop=False, compact=False),
    SimBA(eps=1.0, p=1, steps=8, step_size=0.6, targeted=True, early_stop=False, compact=False),
    TargetedPGD(eps=0.1, steps=3, classes=4),
    TargetedPGD(eps=0.5, p=2, steps=3, rule="least-likely", random_start=False),
    ASOD(eps=0.1, steps=3, samples=2, sigma=0.1, step_size=0.05),
    ASOD(eps=1.0, p=1, steps=3, samples=1, sigma=0.0),
    ASOD(eps=0.5, p=2, steps=2, samples=1, sigma=0.0, objective="margin"),
]


def draws(attack: Attack) -> bool:
    """Whether two calls differ."""
    if isinstance(attack, ASOD):
        return attack.sigma > 0
    if getattr(attack, "neighbours", 0) or getattr(attack, "sigma", 0):
        return True
    return isinstance(attack, (HAAT, SimBA)) or getattr(attack, "random_start", False)


DETERMINISTIC = [a for a in ATTACKS if not draws(a)]


def name(attack: Attack) -> str:
    given = {k: "..." if isinstance(v, torch.Tensor) else v for k, v in dataclasses.asdict(attack).items()}
    fields = [f"{k}={v}" for k, v in given.items() if v not in (False, None, "ce", "eval")]
    return f"{type(attack).__name__}({','.join(fields)})"


@pytest.fixture(params=ATTACKS, ids=name)
def attack(request):
    return request.param


@pytest.fixture(params=DETERMINISTIC, ids=name)
def deterministic(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_is_in_the_ball_and_in_the_box(attack, dtype):
    model, (x, y) = relu_net(dtype), batch(n=20, dtype=dtype)
    x[:5] = x[:5].round()  # corners of the box
    x_adv = attack(model, x, y)
    assert x_adv.shape == x.shape and x_adv.dtype == dtype and not x_adv.requires_grad
    assert x_adv.min() >= 0 and x_adv.max() <= 1
    size = (x_adv - x).double().flatten(1).norm(p=attack.p, dim=1)
    assert (size <= attack.eps * (1 + 1e-5) + 1e-7).all()
    assert (size > 0.2 * attack.eps).any()


def test_it_raises_the_objective(attack):
    model, (x, y) = smooth_net(), batch(n=30)
    with attack.oracle(model) as oracle:
        before = oracle.loss(x, y).sum()
        assert oracle.loss(attack(model, x, y), y).sum() > before


def test_declared_passes_are_the_counted_ones(attack):
    model, (x, y) = relu_net(), batch(n=6)
    with count_passes(model) as passes:
        attack(model, x, y)
    assert passes.total() == attack.passes(6)
    assert passes.backward_parameters == 0


def test_samples_do_not_see_each_other(deterministic):
    model, (x, y) = smooth_net(), batch(n=5)
    together = deterministic(model, x, y)
    alone = torch.cat([deterministic(model, x[i : i + 1], y[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(deterministic(model, x[order], y[order]), together[order], rtol=0, atol=1e-9)


class Spoiled(torch.nn.Module):
    """Sample 2 has a NaN, infinite or zero gradient; the others are the plain model's."""

    def __init__(self, factor):
        super().__init__()
        self.model = relu_net()
        self.factor = factor

    def forward(self, x):
        weight = torch.ones(len(x) // 5 * 5, dtype=x.dtype)
        weight[2::5] = self.factor
        return self.model(x) * weight[:, None]


@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0])
def test_one_bad_sample_leaves_the_others_bit_identical(attack, factor):
    x, y = batch(n=5)
    others = [0, 1, 3, 4]
    torch.manual_seed(0)
    clean = attack(Spoiled(1.0), x, y)
    torch.manual_seed(0)
    spoiled = attack(Spoiled(factor), x, y)
    assert torch.equal(spoiled[others], clean[others])
    assert spoiled.isfinite().all()
    assert spoiled.min() >= 0 and spoiled.max() <= 1


def test_empty_batch(attack):
    x, y = batch(n=0)
    x_adv = attack(relu_net(), x, y)
    assert x_adv.shape == x.shape and x_adv.dtype == x.dtype


def test_model_is_left_as_it_was(attack):
    model, (x, y) = conv_net().train(), batch(n=3, shape=(3, 8, 8), dtype=torch.float32)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for mode in ("eval", "train", "keep"):
        dataclasses.replace(attack, mode=mode)(model, x, y)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_channels_last_is_kept(attack):
    model, (x, y) = conv_net(classes=4).eval(), batch(n=3, shape=(3, 8, 8), dtype=torch.float32)
    torch.manual_seed(0)
    plain = attack(model, x, y)
    torch.manual_seed(0)
    x_adv = attack(model, x.to(memory_format=torch.channels_last), y)
    assert x_adv.is_contiguous(memory_format=torch.channels_last)
    if isinstance(attack, SOAE):  # a difference over a step of 1e-4 amplifies the rounding of another layout
        assert ((x_adv - plain).abs() > 1e-4).float().mean() < 0.1
    elif attack in DETERMINISTIC:
        torch.testing.assert_close(x_adv, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_batches_stay_inside_the_ball(attack, dtype):
    model, (x, y) = relu_net(dtype), batch(n=8, dtype=dtype)
    x_adv = attack(model, x, y)
    assert x_adv.dtype == dtype
    size = (x_adv.double() - x.double()).flatten(1).norm(p=attack.p, dim=1)
    assert (size <= attack.eps * (1 + 1e-5)).all() and (size > 0).any()
    assert x_adv.min() >= 0 and x_adv.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_per_sample_radius(attack, dtype):
    model, (x, y) = relu_net(dtype), batch(n=3, dtype=dtype)
    eps = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64) * attack.eps
    x_adv = attack.with_eps(eps)(model, x, y)
    size = (x_adv - x).flatten(1).norm(p=attack.p, dim=1)
    assert x_adv.dtype == dtype
    assert torch.equal(x_adv[0], x[0]) and (size <= eps * (1 + 1e-5) + 1e-6).all() and (size[1:] > 0).all()
    with pytest.raises(ValueError, match="eps must be a number or"):
        attack.with_eps(eps[:2])(model, x, y)


def test_zero_radius_returns_x(attack):
    x, y = batch()
    assert torch.equal(attack.with_eps(0.0)(relu_net(), x, y), x)


def test_bind_and_no_grad(deterministic):
    model, (x, y) = relu_net(), batch()
    with torch.no_grad():
        assert torch.equal(deterministic.bind(model)(x, y), deterministic(model, x, y))


def test_is_a_printable_comparable_serialisable_value(attack):
    assert attack == dataclasses.replace(attack) == pickle.loads(pickle.dumps(attack)) and hash(attack)
    assert type(attack).__name__ in repr(attack) and f"eps={attack.eps}" in repr(attack)
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.eps = 1.0


def test_plain_callable_as_model(deterministic):
    model, (x, y) = relu_net(), batch()
    assert torch.equal(deterministic(lambda x: model(x), x, y), deterministic(model, x, y))


CLASSES = [FGSM, PGD, NearPGD, FrankWolfe, ASOD, MIFGSM, PIFGSM, Jitter, SmoothAdv, SimBA, TargetedPGD]
CLASSES += [APGD, TargetedAPGD, Square, FAB, TargetedFAB]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"eps": -0.1}, ValueError, "eps must be finite and >= 0, got -0.1"),
        ({"eps": math.nan}, ValueError, "eps must be finite"),
        ({"eps": "0.1"}, TypeError, "eps must be a number or a tensor, got str"),
        ({"eps": torch.tensor([1])}, ValueError, r"eps must be a number or a floating tensor of shape"),
        ({"eps": torch.tensor([0.1, -1.0])}, ValueError, "eps must be finite and >= 0"),
        ({"p": 0.5}, ValueError, "p must be a number >= 1 or math.inf, got 0.5"),
        ({"p": "inf"}, TypeError, "p must be a number >= 1"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds must be"),
        ({"objective": "kl"}, ValueError, "objective must be one of"),
        ({"mode": "test"}, ValueError, "mode must be"),
        ({"engine": "float64"}, ValueError, "engine must be"),
    ],
)
def test_bad_fields(cls, fields, error, message):
    with pytest.raises(error, match=message):
        cls(**fields)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: PGD(steps=0), ValueError, "steps must be at least 1, got 0"),
        (lambda: PGD(steps=2.5), TypeError, "steps must be a whole number, got 2.5"),
        (lambda: PGD(restarts=0), ValueError, "restarts must be at least 1"),
        (lambda: PGD(step_size=-1.0), ValueError, "step_size must be finite and >= 0"),
        (lambda: PGD(p=3), ValueError, "p must be 1, 2 or math.inf for PGD, got 3"),
        (lambda: NearPGD(p=1), ValueError, "p must be 2 or math.inf for NearPGD, got 1"),
        (lambda: NearPGD(noise=-1.0), ValueError, "noise must be finite and >= 0, got -1.0"),
        (lambda: NearPGD(noise=torch.ones(6)), TypeError, "noise must be a number, got Tensor"),
        (lambda: MIFGSM(decay=torch.ones(6)), TypeError, "decay must be a number, got Tensor"),
        (lambda: FrankWolfe(steps=0), ValueError, "steps must be at least 1"),
        (lambda: FrankWolfe(scheme="euler"), ValueError, "scheme must be"),
        (lambda: FrankWolfe(init="zero"), ValueError, "init must be"),
        (lambda: FrankWolfe(h=0.0), ValueError, "h must be finite and > 0"),
        (lambda: FrankWolfe(h="1"), TypeError, "h must be a number or None, got str"),
        (lambda: FrankWolfe(p=3, in_box=True), ValueError, r"in_box takes p = 1, 2 or math\.inf, got p = 3"),
        (lambda: ASOD(steps=0), ValueError, "steps must be at least 1"),
        (lambda: ASOD(samples=0), ValueError, "samples must be at least 1, got 0"),
        (lambda: ASOD(sigma=-0.1), ValueError, "sigma must be finite and >= 0, got -0.1"),
        (lambda: ASOD(sigma=torch.tensor(0.1)), TypeError, "sigma must be a number, got Tensor"),
        (lambda: ASOD(step_size=-1.0), ValueError, "step_size must be finite and >= 0"),
        (lambda: ASOD(p=3), ValueError, "p must be 1, 2 or math.inf for ASOD, got 3"),
    ],
)
def test_bad_fields_of_one_attack(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("bounds", [(0.0, math.inf), (-math.inf, 1.0)])
def test_a_box_with_one_end_is_checked_there(bounds):
    x, y = batch()
    inside, outside = (x + 5, x - 0.5) if bounds[1] == math.inf else (x - 5, x + 0.5)
    attack = PGD(eps=0.1, steps=2, bounds=bounds)
    assert (attack(relu_net(), inside, y) != inside).any()
    with pytest.raises(ValueError, match="x must lie in bounds"):
        attack(relu_net(), outside, y)


BAD_BATCHES = [
    (lambda x, y: (x.numpy(), y), TypeError, "x must be a floating tensor, got a NumPy array, which torch.from_numpy"),
    (lambda x, y: ((255 * x).to(torch.uint8), y), TypeError, "x must be a floating tensor, got torch.uint8"),
    (lambda x, y: (x, y.double()), TypeError, "y must be a tensor of integer labels, got torch.float64"),
    (lambda x, y: (x, y.tolist()), TypeError, "y must be a tensor of integer labels, got list"),
    (lambda x, y: (x, y[:3]), ValueError, r"y must have shape \(6,\)"),
    (lambda x, y: (x, y[:, None]), ValueError, r"y must have shape \(6,\)"),
    (lambda x, y: (x[0, 0, 0], y[:4]), ValueError, r"x must be a batch of shape \(B, ...\), got shape \(4,\)"),
    (lambda x, y: (x + 0.5, y), ValueError, r"x must lie in bounds \[0.0, 1.0\] without NaN, got values from"),
    (lambda x, y: (x - 0.5, y), ValueError, "x must lie in bounds"),
    (lambda x, y: (x / 0, y), ValueError, "x must lie in bounds"),
    (lambda x, y: (torch.where(x < 0.5, torch.nan, x), y), ValueError, "without NaN, got values from nan"),
    (lambda x, y: (x, y + 1), ValueError, r"labels must lie in 0\.\.3, got 1\.\.4"),
    (lambda x, y: (x, y - 1), ValueError, r"labels must lie in 0\.\.3, got -1\.\.2"),
    (lambda x, y: (x, y.to("meta")), ValueError, "x and y must be on one device, got cpu and meta"),
]
# The small model has four classes, and few entries.
SMALL = {
    "SimBA": lambda: SimBA(steps=4),
    "TargetedAPGD": lambda: attacks.TargetedAPGD(targets=3),
    "TargetedFAB": lambda: attacks.TargetedFAB(targets=3),
}
USERS = [
    *[(cls.__name__, SMALL.get(cls.__name__, cls)()) for cls in CLASSES],
    ("AdversarialTraining", AdversarialTraining(attack=PGD(steps=2))),
    ("CrossEntropy", CrossEntropy()),
    ("SCORPIO", SCORPIO()),
    ("SCORPIO-shared", SCORPIO(mode="keep")),
    ("TRADES", TRADES(steps=2)),
    ("TRADES-shared", TRADES(steps=2, mode="keep")),
    ("MART", MART(steps=2)),
    ("SORA", SORA()),
    ("SOAR", SOAR()),
    ("SOAR-shared", SOAR(start="x", mode="keep")),
    ("CURE", CURE()),
    ("CURE-shared", CURE(mode="keep")),
    ("InputGradientPenalty", InputGradientPenalty()),
    ("InputGradientPenalty-uniform", InputGradientPenalty(targets="uniform", mode="keep")),
    ("InputGradientPenalty-difference", InputGradientPenalty(variant="difference", mode="keep")),
    ("LLR", LLR()),
    ("LLR-shared", LLR(mode="keep")),
    ("STN", STN()),
    ("STN-asod", STN(noise="asod", eps=0.1)),
]


@pytest.mark.parametrize("user", [u for _, u in USERS], ids=[n for n, _ in USERS])
@pytest.mark.parametrize(("spoil", "error", "message"), BAD_BATCHES)
def test_bad_batch(user, spoil, error, message):
    x, y = batch(seed=3)
    boxless = isinstance(user, (CrossEntropy, CURE, InputGradientPenalty)) or user == STN()
    if boxless and "x must lie in bounds" in message:
        pytest.skip("without an attack any finite input will do")
    with pytest.raises(error, match=message):
        user(relu_net(), *spoil(x, y))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
@pytest.mark.parametrize("user", [u for _, u in USERS], ids=[n for n, _ in USERS])
def test_labels_of_any_integer_type(user, dtype):
    model, (x, y) = relu_net(), batch(seed=3)
    torch.manual_seed(0)
    expected = user(model, x, y)
    torch.manual_seed(0)
    assert torch.equal(user(model, x, y.to(dtype)), expected)


@pytest.mark.parametrize("user", [u for _, u in USERS], ids=[n for n, _ in USERS])
def test_bad_model(user):
    x, y = batch()
    for model in (torch.nn.Identity(), torch.nn.Flatten(0)):
        with pytest.raises(ValueError, match="model must return logits of shape"):
            user(model, x, y)
    with pytest.raises(ValueError, match="model must return logits of shape"):
        CrossEntropy()(torch.nn.Identity(), x, y)


def test_rounding_noise_at_the_box_is_accepted():
    x, y = batch()
    x = x.round() - 3e-8
    x_adv = PGD(eps=0.1)(relu_net(), x, y)
    assert x_adv.min() >= 0 and (x_adv - x).abs().max() <= 0.1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_round_towards_is_the_nearest_value_that_is_no_further(dtype):
    torch.manual_seed(0)
    x = (4 * torch.rand(10000) - 2).to(dtype)
    x_adv = x.float() + 0.1 * torch.randn(10000)
    rounded = round_towards(x_adv, x)
    assert ((rounded.float() - x.float()).abs() <= (x_adv - x.float()).abs()).all()
    ulp = torch.finfo(dtype).eps * x_adv.abs().clamp_min(1e-3)
    assert ((rounded.float() - x_adv).abs() <= ulp).all()
