"""The rows that a perturbation memory keeps, and what everything that touches them needs to know."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from soatfast.memory.crops import CropFlip
from soatfast.ops.arguments import norm_order
from soatfast.ops.quantise import remembered

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}


class Rows:
    """The stored u of samples first, first + 1, ...: values (N, ...), and for int8 their scale (N,).

    visits (N,) int32: how often each was visited; common: visits at the last synchronize. p: the norm of the first
    step, None before it.
    """

    samples: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    augment: CropFlip | None
    rank: int
    world: int
    first: int
    device: torch.device
    values: Tensor
    scale: Tensor | None
    visits: Tensor
    common: Tensor
    p: float | None

    def __len__(self) -> int:
        return len(self.values)

    def describe(self) -> dict[str, Any]:
        """What makes two memories the same kind, in JSON's terms."""
        crops = None if self.augment is None else repr(self.augment)
        return {"samples": self.samples, "shape": list(self.shape), "dtype": DTYPES[self.dtype], "augment": crops}

    def check_norm(self, p: float) -> float:
        """p as the ops take it. ValueError where the memory holds perturbations of another ball."""
        order = norm_order(p)
        if self.p not in (None, order):
            raise ValueError(
                f"the memory holds perturbations for p = {self.p:g}, got p = {order:g}; reset() empties it"
            )
        return order

    def recall(self, rows: Tensor) -> Tensor:
        """u (B, ...) in float32 of these rows of `values`."""
        u = remembered(self.values.flatten(1), self.scale, rows, torch.float32)
        return u.view(len(rows), *self.shape)

    def state(self) -> dict[str, Tensor]:
        """What a file holds, the visits last: load and reset tell by them which rows are in use."""
        scale = {} if self.scale is None else {"scale": self.scale}
        return {"values": self.values, **scale, "common": self.common, "visits": self.visits}

    def label(self) -> dict[str, str]:
        return {name: str(v) for name, v in {**self.describe(), "rank": self.rank, "world": self.world}.items()}

    def reset(self) -> None:
        """Forget every perturbation, and whose ball they were in. Pages of rows never visited stay untouched."""
        rows = self.visits.nonzero().squeeze(1)
        for name, t in self.state().items():
            t.index_fill_(0, rows, 1 if name == "scale" else 0)
        self.p = None
