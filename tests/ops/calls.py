"""Calls of the public ops on one batch, for the tests that hold for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from soatfast import ops
from soatfast.ops.contract import MEMORY_DTYPES
from soatfast.testing import dtypes


@dataclass(frozen=True)
class Batch:
    g: Tensor  # (B, C, H, W) gradient
    plus: Tensor  # gradient at the forward probe
    minus: Tensor  # gradient at the backward probe
    v: Tensor
    x: Tensor
    x_adv: Tensor
    eps: Tensor  # (B,)
    y: Tensor  # (B,) labels

    @property
    def stacked(self) -> Tensor:
        return torch.cat([self.plus, self.minus])

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(*(f(getattr(self, field.name)) for field in fields(self)))

    def images(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """f of every image tensor, eps and labels as they are."""
        return self.map(lambda t: f(t) if t.dim() > 1 else t)


def make_batch(rows: int = 5, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 8, 9)) -> Batch:
    generator = torch.Generator().manual_seed(11)

    def normal(scale: float) -> Tensor:
        return (scale * torch.randn((rows, *shape), generator=generator)).to(dtype)

    x = torch.rand((rows, *shape), generator=generator).to(dtype)
    eps = (0.05 + 0.1 * torch.rand(rows, generator=generator)).double() if dtype == torch.float64 else None
    if eps is None:
        eps = 0.05 + 0.1 * torch.rand(rows, generator=generator)
    y = 7 * torch.arange(rows)
    return Batch(normal(1e-3), normal(1e-3), normal(1e-3), normal(0.05), x, x + normal(0.3), eps, y)


def _calls() -> dict[str, Callable[[Batch], Tensor | tuple[Tensor, ...]]]:
    calls: dict[str, Callable[[Batch], Tensor | tuple[Tensor, ...]]] = {}
    for p in (1, 1.5, 2, math.inf):
        calls[f"lmo-{p}"] = lambda b, p=p: ops.lmo(b.g, p, b.eps)
        calls[f"lp_norm-{p}"] = lambda b, p=p: ops.lp_norm(b.g, p)
        calls[f"frank_wolfe_init-{p}"] = lambda b, p=p: ops.frank_wolfe_init(b.g, b.x, p, b.eps, h=1.05)
        calls[f"frank_wolfe_init-{p}-central"] = lambda b, p=p: ops.frank_wolfe_init(
            b.g, b.x, p, 0.3, init="lmo", central=True
        )
        calls[f"frank_wolfe_step-{p}"] = lambda b, p=p: ops.frank_wolfe_step(
            b.g, b.plus, b.v, b.x, p, b.eps, gamma=0.5, h=1.05
        )
        calls[f"frank_wolfe_step-{p}-central"] = lambda b, p=p: ops.frank_wolfe_step(
            b.g, b.stacked, b.v, b.x, p, b.eps, gamma=2 / 3, central=True
        )
        calls[f"frank_wolfe_step-{p}-last"] = lambda b, p=p: ops.frank_wolfe_step(
            b.g, b.plus, b.v, b.x, p, 0.3, gamma=0.5, last=True
        )
    for p, scale in ((1, 50), (2, 10), (math.inf, 1)):  # of eps, so that the box binds
        calls[f"lmo-{p}-box"] = lambda b, p=p, scale=scale: ops.lmo(b.g, p, scale * b.eps, x=b.x)
        calls[f"frank_wolfe_init-{p}-box"] = lambda b, p=p, scale=scale: ops.frank_wolfe_init(
            b.g, b.x, p, scale * b.eps, init="lmo", in_box=True
        )
        calls[f"frank_wolfe_step-{p}-box"] = lambda b, p=p, scale=scale: ops.frank_wolfe_step(
            b.g, b.plus, b.v, b.x, p, scale * b.eps, gamma=0.5, in_box=True
        )
    for h in (1, 0.01):
        calls[f"power_step-{h}"] = lambda b, h=h: ops.power_step(b.g, b.plus, b.v, b.x, h)
    for sign in (1, -0.5):
        calls[f"cross_entropy_derivative-{sign}"] = lambda b, sign=sign: ops.cross_entropy_derivative(
            b.v.flatten(1), b.y, sign
        )
    for p, eps in ((1, 5.0), (2, 1.0), (math.inf, 0.1)):
        for exact in (False, True):
            calls[f"project-{p}-{exact}"] = lambda b, p=p, eps=eps, exact=exact: ops.project(
                b.x_adv, b.x, p, eps * b.eps / 0.1, exact=exact
            )
            calls[f"pgd_step-{p}-{exact}"] = lambda b, p=p, eps=eps, exact=exact: ops.pgd_step(
                b.x_adv, b.g, b.x, p, eps, 0.5 * eps * b.eps / 0.1, exact=exact, k=None if exact else 20
            )
    return calls


def _memory(b: Batch, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor | None]:
    """(memory (B + 1, ...), index (B,), scale) made of v: sample i has row B - 1 - i, the last row is nobody's."""
    u = torch.cat([b.v.detach().flip(0), b.v.new_zeros(1, *b.v.shape[1:])]).nan_to_num(0.0, 1.0, -1.0)
    u, index = (8 * u).clamp(-1, 1).contiguous(), torch.arange(len(b.v)).flip(0)
    if dtype != torch.int8:
        return u.to(dtype), index, None
    return (127 * u).to(torch.int8), index, torch.ones(len(u))


def _replay_start(b: Batch, dtype: torch.dtype) -> Tensor:
    memory, index, scale = _memory(b, dtype)
    return ops.replay_start(memory, index, b.x, b.eps, scale=scale)


def _replay_step(
    b: Batch, dtype: torch.dtype, p: float, eps: float | Tensor, in_box: bool = False
) -> tuple[Tensor, ...]:
    """x_adv, and the samples' rows of memory and scale as they are afterwards."""
    memory, index, scale = _memory(b, dtype)
    x_adv = ops.replay_step(memory, index, b.g, b.x, p, eps, 0.3, scale=scale, in_box=in_box)
    rows = memory[index].flatten(1)
    return (x_adv, rows) if scale is None else (x_adv, rows, scale[index])


def _replay_calls() -> dict[str, Callable[[Batch], Tensor | tuple[Tensor, ...]]]:
    calls: dict[str, Callable[[Batch], Tensor | tuple[Tensor, ...]]] = {}
    for dtype in MEMORY_DTYPES:
        kind = str(dtype).removeprefix("torch.")
        calls[f"replay_start-1-{kind}"] = lambda b, dtype=dtype: _replay_start(b, dtype)
        for p in (1, 1.5, 2, math.inf):
            calls[f"replay_step-{p}-{kind}"] = lambda b, dtype=dtype, p=p: _replay_step(b, dtype, p, b.eps)
        for p, eps in ((1, 5.0), (2, 1.0), (math.inf, 0.3)):
            calls[f"replay_step-{p}-box-{kind}"] = lambda b, dtype=dtype, p=p, eps=eps: _replay_step(
                b, dtype, p, eps, in_box=True
            )
    return calls


CALLS = _calls() | _replay_calls()


def takes(name: str, dtype: torch.dtype) -> bool:
    """Whether the op of a call takes batches of this dtype."""
    return dtype in dtypes(name.split("-")[0])


def as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value
