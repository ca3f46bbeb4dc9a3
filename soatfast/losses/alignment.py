"""PertAlign: whether the gradient still points the same way after a step along it."""

from __future__ import annotations

import torch
from torch import Tensor

from soatfast import ops


def pert_align(g: Tensor, h: Tensor) -> Tensor:
    r"""mean_i cos(g_i, h_i) of two gradients (B, ...), before and after an attack step: a 0-d tensor in [-1, 1].

    Near 1 the loss is nearly linear along the step; a fall foretells catastrophic overfitting of single-step training
    (SORA). A sample with a zero gradient counts as 0. In float32 or wider.

    >>> import torch
    >>> pert_align(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [6e-30, 8e-30]]))
    tensor(0.5000)
    """
    return (_unit(g) * _unit(h)).flatten(1).sum(1).mean()


def _unit(g: Tensor) -> Tensor:
    """g / ||g||_2; 0 where g is 0, and no underflow of the norm of tiny gradients."""
    return ops.lmo(g.float() if g.dtype in (torch.float16, torch.bfloat16) else g, 2, 1.0)
