"""Explanations on a GPU: as on the CPU, without waiting for the device."""

import pytest
import torch

from soatfast.explain import (
    ContrastivePair,
    IntegratedGradients,
    PertinentNegative,
    PertinentPositive,
    Saliency,
    SmoothGrad,
)
from tests.nets import batch, smooth_net

pytestmark = pytest.mark.cuda
MAPS = [Saliency(), IntegratedGradients(steps=3)]
FOUND = [PertinentNegative(steps=20, searches=4), PertinentPositive(steps=20, searches=4)]


def deltas(method, model, x, y):
    if method in MAPS:
        return (method(model, x, y),)
    found = method(model, x, y)
    return (found.negative.delta, found.positive.delta) if isinstance(method, ContrastivePair) else (found.delta,)


@pytest.mark.parametrize("method", [*MAPS, *FOUND, ContrastivePair(eps=0.5, steps=4)], ids=repr)
def test_equals_the_cpu(method):
    model, (x, y) = smooth_net(), batch()
    expected = deltas(method, model, x, y)
    found = deltas(method, model.cuda(), x.cuda(), y.cuda())
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.cpu(), other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [*MAPS, SmoothGrad(samples=3), *FOUND, ContrastivePair(eps=0.5, steps=4)], ids=repr)
def test_never_waits_for_the_device(method):
    model, (x, y) = smooth_net(torch.float32).cuda(), batch(dtype=torch.float32)
    x, y = x.cuda(), y.cuda()
    method(model, x, y)  # loads and compiles what it needs
    torch.cuda.set_sync_debug_mode("error")
    try:
        method(model, x, y)
    finally:
        torch.cuda.set_sync_debug_mode("default")
