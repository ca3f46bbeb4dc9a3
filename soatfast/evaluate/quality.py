"""How visible a perturbation is: PSNR and SSIM of each image, by torchmetrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor

_WINDOW = 11
_EDGE = _WINDOW // 2
_ENTRIES = 2**22  # of images at a time: torchmetrics keeps some twenty arrays of them


@dataclass(frozen=True)
class Quality:
    """psnr (N,) in dB, inf where an image is unchanged; ssim (N,), 1 where it is. On the CPU, float64."""

    psnr: Tensor = field(repr=False)
    ssim: Tensor = field(repr=False)

    @property
    def mean(self) -> tuple[float, float]:
        """(mean PSNR, mean SSIM); unchanged images make the first inf."""
        return float(self.psnr.mean()), float(self.ssim.mean())

    @classmethod
    def not_measured(cls, samples: int) -> Quality:
        """NaN for every sample."""
        return cls(*torch.full((2, samples), math.nan, dtype=torch.float64))


def image_quality(
    x: Tensor, x_adv: Tensor, data_range: float = 1.0, batch_size: int = 250, dtype: torch.dtype = torch.float64
) -> Quality:
    r"""Of each image x_adv[i] against x[i], both (N, C, H, W).

    PSNR = 10 log10(data_range^2 / MSE) over all pixels and channels of one image; data_range is 1 for images in
    [0, 1] (a PSNR of [0, 1] images with 255 in its place is 48.1 dB too high). SSIM is Wang et al.'s (2004): Gaussian
    window of 11 x 11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03, mean over the windows that lie inside the image.

    dtype: in which it is computed. A window's variance is a difference of large numbers: in float32, three times as
    fast, the SSIM of flat bright images is off by up to 2e-4, of others by less than 1e-6.

    Raises:
        ImportError: torchmetrics is not there.
        ValueError: shapes differ or are not (N, C, H, W), or a side is shorter than the window.

    >>> import torch
    >>> x = torch.full((2, 1, 16, 16), 0.5)
    >>> found = image_quality(x, x + torch.tensor([0.0, 0.1]).view(2, 1, 1, 1))
    >>> found.psnr, found.ssim
    (tensor([    inf, 20.0000], dtype=torch.float64), tensor([1.0000, 0.9836], dtype=torch.float64))
    """
    metrics = require_torchmetrics()
    if x.shape != x_adv.shape or x.dim() != 4:
        raise ValueError(f"images must be (N, C, H, W) and alike, got {tuple(x.shape)} and {tuple(x_adv.shape)}")
    if min(x.shape[2:]) < _WINDOW:
        raise ValueError(f"SSIM's window is {_WINDOW} x {_WINDOW}, got images of {x.shape[2]} x {x.shape[3]}")
    if not 0 < data_range < math.inf:
        raise ValueError(f"data_range must be positive and finite, got {data_range}")
    psnr, ssim = [torch.zeros(0)], [torch.zeros(0)]
    for a, b in zip(x.detach().split(batch_size), x_adv.detach().split(batch_size), strict=True):
        if len(a):
            clean, changed = a.cpu().to(dtype), b.cpu().to(dtype)
            psnr.append(_psnr(metrics, clean, changed, data_range))
            ssim.append(_ssim(metrics, clean, changed, data_range))
    return Quality(torch.cat(psnr).double(), torch.cat(ssim).double())


def quality_of_changed(x: Tensor, x_adv: Tensor, data_range: float) -> Quality:
    """As :func:`image_quality`, in float32, of the samples that are changed; the others are inf and 1.

    NaN is what is not defined: the SSIM of images smaller than its window, and both of what is no image (N, C, H, W).
    """
    found = Quality.not_measured(len(x))
    if x.dim() != 4:
        return found
    metrics = require_torchmetrics()
    changed = (x_adv != x).flatten(1).any(1)
    a, b = (t.detach()[changed].cpu().float() for t in (x, x_adv))
    changed = changed.cpu()
    found.psnr[~changed] = math.inf
    if len(a):
        found.psnr[changed] = _psnr(metrics, a, b, data_range).double()
    if min(x.shape[2:]) >= _WINDOW:
        found.ssim[~changed] = 1.0
        if len(a):
            some = max(1, _ENTRIES // a[0].numel())
            pairs = zip(a.split(some), b.split(some), strict=True)
            found.ssim[changed] = torch.cat([_ssim(metrics, *pair, data_range) for pair in pairs]).double()
    return found


def _psnr(metrics: ModuleType, clean: Tensor, changed: Tensor, data_range: float) -> Tensor:
    found: Tensor = metrics.peak_signal_noise_ratio(
        changed, clean, data_range=data_range, dim=(1, 2, 3), reduction="none"
    )
    return found.reshape(-1)


def _ssim(metrics: ModuleType, clean: Tensor, changed: Tensor, data_range: float) -> Tensor:
    # All images as the channels of one: its convolution is then 4 (float32) to 12 (float64) times as fast on the CPU.
    one, other = (images.flatten(0, 1)[None] for images in (changed, clean))
    _, local = metrics.structural_similarity_index_measure(
        one, other, data_range=data_range, gaussian_kernel=True, sigma=1.5, return_full_image=True
    )
    inside: Tensor = local[..., _EDGE:-_EDGE, _EDGE:-_EDGE]  # torchmetrics averages over windows of mirrored pixels too
    return inside.reshape(len(clean), -1).mean(1)


def require_torchmetrics() -> ModuleType:
    """Its module of image metrics; ImportError that says how to get it."""
    try:
        import torchmetrics.functional.image as metrics
    except ImportError as error:
        raise ImportError(f"PSNR and SSIM need torchmetrics: pip install torchmetrics ({error})") from error
    return metrics
