"""PertAlign against a plain mean of cosines."""

import pytest
import torch

from soatfast.losses.alignment import pert_align


def test_is_the_mean_cosine():
    torch.manual_seed(0)
    g, h = torch.randn(2, 7, 3, 4, 4, dtype=torch.float64).unbind()
    expected = torch.stack([torch.cosine_similarity(a.flatten(), b.flatten(), 0) for a, b in zip(g, h, strict=True)])
    torch.testing.assert_close(pert_align(g, h), expected.mean())
    torch.testing.assert_close(pert_align(g, -3 * g), torch.tensor(-1.0, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_and_tiny_gradients(dtype):
    g = torch.tensor([[0.0, 0.0], [3e-5, 4e-5]], dtype=dtype)
    assert pert_align(g, g).item() == pytest.approx(0.5, rel=1e-6)
    assert pert_align(g, g).dtype == torch.float32
