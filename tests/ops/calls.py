"""Calls of the public ops on one batch, for the tests that hold for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from soatfast import ops


@dataclass(frozen=True)
class Batch:
    g: Tensor  # (B, C, H, W) gradient
    plus: Tensor  # gradient at the forward probe
    minus: Tensor  # gradient at the backward probe
    v: Tensor
    x: Tensor
    x_adv: Tensor
    eps: Tensor  # (B,)

    @property
    def stacked(self) -> Tensor:
        return torch.cat([self.plus, self.minus])

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(*(f(getattr(self, field.name)) for field in fields(self)))

    def images(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """f of every image tensor, eps as it is."""
        return self.map(lambda t: f(t) if t.dim() > 1 else t)


def make_batch(rows: int = 5, dtype: torch.dtype = torch.float32, shape: tuple[int, ...] = (3, 8, 9)) -> Batch:
    generator = torch.Generator().manual_seed(11)

    def normal(scale: float) -> Tensor:
        return (scale * torch.randn((rows, *shape), generator=generator)).to(dtype)

    x = torch.rand((rows, *shape), generator=generator).to(dtype)
    eps = (0.05 + 0.1 * torch.rand(rows, generator=generator)).double() if dtype == torch.float64 else None
    if eps is None:
        eps = 0.05 + 0.1 * torch.rand(rows, generator=generator)
    return Batch(normal(1e-3), normal(1e-3), normal(1e-3), normal(0.05), x, x + normal(0.3), eps)


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
    calls["frank_wolfe_init-box"] = lambda b: ops.frank_wolfe_init(b.g, b.x, math.inf, b.eps, in_box=True)
    calls["frank_wolfe_step-box"] = lambda b: ops.frank_wolfe_step(
        b.g, b.plus, b.v, b.x, math.inf, b.eps, gamma=0.5, in_box=True
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


CALLS = _calls()


def as_tuple(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value
