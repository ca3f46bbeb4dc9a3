"""TI-FGSM (Dong et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from soatfast import attacks
from soatfast.compat.torchattacks.native import Stepwise


class TIFGSM(Stepwise):
    """:class:`soatfast.attacks.MIFGSM` along a blurred gradient, on images of a random size and place, Linf.

    kernel_name: "gaussian", "linear" or "uniform". ``stacked_kernel`` (3, 1, h, w) is what an attack takes.
    """

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float = 2 / 255,
        steps: int = 10,
        decay: float = 0.0,
        kernel_name: str = "gaussian",
        len_kernel: int = 15,
        nsig: float = 3,
        resize_rate: float = 0.9,
        diversity_prob: float = 0.5,
        random_start: bool = False,
    ):
        super().__init__("TIFGSM", model)
        self.eps = eps
        self.steps = steps
        self.decay = decay
        self.alpha = alpha
        self.resize_rate = resize_rate
        self.diversity_prob = diversity_prob
        self.random_start = random_start
        self.kernel_name = kernel_name
        self.len_kernel = len_kernel
        self.nsig = nsig
        self.stacked_kernel = _kernel(kernel_name, len_kernel, nsig).expand(3, 1, -1, -1).clone()
        self.supported_mode = ["default", "targeted"]

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        images, labels = self._inputs(images, labels)
        start = self._uniform(images, self.random_start)
        kernel = self.stacked_kernel[:, 0] if images.shape[1] == 3 else self.stacked_kernel[0, 0]
        forward = attacks.ResizePad(self.resize_rate, self.diversity_prob)
        return self._momentum(images, labels, start, decay=self.decay, forward=forward, kernel=kernel)


def _kernel(name: str, size: int, deviations: float) -> Tensor:
    """(size, size), of sum 1."""
    if name == "gaussian":
        return attacks.gaussian_kernel(size, deviations)
    if name == "linear":
        side = 1 - torch.linspace((1 - size) / 2, (size - 1) / 2, size, dtype=torch.float64).abs() * 2 / (size + 1)
        kernel = torch.outer(side, side)
        return (kernel / kernel.sum()).float()
    if name == "uniform":
        return torch.full((size, size), 1 / size**2)
    raise ValueError(f'kernel_name must be "gaussian", "linear" or "uniform", got {name!r}')
