"""What a Krylov solve works in: the basis with its Hessenberg matrices, and the products that fill it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from soatfast import ops
from soatfast.ops import constants
from soatfast.ops.arguments import Layout, check_number
from soatfast.ops.dispatch import kernel

_SMALL = 2**25  # bytes


@dataclass(frozen=True)
class Difference:
    r"""The product v -> [gradient(x + h v) - g0] / h; solvers make one op of all that is between two of its passes.

    Called with a v it is an ordinary matvec.

    Args:
        gradient: (B, ...) -> (B, ...), one pass. The probe it is given is overwritten after it has returned.
        x: (B, ...) where the Hessian is taken.
        g0: gradient(x).
        h: step along the unit vectors of a basis, > 0 (:func:`soatfast.solvers.hessian.unit_step`).

    >>> import torch
    >>> from soatfast.solvers import gmres
    >>> product = Difference(lambda x: 3 * x, torch.zeros(1, 2), torch.zeros(1, 2), 0.5)
    >>> gmres(product, torch.tensor([[3.0, 6.0]]), max_dim=2, rtol=1e-6).x
    tensor([[1., 2.]])
    """

    gradient: Callable[[Tensor], Tensor]
    x: Tensor
    g0: Tensor
    h: float

    def __post_init__(self) -> None:
        check_number(self.h, "h")

    def __call__(self, v: Tensor) -> Tensor:
        return (self.gradient(self.x.add(v, alpha=self.h)) - self.g0).div_(self.h)


class Basis:
    """The basis and the Hessenberg matrices on it. A block, and a column, is written before it is read."""

    def __init__(self, like: Tensor, m: int):
        _check_memory(like, m)
        rows, size = like.shape
        self.basis = like.new_empty(rows, m + 1, size)
        self.hessenberg, self.norms = like.new_empty(m, m + 1, rows), like.new_empty(m, rows)

    def start(self, product: Product, r: Tensor) -> tuple[Tensor, Tensor]:
        """||r|| (B,), 0 where r is not finite, and where it is."""
        beta = product.start(self, r)
        finite = beta.isfinite()
        return torch.where(finite, beta, 0.0), finite

    def step(self, w: Tensor, status: Tensor, j: int, *difference: Any) -> None:
        """One Arnoldi step. Past the checks of :func:`soatfast.ops.arnoldi_step`: between passes they take 1 %."""
        kernel("arnoldi_step")(self.basis, self.hessenberg, self.norms, w, status, j, *difference)


class Space(Basis):
    """All the state of a solve: allocated once, started anew in every cycle."""

    def __init__(self, like: Tensor, m: int):
        super().__init__(like, m)
        rows = len(like)
        self.triangle, self.rotations = like.new_zeros(m, m, rows), like.new_zeros(m, 2, rows)
        self.rhs = like.new_zeros(m + 1, rows)
        self.iterations = like.new_zeros(rows, dtype=torch.int32)

    def start(self, product: Product, r: Tensor) -> tuple[Tensor, Tensor]:
        beta, finite = super().start(product, r)
        self.rhs.zero_()
        self.rhs[0] = beta
        self.iterations.zero_()
        return beta, finite

    def turn(self, status: Tensor, target: Tensor, column: int, count: int, rcond: float) -> Tensor:
        """Columns into the triangle; the residuals (count, B)."""
        state = (self.triangle, self.rotations, self.rhs, self.iterations, status)
        return kernel("givens_step")(*state, self.hessenberg, self.norms, target, column, count, rcond)


class Product:
    """matvec on rows (B, D), its result checked; with ``compact``, on the active samples where they are few."""

    def __init__(self, matvec: Callable[..., Tensor], layout: Layout, compact: bool):
        self.matvec, self.layout, self.compact = matvec, layout, compact

    def __call__(self, v: Tensor, status: Tensor | None = None) -> Tensor:
        if not self.compact:
            return self._checked(self.matvec(self.layout.restore(v)), v)
        everybody = torch.arange(len(v), device=v.device)
        index = everybody if status is None else (status == constants.ACTIVE).nonzero().squeeze(1)
        if 2 * len(index) > len(v):
            return self._checked(self.matvec(self.layout.restore(v), everybody), v)
        w = torch.zeros_like(v)
        if len(index):
            part = v[index]
            w[index] = self._checked(self.matvec(self.layout.restore(part), index), part)
        return w

    def start(self, space: Basis, r: Tensor) -> Tensor:
        return ops.arnoldi_start(space.basis, r)

    def step(self, space: Basis, status: Tensor, j: int) -> None:
        space.step(self(space.basis[:, j], status), status, j, None, None, None, 1.0)

    def _checked(self, w: Tensor, v: Tensor, name: str = "matvec") -> Tensor:
        expected = (len(v), *self.layout.sample)
        if not isinstance(w, Tensor) or w.shape != expected:
            came = tuple(w.shape) if isinstance(w, Tensor) else type(w).__name__
            raise ValueError(f"{name} must return shape {tuple(expected)}, got {came}")
        if w.dtype != v.dtype or w.device != v.device:
            raise ValueError(f"{name} must return {v.dtype} on {v.device}, got {w.dtype} on {w.device}")
        return self.layout.flat(w)


class Preconditioned(Product):
    """A M^-1 on rows (B, D): the right preconditioner, then the product, also where that is a difference."""

    def __init__(self, inner: Product, preconditioner: Callable[[Tensor], Tensor]):
        super().__init__(inner.matvec, inner.layout, inner.compact)
        self.inner, self.preconditioner = inner, preconditioner

    def __call__(self, v: Tensor, status: Tensor | None = None) -> Tensor:
        return self.inner(self.undo(v), status)

    def undo(self, v: Tensor) -> Tensor:
        """M^-1 v."""
        return self._checked(self.preconditioner(self.layout.restore(v)), v, "preconditioner")


class Differences(Product):
    """The steps of a :class:`Difference`: the new vector becomes the probe of the next pass in the same call."""

    def __init__(self, difference: Difference, layout: Layout):
        super().__init__(difference, layout, compact=False)
        self.gradient = difference.gradient
        self.g0 = layout.rows(difference.g0, "g0")
        x = layout.rows(difference.x, "x")
        self.x, self.probe, self.h = x, torch.empty_like(x), float(difference.h)

    def __call__(self, v: Tensor, status: Tensor | None = None) -> Tensor:
        """A v for a v of any length: h is the step along a unit vector."""
        length = ops.lp_norm(v, 2).to(v.dtype).unsqueeze(1)
        unit = v / torch.where(length > 0, length, 1.0)
        return super().__call__(unit, status) * length

    def start(self, space: Basis, r: Tensor) -> Tensor:
        return ops.arnoldi_start(space.basis, r, x=self.x, probe=self.probe, step=self.h)

    def step(self, space: Basis, status: Tensor, j: int) -> None:
        g = self._checked(self.gradient(self.layout.restore(self.probe)), self.probe)
        space.step(g, status, j, self.g0, self.x, self.probe, self.h)


def product_of(matvec: Callable[..., Tensor], layout: Layout, compact: bool) -> Product:
    if not isinstance(matvec, Difference):
        return Product(matvec, layout, compact)
    if compact:
        raise ValueError("compact needs a matvec(v, index); a Difference is of the whole batch")
    return Differences(matvec, layout)


def _check_memory(rows: Tensor, m: int) -> None:
    """Refuse a basis that does not fit before it is allocated."""
    block = rows.numel() * rows.element_size()
    free = short_of(rows.device, (m + 1) * block)
    if free is not None:
        fits = free // block - 1 if block else m
        advice = f"max_dim = {fits} would fit" if fits >= 1 else "no max_dim would: take smaller batches"
        raise MemoryError(
            f"a Krylov basis of max_dim = {m} for {len(rows)} samples of {rows.shape[1]} entries needs "
            f"{(m + 1) * block} bytes ({(m + 1) * block / 2**30:.2f} GiB), {free} are free: {advice}"
        )


def check_room(what: str, rows: int, each: int, device: torch.device) -> None:
    """Refuse what takes ``each`` bytes a sample and does not fit, before any of it is allocated."""
    free = short_of(device, rows * each)
    if free is not None:
        fits = free // each
        advice = f"batches of {fits} would fit" if fits >= 1 else "not even one sample fits"
        raise MemoryError(
            f"{what} of {rows} samples take {rows * each} bytes ({rows * each / 2**30:.2f} GiB), {free} are free: "
            f"{advice}"
        )


def short_of(device: torch.device, size: int) -> int | None:
    """The free bytes where ``size`` of them are not free, else None. To ask takes 0.2 ms: not for little."""
    free = _free_bytes(device) if size >= _SMALL else None
    return free if free is not None and size > free else None


def _free_bytes(device: torch.device) -> int | None:
    """Memory that an allocation can still get; None where it is not known."""
    if device.type == "cpu":
        try:
            import psutil
        except ImportError:  # it comes with accelerate, which the kernels do without
            return None
        return psutil.virtual_memory().available
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return None
