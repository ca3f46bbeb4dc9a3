"""What contract, reference and kernels share: the accumulation dtype, and the numbers behind names."""

from __future__ import annotations

import torch

INIT_SCALED, INIT_LMO, INIT_RAW = 0, 1, 2

# Status of a sample in a Krylov solve; csrc/math/krylov.h has the same numbers.
ACTIVE = 0  # not done
CONVERGED = 1  # the residual is at most the target
BREAKDOWN = 2  # the Krylov space is exhausted, short of the target
SINGULAR = 3  # the last column was rejected: numerically singular on the Krylov space
MAX_DIM = 4  # stopped by max_dim (and restarts), short of the target
NONFINITE = 5  # a NaN or an infinite number came in


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for every narrower floating type."""
    return torch.float64 if dtype == torch.float64 else torch.float32
