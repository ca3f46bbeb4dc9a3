"""A loss whose parameter gradients are known before the caller's backward arrives."""

from __future__ import annotations

import torch
from torch import Tensor


class Recycled(torch.autograd.Function):
    """A loss whose parameter gradients are known already, and are given away once.

    They are scaled in place and let go, so that they become the parameters' ``grad`` without a copy.
    """

    @staticmethod
    def deferred(loss: Tensor, used: list[tuple[Tensor, Tensor]]) -> Tensor:
        """The loss, whose gradients by the parameters are these; the parameters need gradients now."""
        with torch.inference_mode(False), torch.enable_grad():
            return Recycled.apply(loss, tuple(s for _, s in used), *(p for p, _ in used))

    @staticmethod
    def forward(ctx, loss: Tensor, slopes: tuple[Tensor, ...], *parameters: Tensor) -> Tensor:  # type: ignore[override]
        ctx.slopes = slopes
        return loss.clone()

    @staticmethod
    def backward(ctx, upstream: Tensor):  # type: ignore[override]
        slopes, ctx.slopes = ctx.slopes, None
        if slopes is None:
            raise RuntimeError(
                "the shared clean pass has given its parameter gradients away: going back through it again "
                "(retain_graph=True) needs recycle=False, or a model without torch.utils.checkpoint"
            )
        if slopes:
            torch._foreach_mul_(slopes, upstream)
        return None, None, *slopes
