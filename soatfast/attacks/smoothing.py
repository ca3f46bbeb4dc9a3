"""What the transfer attacks do to images and gradients: a random resize of the image, a blur of the gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from soatfast.gradients import outputs
from soatfast.ops.arguments import check, check_between, check_fields, check_number, check_steps, dtype_or_kind


@dataclass(frozen=True)
class ResizePad:
    """Shows the model each batch at a random size and place, for the ``forward`` of an attack (DI-FGSM).

    Xie et al. (2019), "Improving transferability of adversarial examples with input diversity", section 3.3: with
    probability ``prob`` the images (B, C, H, W) are resized to a width drawn uniformly from [rate W, W), height in
    proportion, and padded with zeros at random sides to the old size. rate > 1: from [W, rate W), padded to rate W.
    One size and place a batch. An evaluation of the attack asks the model itself.

    Args:
        rate: the smallest width over the image's, or the largest; not 1. The paper's: 330/299.
        prob: of a change; 0.5 is the paper's for DI-FGSM.
        generator: random numbers, on the CPU: three whole numbers and one that decides, each batch.
        forward: (model, x) -> output, for a model that takes more than x; None: model(x).

    Raises:
        ValueError: an image is too small for another size, or no (B, C, H, W).

    >>> import torch
    >>> from soatfast.attacks import MIFGSM
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2))
    >>> x = torch.rand(2, 3, 8, 8)
    >>> attack = MIFGSM(eps=0.1, decay=0, forward=ResizePad(rate=0.7))
    >>> attack(model, x, torch.tensor([0, 1])).shape
    torch.Size([2, 3, 8, 8])
    """

    rate: float = 0.9
    prob: float = 0.5
    generator: torch.Generator | None = field(default=None, compare=False, repr=False)
    forward: outputs.Forward | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if check_number(self.rate, "rate") == 1:
            raise ValueError("rate must not be 1, which is the image's size, got 1")
        check_between(self.prob, "prob", 0, 1)
        outputs.check(None, self.forward)

    def __call__(self, model: Any, x: Tensor) -> Any:
        changed = self.changed(x)
        return model(changed) if self.forward is None else self.forward(model, changed)

    def changed(self, x: Tensor) -> Tensor:
        """The images as the model sees them this time."""
        if x.dim() != 4:
            raise ValueError(f"ResizePad takes images (B, C, H, W), got shape {tuple(x.shape)}")
        height, width = x.shape[2:]
        low, high = sorted((width, int(width * self.rate)))
        if low == high or low < 1:
            raise ValueError(f"an image of width {width} has no other size at rate {self.rate:g}")
        new = self._drawn(low, high)
        rows, all_rows = max(1, new * height // width), high * height // width
        top, left = self._drawn(0, max(1, all_rows - rows)), self._drawn(0, high - new)
        if not float(torch.rand(1, generator=self.generator)) < self.prob:
            return x
        resized = F.interpolate(x, size=(rows, new), mode="bilinear", align_corners=False)
        return F.pad(resized, (left, high - new - left, top, all_rows - rows - top))

    def _drawn(self, low: int, high: int) -> int:
        """On the CPU: no device is asked."""
        return int(torch.randint(low, high, (1,), dtype=torch.int32, generator=self.generator))


def gaussian_kernel(size: int = 15, deviations: float = 3.0) -> Tensor:
    """The (size, size) Gaussian of TI-FGSM (Dong et al. 2019): its edge lies ``deviations`` from the centre, sum 1.

    >>> gaussian_kernel(3, 1.0)
    tensor([[0.0751, 0.1238, 0.0751],
            [0.1238, 0.2042, 0.1238],
            [0.0751, 0.1238, 0.0751]])
    """
    check_steps(size, "size")
    check_number(deviations, "deviations")
    bell = torch.linspace(-deviations, deviations, size, dtype=torch.float64).square().mul(-0.5).exp()
    kernel = torch.outer(bell, bell)
    return (kernel / kernel.sum()).float()


def check_kernel(kernel: Any) -> None:
    """Raise unless kernel is a floating tensor (h, w) or (C, h, w) of finite numbers."""
    if not isinstance(kernel, Tensor) or not kernel.is_floating_point():
        raise TypeError(f"kernel must be a floating tensor, got {dtype_or_kind(kernel)}")
    if kernel.dim() not in (2, 3) or not math.prod(kernel.shape):
        raise ValueError(f"kernel must have shape (h, w) or (C, h, w), got {tuple(kernel.shape)}")
    check(kernel.isfinite().all(), lambda: "kernel must be finite, got NaN or inf in it")


def smoothed(g: Tensor, kernel: Tensor) -> Tensor:
    """Each channel of g (B, C, H, W) convolved with the kernel (h, w), or with its own of (C, h, w)."""
    if g.dim() != 4:
        raise ValueError(f"a kernel needs images (B, C, H, W), got shape {tuple(g.shape)}")
    channels = g.shape[1]
    if kernel.dim() == 3 and len(kernel) not in (1, channels):
        raise ValueError(f"kernel has {len(kernel)} channels, the images have {channels}")
    height, width = kernel.shape[-2:]
    weight = kernel.to(g).expand(channels, height, width).unsqueeze(1).contiguous()
    if not (height % 2 and width % 2):  # one row or column more behind than before
        g = F.pad(g, (0, 1 - width % 2, 0, 1 - height % 2))
    return F.conv2d(g, weight, padding=((height - 1) // 2, (width - 1) // 2), groups=channels)
