"""What contract, reference and kernels share: the accumulation dtype and the numbers of the Frank-Wolfe starts."""

from __future__ import annotations

import torch

INIT_SCALED, INIT_LMO, INIT_RAW = 0, 1, 2


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every narrower floating type."""
    return torch.float64 if dtype == torch.float64 else torch.float32
