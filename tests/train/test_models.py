"""Architectures: parameter counts, shapes, normalisation inside the model."""

import pytest
import torch

from soatfast.train import MODELS, Normalize, SmallCNN, WideResNet, build_model

PARAMETERS = {"small-cnn": 166_406, "fast": 295_096, "resnet18": 11_173_962, "wrn-34-10": 46_160_474}


@pytest.mark.parametrize("name", MODELS)
def test_parameter_counts(name):
    with torch.device("meta"):
        model = build_model(name, 1 if name == "small-cnn" else 3, 10)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (build_model("small-cnn", 3, 7, width=4), (3, 28, 28)),
        (build_model("fast", 3, 7, width=4), (3, 32, 32)),
        (build_model("fast", 1, 7, width=8, size=9), (1, 9, 9)),
        (build_model("resnet18", 3, 7, width=4), (3, 32, 32)),
        (build_model("wrn-34-10", 1, 7, depth=10, widen=1), (1, 32, 32)),
    ],
)
def test_logits_and_input_gradient(model, shape):
    x = torch.rand(2, *shape, requires_grad=True)
    logits = model(x)
    assert logits.shape == (2, 7)
    (grad,) = torch.autograd.grad(logits.logsumexp(1).sum(), x)
    assert grad.isfinite().all()
    assert grad.abs().amax() > 0


def test_small_cnn_does_not_depend_on_mode():
    model, x = SmallCNN(width=4), torch.rand(3, 1, 28, 28)
    assert torch.equal(model.train()(x), model.eval()(x))


def test_same_seed_same_weights():
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build_model("small-cnn", 1, 10, width=4))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_normalize():
    x = torch.rand(2, 3, 4, 4)
    out = Normalize((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))(x)
    assert torch.allclose(out[:, 2], (x[:, 2] - 0.3) / 2.0)
    assert not Normalize((0.0,), (1.0,)).state_dict()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: build_model("vgg", 3, 10), "small-cnn, fast, resnet18, wrn-34-10, got 'vgg'"),
        (lambda: build_model("resnet18", 3, 1), "classes >= 2, got 3 and 1"),
        (lambda: build_model("fast", 3, 10, size=8), "at least 9x9 pixels, got 8"),
        (lambda: build_model("fast", 3, 10, width=3), "width must be at least 4, got 3"),
        (lambda: WideResNet(depth=33), "got 33"),
        (lambda: Normalize((0.5,), (1.0, 1.0)), "same length, got 1 and 2"),
        (lambda: Normalize((0.5,), (0.0,)), "positive"),
    ],
)
def test_wrong_arguments(call, text):
    with pytest.raises(ValueError, match=text.replace("(", r"\(")):
        call()
