"""Models of other packages: timm, transformers, peft, accelerate. Each test skips where its package is missing."""

import copy

import pytest
import torch
import torch.nn.functional as F

from soatfast.attacks import PGD, FrankWolfe
from soatfast.evaluate import accuracy
from soatfast.gradients import InputGradient, count_passes
from soatfast.losses import MART, SCORPIO, TRADES, AdversarialTraining

X, Y = torch.rand(3, 3, 32, 32), torch.tensor([0, 4, 2])
ATTACKS = [PGD(eps=0.03, steps=2), PGD(eps=0.03, steps=2, mode="train"), FrankWolfe(eps=0.03, steps=2)]
LOSSES = [
    AdversarialTraining(PGD(eps=0.03, steps=2)),
    TRADES(steps=2),
    MART(steps=2),
    SCORPIO(steps=2),
    SCORPIO(steps=2, mode="keep"),
]
TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "drop_path_rate": 0.2},
    "resnet10t": {},
    "convnext_atto": {"drop_path_rate": 0.2},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1, 1)},
    "efficientnet_lite0": {"drop_rate": 0.2},
    "mobilenetv3_small_050": {},
    "mixer_s32_224": {"img_size": 32},
    "regnetx_002": {},
    "densenet121": {"growth_rate": 8, "block_config": (2, 2, 2, 2)},
    "repvgg_a0": {},
    "deit3_small_patch16_224": {"img_size": 32, "depth": 2},
    "ghostnet_050": {},
    "levit_128s": {"img_size": 64},
    "nf_resnet26": {},
}


def state(model):
    return (
        [m.training for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [t.clone() for t in model.state_dict().values()],
    )


def check_left_alone(model, before):
    after = state(model)
    assert before[:2] == after[:2]
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


def check_model(model, x, y, call=None):
    """The gradient is right, counts are the declared ones, and the model is left as it was."""
    called = model if call is None else call
    model.eval()
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(called(leaf), y, reduction="sum"), leaf)
    model.train()
    with InputGradient(called) as oracle:
        torch.testing.assert_close(oracle.gradient(x, y), expected, rtol=1e-3, atol=1e-6)
    for attack in ATTACKS:
        before = state(model)
        with count_passes(model) as passes:
            attack(called, x, y)
        assert passes.total() == attack.passes(len(x))
        check_left_alone(model, before)
    for loss in LOSSES:
        with count_passes(model) as passes:
            loss(called, x, y).backward()
        assert passes.total() == loss.passes(len(x))


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5, **TIMM[name])
    x = torch.rand(3, 3, 64, 64) if TIMM[name].get("img_size") == 64 else X
    check_model(model, x, Y)
    assert 0 <= accuracy(model, (x, Y), ATTACKS[0]).accuracy <= 1


def test_timm_with_checkpoints():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=2)
    model = copy.deepcopy(plain)
    model.set_grad_checkpointing()
    for loss in (SCORPIO(steps=2, mode="keep"), AdversarialTraining(PGD(eps=0.03, steps=2, random_start=False))):
        for net in (plain, model):
            net.zero_grad()
            loss(net, X, Y).backward()
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5)


def test_timm_ema_and_frozen_batch_norm():
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=5)
    ema = timm.utils.ModelEmaV3(model)
    frozen = copy.deepcopy(model)
    timm.utils.freeze(frozen)  # puts FrozenBatchNorm2d in place of batch norm
    for net in (ema.module, frozen):
        before = state(net)
        PGD(eps=0.03, steps=2)(net, X, Y)
        check_left_alone(net, before)


def transformers_model(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    images = {"image_size": 32, "num_labels": 5, "patch_size": 8}
    if name == "vit":
        return transformers.ViTForImageClassification(transformers.ViTConfig(**small, **images))
    if name == "deit":
        return transformers.DeiTForImageClassification(transformers.DeiTConfig(**small, **images))
    if name == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=5)
        return transformers.ResNetForImageClassification(config)
    if name == "convnext":
        config = transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=5)
        return transformers.ConvNextForImageClassification(config)
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, num_labels=5
    )
    return transformers.SwinForImageClassification(config)


@pytest.mark.parametrize("name", ["vit", "deit", "resnet", "convnext", "swin"])
def test_transformers_images_by_keyword(name):
    model = transformers_model(name)
    check_model(model, X, Y, lambda x: model(pixel_values=x).logits)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "DistilBertForSequenceClassification"])
def test_transformers_text_by_its_embeddings(name):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name.startswith("Distil"):
        config = transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=50)
    else:
        config = transformers.BertConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50
        )
    config.num_labels = 5
    model = getattr(transformers, name)(config)
    mask = torch.ones(3, 7, dtype=torch.long)
    x = model.get_input_embeddings()(torch.randint(0, 50, (3, 7))).detach()
    x = (x - x.min()) / (x.max() - x.min())
    check_model(model, x, Y, lambda e: model(inputs_embeds=e, attention_mask=mask).logits)


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_peft(kind):
    peft = pytest.importorskip("peft")
    inner = transformers_model("vit")
    names = [n.rsplit(".", 1)[-1] for n, m in inner.named_modules() if isinstance(m, torch.nn.Linear) and ".layer" in n]
    targets = sorted(set(names))[:2]
    config = (
        peft.LoraConfig(r=2, target_modules=targets, modules_to_save=["classifier"])
        if kind == "lora"
        else peft.IA3Config(target_modules=targets, feedforward_modules=[])
    )
    model = peft.get_peft_model(inner, config).train()
    AdversarialTraining(PGD(eps=0.03, steps=2))(lambda x: model(pixel_values=x).logits, X, Y).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None for p in trained)
    before = state(model)
    with count_passes(model) as passes:
        ATTACKS[0](lambda x: model(pixel_values=x).logits, X, Y)
    assert passes.total() == ATTACKS[0].passes(3)
    check_left_alone(model, before)


def test_loralib_folds_on_eval():
    loralib = pytest.importorskip("loralib")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), loralib.Linear(3072, 16, r=2), torch.nn.ReLU())
    model.append(torch.nn.Linear(16, 5)).train()
    torch.nn.init.normal_(model[1].lora_B)
    before = state(model)
    PGD(eps=0.03, steps=2)(model, X, Y)
    assert not model[1].merged
    check_left_alone(model, before)
    AdversarialTraining(PGD(eps=0.03, steps=2))(model, X, Y).backward()
    assert model[1].lora_A.grad.any() and model[1].lora_B.grad.any()
