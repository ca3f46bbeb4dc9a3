"""Models of ``torch.export`` that take batches of one size only, called with any number of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from soatfast.gradients import behind


class FixedBatch(nn.Module):
    """Calls `model` by batches of `size` rows: the last one is filled up with its last row, and cut again.

    Every tensor whose length is the batch's is cut and joined, in arguments and in what the model returns.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        rows = next(len(t) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim())
        if rows == self.size:
            return self.model(*args, **kwargs)
        parts = [self._part(args, kwargs, rows, start) for start in range(0, rows, self.size)]
        trees = [pytree.tree_flatten(part) for part in parts]
        joined = [
            torch.cat(leaves) if isinstance(leaves[0], Tensor) and leaves[0].dim() else leaves[0]
            for leaves in zip(*(leaves for leaves, _ in trees), strict=True)
        ]
        return pytree.tree_unflatten(joined, trees[0][1])

    def _part(self, args: Any, kwargs: Any, rows: int, start: int) -> Any:
        wanted = torch.arange(start, start + self.size).clamp_max(rows - 1)
        given = _of_length((args, kwargs), rows, lambda t: t[wanted.to(t.device)])
        returned = self.model(*given[0], **given[1])
        return _of_length(returned, self.size, lambda t: t[: rows - start])


def _of_length(tree: Any, rows: int, change: Callable[[Tensor], Tensor]) -> Any:
    return pytree.tree_map(
        lambda t: change(t) if isinstance(t, Tensor) and t.dim() and len(t) == rows else t,
        tree,
    )


def fixed_size(model: nn.Module) -> int | None:
    """The one batch size that a module of ``torch.export`` in the model takes; None: there is none, or any will do."""
    for module in behind.modules([model]):
        if "train" in module.__dict__ and isinstance(module, torch.fx.GraphModule):
            inputs = (node.meta.get("val") for node in module.graph.nodes if node.op == "placeholder")
            shapes = [t.shape for t in inputs if isinstance(t, Tensor) and t.dim()]
            if shapes and isinstance(shapes[0][0], int):
                return shapes[0][0]
    return None


def any_batch(model: nn.Module) -> nn.Module:
    """The model itself, or where it takes batches of one size only a :class:`FixedBatch` of it."""
    size = fixed_size(model)
    return model if size is None else FixedBatch(model, size)
