"""Every attack and loss on models of other packages, at random weights; counts are the declared ones."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
import torch

import soatfast as sf
from soatfast.gradients import count_passes

ATTACKS = [
    sf.FGSM(),
    sf.PGD(steps=2),
    sf.NearPGD(steps=2),
    sf.MIFGSM(steps=2),
    sf.FrankWolfe(steps=2),
    sf.FrankWolfe(steps=2, scheme="cd"),
    sf.FrankWolfe(steps=2, scheme="exact"),
    sf.SOAE(steps=1, max_dim=2, rtol=0.0),
    sf.SOAE(steps=1, max_dim=2, scheme="exact", rtol=0.0),
    sf.SOAE(steps=1, scheme="gn"),
    sf.HAAT(steps=1, power=2),
    sf.ASOD(steps=1, samples=2, sigma=0.01),
    sf.TargetedPGD(steps=2),
    sf.SimBA(steps=2, compact=False),
    sf.MIFGSM(steps=2, nesterov=True, scales=2, neighbours=1),
    sf.Jitter(steps=2),
    sf.SmoothAdv(steps=2, samples=2),
]
LOSSES = [
    sf.CrossEntropy(),
    sf.AdversarialTraining(sf.PGD(steps=2)),
    sf.TRADES(steps=2),
    sf.MART(steps=2),
    sf.SCORPIO(steps=2),
    sf.SCORPIO(steps=2, mode="keep"),
    sf.SORA(),
    sf.STN(),
    sf.STN(noise="asod", eps=0.03, steps=1, samples=2),
    sf.CURE(),
    sf.SOAR(),
    sf.LLR(steps=2),
    sf.InputGradientPenalty(),
    sf.InputGradientPenalty(variant="difference"),
    sf.NFGSM(),
    sf.GradAlign(),
    sf.ELLE(),
    sf.Free(),
]
UNBOUNDED = (-float("inf"), float("inf"))


def images(size=32, samples=3):
    return torch.rand(samples, 3, size, size), torch.arange(samples) % 5


def from_transformers(name):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    image = {"image_size": 32, "num_labels": 5}
    torch.manual_seed(0)
    if name == "ViT":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**small, **image, patch_size=8)), None
    if name == "DeiT":  # an answer of its own, with two heads
        config = transformers.DeiTConfig(**small, **image, patch_size=8)
        return transformers.DeiTForImageClassificationWithTeacher(config), None
    if name == "Swin":
        config = transformers.SwinConfig(
            **image, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
        )
        return transformers.SwinForImageClassification(config), None
    if name == "ConvNeXt":
        config = transformers.ConvNextConfig(num_labels=5, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
        return transformers.ConvNextForImageClassification(config), None
    if name == "ResNet":
        config = transformers.ResNetConfig(
            num_labels=5, embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic"
        )
        return transformers.ResNetForImageClassification(config), None
    config = transformers.BertConfig(**small, num_labels=5, vocab_size=50)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])

    def forward(model, x):
        rows = mask.repeat(len(x) // len(mask), 1)
        return model(inputs_embeds=x, attention_mask=rows)

    return transformers.BertForSequenceClassification(config), forward


def from_timm(name):
    timm = pytest.importorskip("timm", exc_type=ImportError)
    torch.manual_seed(0)
    sizes = {
        "vit_tiny_patch16_224": {"embed_dim": 24, "depth": 2, "num_heads": 2, "patch_size": 8, "img_size": 32},
        "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)},
        "resnet18": {},
        "swin_tiny_patch4_window7_224": {
            "img_size": 32, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2),
        },
    }  # fmt: skip
    return timm.create_model(name, num_classes=5, **sizes[name]), None


MODELS = {
    **{
        f"transformers {name}": (from_transformers, name)
        for name in ("ViT", "DeiT", "Swin", "ConvNeXt", "ResNet", "BERT")
    },
    **{
        f"timm {name}": (from_timm, name)
        for name in ("vit_tiny_patch16_224", "convnext_atto", "resnet18", "swin_tiny_patch4_window7_224")
    },
}


@pytest.fixture(scope="module", params=MODELS)
def problem(request):
    make, name = MODELS[request.param]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, forward = make(name)
    if name == "BERT":
        return model, {"forward": forward, "bounds": UNBOUNDED}, torch.randn(3, 4, 16), torch.arange(3) % 5
    return model, {}, *images()


def replaced(method, fields):
    known = {name: value for name, value in fields.items() if hasattr(method, name)}
    if isinstance(method, sf.AdversarialTraining):
        known = {"attack": replaced(method.attack, fields)}
    return dataclasses.replace(method, **known)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: type(a).__name__ + getattr(a, "scheme", ""))
def test_attacks(attack, problem):
    model, fields, x, y = problem
    attack = replaced(attack, fields)
    model.train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with count_passes(model) as passes:
        x_adv = attack(model, x, y)
    declared = attack.passes(len(x), classes=5) if isinstance(attack, sf.SOAE) else attack.passes(len(x))
    assert passes.total() == declared
    assert isinstance(attack, sf.SimBA) or not torch.equal(x_adv, x)  # SimBA leaves what is fooled already
    assert x_adv.isfinite().all() and (x_adv - x).abs().max() <= attack.eps * (1 + 1e-5)
    assert model.training and all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("loss", LOSSES, ids=lambda t: type(t).__name__)
def test_losses(loss, problem):
    model, fields, x, y = problem
    loss = replaced(loss, fields)
    model.train()
    model.zero_grad()
    with count_passes(model) as passes:
        value = loss(model, x, y)
        value.backward()
    assert passes.total() == loss.passes(len(x))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert value.isfinite() and gradients and all(g.isfinite().all() for g in gradients) and model.training
