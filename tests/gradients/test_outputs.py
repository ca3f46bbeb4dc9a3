"""What models return, recognised, chosen by output=, or refused in a line; and forward=."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import soatfast as sf
from soatfast.gradients import objectives, outputs

X, Y = torch.linspace(0, 1, 32).view(4, 8), torch.tensor([0, 1, 2, 1])
Pair = namedtuple("Pair", ["logits", "aux_logits"])


@dataclass
class Answer:
    loss: Tensor | None
    logits: Tensor


class Model(nn.Module):
    """Logits by a linear layer, packed as `form` says; x by keyword only."""

    def __init__(self, form=lambda z, h: z, classes=3):
        super().__init__()
        self.hidden, self.head, self.form = nn.Linear(8, 6), nn.Linear(6, classes), form

    def forward(self, pixels):
        h = self.hidden(pixels).tanh()
        return self.form(self.head(h), h)


FORMS = {
    "tensor": lambda z, h: z,
    "dictionary": lambda z, h: {"hidden": h, "logits": z},
    "dictionary of one": lambda z, h: {"scores": z},
    "out": lambda z, h: OrderedDict(out=z, aux=h),
    "dataclass": lambda z, h: Answer(None, z),
    "named tuple": lambda z, h: Pair(z, h),
    "loss and logits": lambda z, h: (z.sum(), z),
    "auxiliary": lambda z, h: (z, 2 * z),
    "hidden states": lambda z, h: (z, h.unsqueeze(1), (h, h)),
}


@pytest.mark.parametrize("form", FORMS)
def test_recognised(form):
    model = Model()
    want = sf.PGD(random_start=False, steps=3)(model, X, Y)
    model.form = FORMS[form]
    assert torch.equal(sf.PGD(random_start=False, steps=3)(model, X, Y), want)
    loss = sf.AdversarialTraining(sf.PGD(random_start=False, steps=3))(model, X, Y)
    model.form = FORMS["tensor"]
    assert torch.equal(loss, F.cross_entropy(model(want), Y)) or torch.allclose(loss, F.cross_entropy(model(want), Y))


@pytest.mark.parametrize(
    ("form", "output"),
    [
        (lambda z, h: {"a": h, "b": z}, "b"),
        (lambda z, h: {"a": h, "b": z}, 1),
        (lambda z, h: (h, z), 1),
        (lambda z, h: (h, z), -1),
        (lambda z, h: Pair(h, z), "aux_logits"),
        (lambda z, h: {"a": {"b": z}}, lambda returned: returned["a"]["b"]),
    ],
)
def test_chosen_by_output(form, output):
    model = Model()
    want = sf.FrankWolfe()(model, X, Y)
    model.form = form
    assert torch.equal(sf.FrankWolfe(output=output)(model, X, Y), want)
    for loss in (
        sf.AdversarialTraining(sf.FrankWolfe(output=output)),
        sf.AdversarialTraining(sf.FrankWolfe(), output=output),
    ):
        assert loss(model, X, Y).isfinite()


@pytest.mark.parametrize(
    ("form", "output", "message"),
    [
        (lambda z, h: (h, z), None, r"shape \(4, K\), got tuple of \(4, 6\), \(4, 3\): say which with output="),
        (lambda z, h: {"a": h, "b": z}, None, r"got dict with a \(4, 6\), b \(4, 3\): say which with output="),
        (lambda z, h: "words", None, r"shape \(4, K\), got str: say which"),
        (lambda z, h: None, None, r"shape \(4, K\), got NoneType: say which"),
        (lambda z, h: {}, None, "got dict with nothing"),
        (lambda z, h: z.long(), None, r"got \(4, 3\) of torch.int64"),
        (lambda z, h: z[:2], None, r"shape \(4, K\), got \(2, 3\)"),
        (lambda z, h: {"a": z}, "b", r"output='b' is not in what the model returned: dict with a \(4, 3\)"),
        (lambda z, h: z, "logits", r"output='logits' is not in what the model returned: \(4, 3\)"),
        (lambda z, h: (z,), 1, r"output=1 is not in what the model returned: tuple of \(4, 3\)"),
        (lambda z, h: (z, z.sum()), 1, r"shape \(4, K\) at output=1, got \(\)"),
        (lambda z, h: z.view(4, 3, 1, 1), None, r"got \(4, 3, 1, 1\).*need objective= a callable"),
    ],
)
def test_not_recognised(form, output, message):
    with pytest.raises(ValueError, match=message):
        sf.FGSM(output=output)(Model(form), X, Y)


@pytest.mark.parametrize("output", [True, 1.5, ["logits"]])
def test_bad_output_argument(output):
    for make in (sf.PGD, sf.TRADES, sf.AdversarialTraining, sf.CURE, sf.SORA, sf.STN):
        with pytest.raises(TypeError, match="output must be a name, an index, a callable or None"):
            make(output=output)


@pytest.mark.parametrize("forward", ["model", 3, [lambda m, x: x]])
def test_bad_forward_argument(forward):
    for make in (sf.PGD, sf.SimBA, sf.MART, sf.SCORPIO, sf.LLR):
        with pytest.raises(TypeError, match=r"forward must be a callable \(model, x\) -> output or None"):
            make(forward=forward)


def test_graphs_refuse_what_they_would_record():
    for given in ({"forward": lambda m, x: m(x)}, {"output": lambda r: r}):
        with pytest.raises(ValueError, match="would be recorded"):
            sf.PGD(engine="graph", **given)


def test_forward_gives_further_inputs_and_the_model_is_still_left_as_it_was():
    class Conditioned(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, *, pixel_values, shift):
            return {"logits": self.head(self.norm(pixel_values + shift)), "other": shift}

    model, shift = Conditioned().train(), torch.rand(4, 8)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    attack = sf.PGD(random_start=False, steps=3, forward=lambda m, x: m(pixel_values=x, shift=shift))
    x_adv = attack(model, X, Y)
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    model.eval()
    want = sf.PGD(random_start=False, steps=3)(lambda x: model.head(model.norm(x + shift)), X, Y)
    assert torch.equal(x_adv, want)
    loss = sf.TRADES(forward=attack.forward, steps=2)
    assert loss(model, X, Y).isfinite()
    for second in (sf.SOAE(steps=1, max_dim=2, forward=attack.forward), sf.HAAT(steps=1, forward=attack.forward)):
        assert second(model, X, Y).isfinite().all()


def test_half_precision_copies_of_a_model_are_called_by_keyword_too():
    model = Model().bfloat16()
    attack = sf.SOAE(steps=1, max_dim=2, forward=lambda m, x: m(pixels=x))
    with pytest.warns(UserWarning, match="float32 copy"):
        assert attack(model, X.bfloat16(), Y).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
@pytest.mark.parametrize("engine", ["eager", "bf16"])
def test_one_sigmoid_unit(shape, engine):
    model, y = Model(lambda z, h: z.view(shape), classes=1), torch.tensor([0, 1, 1, 0])
    x = X.clone().requires_grad_()
    value = F.binary_cross_entropy_with_logits(model(x).flatten(), y.float(), reduction="none")
    (want,) = torch.autograd.grad(value.sum(), x)
    with sf.InputGradient(model, engine=engine) as oracle:
        loss, g = oracle(X, y)
        assert torch.equal(oracle.fooled(y), (model(X).flatten() > 0).long() != y)
    torch.testing.assert_close(loss, value, atol=1e-2 if engine == "bf16" else 1e-6, rtol=0)
    torch.testing.assert_close(g, want, atol=2e-2 if engine == "bf16" else 1e-6, rtol=0)
    with sf.InputGradient(model, "margin") as oracle:
        margins, _ = oracle(X, y)
    torch.testing.assert_close(margins, model(X).flatten() * (1 - 2 * y), atol=1e-6, rtol=0)


def test_labels_of_a_sigmoid_unit_are_0_and_1():
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.1, got 0\.\.2"):
        sf.FGSM()(Model(classes=1), X, Y)


def test_objectives_of_any_output_and_target():
    """Many labels, a segmentation with ignored positions, a regression: one FGSM step is the autograd sign."""

    def seg(z, h):
        return (z.unsqueeze(2) * h.unsqueeze(1)).view(-1, 3, 2, 3)

    positions = torch.randint(0, 3, (4, 2, 3))
    positions[0, 0] = -100
    cases = [
        (
            Model(),
            torch.rand(4, 3).round(),
            lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="none").mean(1),
        ),
        (Model(), torch.rand(4, 3) > 0.5, lambda z, y: (z * y).sum(1)),
        (Model(), torch.rand(4, 3).softmax(1), lambda z, y: F.cross_entropy(z, y, reduction="none")),
        (Model(), torch.tensor([0, -100, 2, 1]), lambda z, y: F.cross_entropy(z, y, reduction="none")),
        (Model(seg), positions, lambda z, y: F.cross_entropy(z, y, reduction="none").flatten(1).mean(1)),
        (Model(classes=1), torch.rand(4), lambda z, y: (z[:, 0] - y) ** 2),
        (Model(lambda z, h: z[:, 0]), torch.rand(4), lambda z, y: (z - y).abs()),
    ]
    for model, y, objective in cases:
        x = X.clone().requires_grad_()
        (g,) = torch.autograd.grad(objective(model(x), y).sum(), x)
        want = (X + 0.1 * g.sign()).clamp(0, 1)
        assert torch.equal(sf.FGSM(eps=0.1, objective=objective)(model, X, y), want)
        targeted = sf.FGSM(eps=0.1, objective=objective, targeted=True)(model, X, y)
        assert torch.equal(targeted, (X - 0.1 * g.sign()).clamp(0, 1))
        for attack in (
            sf.PGD(objective=objective, best=True, restarts=2, steps=2),
            sf.FrankWolfe(objective=objective, scheme="cd"),
            sf.FrankWolfe(objective=objective, scheme="exact"),
            sf.SOAE(objective=objective, steps=1, max_dim=2),
            sf.SimBA(objective=objective, steps=3),
            sf.PGD(objective=objective, engine="fp16", steps=1),
        ):
            before = objective(model(X), y)
            moved = objective(model(attack(model, X, y)), y)
            assert moved.isfinite().all() and moved.sum() >= before.sum() - 1e-4, attack


def test_bad_targets_and_objectives():
    with pytest.raises(TypeError, match="other targets need objective= a callable"):
        sf.PGD()(Model(), X, torch.rand(4, 3))
    square = lambda z, y: (z - y) ** 2  # noqa: E731
    with pytest.raises(ValueError, match=r"objective must return shape \(4,\), one value a sample, got \(4, 3\)"):
        sf.PGD(objective=square)(Model(), X, torch.rand(4, 3))
    with pytest.raises(ValueError, match=r"objective must return shape \(4,\).*got \(\)"):
        sf.SimBA(steps=2, objective=lambda z, y: z.sum())(Model(), X, Y)
    with pytest.raises(TypeError, match="y must be a tensor, got list"):
        sf.PGD(objective=square)(Model(), X, [0, 1, 2, 1])
    with pytest.raises(ValueError, match="y must have shape"):
        sf.PGD(objective=square)(Model(), X, torch.rand(3, 3))
    oracle = sf.InputGradient(Model(classes=1), lambda z, y: z[:, 0])
    with pytest.raises(ValueError, match="jacobian needs logits"), oracle:
        oracle.jacobian(X, Y)


def test_masked_classes():
    """Logits of -inf have probability 0: values and gradients are those without these classes."""
    hidden = torch.tensor([[False, True, False, True]])
    y, full = torch.tensor([0, 2, 0]), torch.randn(3, 4)
    for function in (objectives.kl_divergence, objectives.soft_cross_entropy):
        a, b = (t.clone().requires_grad_() for t in (full, full.flip(0)))
        value = function(a.masked_fill(hidden, -torch.inf), b.masked_fill(hidden, -torch.inf))
        grads = torch.autograd.grad(value.sum(), (a, b))
        c, d = (t[:, ::2].clone().requires_grad_() for t in (full, full.flip(0)))
        want = function(c, d)
        torch.testing.assert_close(value, want)
        for got, kept in zip(grads, torch.autograd.grad(want.sum(), (c, d)), strict=True):
            torch.testing.assert_close(got[:, ::2], kept)
            assert not got[:, 1::2].any()
    for alone in (False, True):  # alone: y is the only class left
        a = full.clone().requires_grad_()
        rest = hidden | (torch.arange(4) != y[:, None]) if alone else hidden
        value = objectives.cross_entropy(a.masked_fill(rest, -torch.inf), y)
        (got,) = torch.autograd.grad(value.sum(), a)
        assert value.isfinite().all() and got.isfinite().all() and (not alone or not got.any())


def test_divergence_of_positions_and_of_a_sigmoid_unit():
    a, b = torch.randn(2, 5, 3, 2, 2)
    want = torch.stack([objectives.kl_divergence(a[..., i, j], b[..., i, j]) for i in (0, 1) for j in (0, 1)]).mean(0)
    torch.testing.assert_close(objectives.kl_divergence(a, b), want)
    z, w = torch.randn(2, 5)
    p, q = z.sigmoid(), w.sigmoid()
    want = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(objectives.kl_divergence(z, w.unsqueeze(1)), want)


def test_a_read_is_cheap_for_plain_logits():
    z = torch.zeros(4, 3)
    assert outputs.logits_of(z, 4) is z
