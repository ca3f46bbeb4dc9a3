"""Averaged weights: the moving average of a model's weights and batch-norm statistics, by torch's own class."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model, ``.module``, that ``update_parameters(model)`` moves towards it.

    average <- d average + (1 - d) weights, d = min(decay, n / (n + 10)) after n steps: what was before training soon
    has no weight. Floating buffers are averaged with the weights and others are copied, so that the copy has
    batch-norm statistics of its own. Nothing waits for the device.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = averaged(model, 0.9)
    >>> average.update_parameters(model)
    >>> bool(average.module.weight == model.weight)
    True
    """

    @torch.no_grad()
    def move(averages: list[Tensor], weights: list[Tensor], steps: Tensor) -> None:
        if not averages[0].is_floating_point():
            torch._foreach_copy_(averages, weights)
            return
        gap = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(gap, 1 - torch.clamp(steps / (steps + 10), max=decay).to(averages[0]))
        torch._foreach_add_(averages, gap)

    return AveragedModel(model, multi_avg_fn=move, use_buffers=True)  # type: ignore[arg-type]
