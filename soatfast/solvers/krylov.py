"""Batched Krylov methods on matrix-vector products: GMRES and the Arnoldi process, everything per sample.

A sample's matrix A_i is known only by ``matvec``: (B, ...) -> (B, ...), row i times A_i. Samples never mix: each has
its own space, residual, iterations and status, and a sample that is done, singular or spoiled by a NaN changes no
other.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from soatfast import ops
from soatfast.ops import constants
from soatfast.ops.arguments import Layout, check_flag, check_number, check_steps, whole_number
from soatfast.solvers.spaces import Basis, Preconditioned, Space, product_of

_RCOND = {torch.float32: 1e-3, torch.float64: 1e-8}


class Status(enum.IntEnum):
    """Why a sample's solve ended; the numbers of :attr:`GMRESResult.status`."""

    CONVERGED = constants.CONVERGED  # residual <= max(rtol ||b||, atol)
    BREAKDOWN = constants.BREAKDOWN  # the Krylov space is exhausted: no better x exists in it, up to rounding
    SINGULAR = constants.SINGULAR  # the next direction was rejected as numerically singular; x is the best without it
    MAX_DIM = constants.MAX_DIM  # max_dim and restarts are used up
    NONFINITE = constants.NONFINITE  # b, a product or the solution has a NaN or an infinity; x is what was known before
    INEXACT = 6  # the estimate converged, but ||b - A x|| is above twice the target: only with verify=True


@dataclass(frozen=True)
class GMRESResult:
    """What :func:`gmres` found, a row a sample.

    Args:
        x: solution, of b's shape.
        residual: (B,) estimate of ||b - A x|| from the rotations; infinite where b is not finite, or x would not be.
            With an inexact matvec (finite differences) the true residual stalls at the noise while the estimate goes on
            falling.
        iterations: (B,) int32, columns used over all restarts. Products made for a sample: one more where the last
            column was rejected, and one for each restart.
        status: (B,) int32, a :class:`Status`.
        history: (B, steps + 1) residual estimates, the first ||b - A x0||; constant behind a sample's end.
        true_residual: (B,) ||b - A x|| of one more product; None unless ``verify=True``.
        cycles: of each cycle the Hessenberg matrices (m, m + 1, B), column j in [j], and the columns in use (B,).
    """

    x: Tensor
    residual: Tensor
    iterations: Tensor
    status: Tensor
    history: Tensor
    true_residual: Tensor | None = None
    cycles: tuple[tuple[Tensor, Tensor], ...] = field(default=(), repr=False)

    @property
    def converged(self) -> Tensor:
        """(B,) bool: the estimate is at most the target; with ``verify=True`` ||b - A x|| is at most twice it."""
        return self.status == Status.CONVERGED

    @property
    def asymmetry(self) -> Tensor:
        """(B,) ||H - H^T||_F / ||H||_F of the Hessenberg matrices in use, the largest of all cycles.

        A symmetric A has rounding here. More says that the products are no Hessian's: finite differences across kinks,
        or their noise. 0 for a space of one dimension. A right preconditioner makes A M^-1, which is not symmetric.
        """
        worst = torch.zeros_like(self.residual)
        for columns, used in self.cycles:
            m = len(columns)
            inside = torch.arange(m, device=used.device).unsqueeze(1) < used  # (m, B)
            square = torch.where(inside.unsqueeze(0) & inside.unsqueeze(1), columns[:, :m], 0.0)
            apart = torch.linalg.vector_norm(square - square.transpose(0, 1), dim=(0, 1))
            size = torch.linalg.vector_norm(square, dim=(0, 1))
            worst = torch.maximum(worst, apart / torch.where(size > 0, size, 1.0))
        return worst

    def dimension(self, rtol: float) -> Tensor:
        """(B,) int64, the first number of steps with a residual <= rtol ||b - A x0||; -1 where there is none.

        One solve to a small threshold so gives the Krylov dimension of every larger one (SOAE's table IV).
        """
        reached = self.history <= check_number(rtol, "rtol", above=False) * self.history[:, :1]
        return torch.where(reached.any(1), reached.int().argmax(1), -1)

    @property
    def subdiagonals(self) -> Tensor:
        """(B, cycles m) h_{j+1,j}, the length of each new direction; 0 behind a sample's end."""
        found = []
        for columns, used in self.cycles:
            inside = torch.arange(len(columns), device=used.device).unsqueeze(1) < used
            found.append(torch.where(inside, columns.diagonal(1, 0, 1).t(), 0.0))
        return torch.cat(found).t()


def gmres(
    matvec: Callable[..., Tensor],
    b: Tensor,
    x0: Tensor | None = None,
    *,
    max_dim: int,
    rtol: float,
    atol: float = 0.0,
    restarts: int = 1,
    rcond: float | None = None,
    check_every: int | None = 1,
    compact: bool = False,
    stop: Literal["residual", "subdiag"] = "residual",
    preconditioner: Callable[[Tensor], Tensor] | None = None,
    verify: bool = False,
    callback: Callable[[int, Tensor], object] | None = None,
) -> GMRESResult:
    r"""Minimises ||b_i - A_i x_i||_2 over x0 + K_m(A_i, r_i) for each sample i (Saad and Schultz 1986).

    Arnoldi with classical Gram-Schmidt twice, Givens rotations that give the residual at every step for free, and one
    triangular solve at the end of a cycle. Where the matrix is numerically singular on the Krylov space, the normal
    case for Hessians of piecewise-linear networks, the offending direction is left out (``rcond``); x is then the
    least-norm solution up to rounding where b lies in the range of a symmetric A.

    Memory: the basis takes B (max_dim + 1) D numbers: max_dim = 20 on 128 CIFAR-10 images in float32 is 33 MB, on 128
    ImageNet images (224 x 224) 1.6 GB. It is compared with the free memory before anything is allocated.

    Args:
        matvec: v (B, ...) -> A v, of v's shape, dtype and device. With ``compact``, called as matvec(v, index) with the
            samples that v holds, index (n,) int64. Finite differences of a gradient: a :class:`Difference`.
        b: (B, ...) right-hand sides, float32 or float64.
        x0: start, of b's shape; None for 0 (saves a product).
        max_dim: steps of a cycle m, 1 <= m <= D.
        rtol, atol: a sample is done when its residual is at most max(rtol ||b||, atol); both >= 0. Below the noise of
            a finite-difference product a smaller rtol only costs passes.
        restarts: cycles; each starts from the true residual, which costs a product.
        rcond: relative pivot below which a column is rejected; None: 1e-3 in float32, 1e-8 in float64, which keeps x
            bounded where b has noise of 1e-3 outside the range of A. Less for an ill-conditioned, well-posed system.
        check_every: stop early when all samples are done, asked every so many steps and after each restart's true
            residual: one synchronisation with the device each, and one call for the rotations of those steps. None
            never asks (CUDA graphs).
        compact: multiply only the samples that are not done once they are at most half of the batch.
        stop: "residual", or "subdiag": a sample is done where h_{j+1,j} <= rtol, the next basis vector's length before
            it is normalised (Saad, Iterative Methods, Algorithm 6.9). That is absolute, and says little about the
            residual.
        preconditioner: v (B, ...) -> M^-1 v, linear, from the right: the space is that of A M^-1 and x = x0 + M^-1 u,
            so that residuals stay those of A x = b. It is called once a step and once a cycle.
        verify: make one product more, for the true ||b - A x||: a sample whose estimate converged and whose true
            residual is above twice the target (and above rounding) gets the status INEXACT.
        callback: called with the number of steps and their residual estimates (B,) after each step; with check_every
            k, after each k of them.

    All arguments are checked before the first product.

    Raises:
        TypeError: b is not float32 or float64 (half precision: convert b, and multiply in float32).
        ValueError: max_dim < 1 or > D, a negative tolerance, restarts < 1, a product of another shape, dtype or device,
            verify=True with stop="subdiag", which has no target for the residual.
        MemoryError: the basis does not fit; the message names its size and a max_dim that fits.

    >>> import torch
    >>> a = torch.tensor([[[2.0, 1.0], [0.0, 3.0]]])
    >>> b = torch.tensor([[4.0, 6.0]])
    >>> result = gmres(lambda v: (a @ v.unsqueeze(2)).squeeze(2), b, max_dim=2, rtol=1e-6)
    >>> result.x.round(decimals=4), result.iterations, Status(int(result.status[0])).name
    (tensor([[1., 2.]]), tensor([2], dtype=torch.int32), 'CONVERGED')
    """
    layout = check_basis(b, max_dim)
    for name, value in (("rtol", rtol), ("atol", atol), ("rcond", 0.0 if rcond is None else rcond)):
        check_number(value, name, above=False)
    for name, count in (("restarts", restarts), ("check_every", 1 if check_every is None else check_every)):
        check_steps(count, name)
    if stop not in ("residual", "subdiag"):
        raise ValueError(f'stop must be "residual" or "subdiag", got {stop!r}')
    check_flag(verify, "verify")
    if verify and stop == "subdiag":
        raise ValueError('verify=True compares residuals, got stop="subdiag", which has no target for them')
    plain = product_of(matvec, layout, compact)
    product = plain if preconditioner is None else Preconditioned(plain, preconditioner)
    right = layout.rows(b, "b")
    space = Space(right, max_dim)
    rcond = _RCOND[b.dtype] if rcond is None else rcond

    length, finite = space.start(product, right)
    target = (rtol * length).clamp_min(atol) if stop == "residual" else torch.zeros_like(length)
    status = torch.where(finite, constants.ACTIVE, constants.NONFINITE).int()
    x: Tensor | None = None
    if x0 is not None:
        x = torch.where((finite & (length > 0)).unsqueeze(1), layout.rows(x0, "x0"), 0.0)
    total = torch.zeros_like(status)
    # Columns are turned in blocks, as the answer is asked for: one call to the device in place of many.
    block = 1 if compact or stop == "subdiag" else max_dim if check_every is None else check_every
    history: list[Tensor] = []
    cycles: list[tuple[Tensor, Tensor]] = []
    for cycle in range(restarts):
        beta = length
        if x is not None:
            beta, good = space.start(product, torch.where(finite.unsqueeze(1), right, 0.0) - plain(x))
            status = torch.where(good, status, constants.NONFINITE)
        final = (status == constants.SINGULAR) | (status == constants.NONFINITE)
        begun = torch.where(beta <= target, constants.CONVERGED, constants.ACTIVE)
        status = torch.where(final, status, begun).int()
        if not cycle:
            history.append(beta.unsqueeze(0))
        elif check_every is not None and _nobody_active(status):
            history.append(beta.expand((restarts - cycle) * max_dim, -1))
            break
        turned = 0
        for j in range(max_dim):
            if check_every is not None and j % check_every == 0 and _nobody_active(status):
                history.append((history[-1][-1:] if j else beta.unsqueeze(0)).expand(max_dim - j, -1))
                break
            product.step(space, status, j)
            count = j + 1 - turned
            if count < block and j + 1 < max_dim:
                continue
            curve = space.turn(status, target, turned, count, rcond)
            turned = j + 1
            history.append(curve)
            if callback is not None:
                for step, residuals in enumerate(curve, cycle * max_dim + turned - count + 1):
                    callback(step, residuals)
            if stop == "subdiag":
                done = (status == constants.ACTIVE) & (space.hessenberg[j, j + 1] <= rtol)
                status.masked_fill_(done, constants.CONVERGED)
        y = ops.triangular_solve(space.triangle, space.rhs, space.iterations)
        if isinstance(product, Preconditioned):
            moved = product.undo(ops.krylov_combine(space.basis, y))
            found = moved if x is None else x + moved
        else:
            found = ops.krylov_combine(space.basis, y, x)
        held = found.isfinite().all(1)  # else a pivot or a coefficient overflowed
        x = torch.where(held.unsqueeze(1), found, torch.zeros_like(found) if x is None else x)
        status = torch.where(held, status, constants.NONFINITE).int()
        finite &= held
        total += space.iterations
        cycles.append((space.hessenberg, space.iterations))
        if cycle + 1 < restarts:  # the next cycle writes into them
            cycles[-1] = (space.hessenberg.clone(), space.iterations.clone())
    assert x is not None
    status = status.masked_fill(status == constants.ACTIVE, constants.MAX_DIM)
    curves = torch.where(finite.unsqueeze(1), torch.cat(history).t(), math.inf)
    residual = curves[:, -1].clone()
    status = torch.where(residual.isfinite() | (status != constants.CONVERGED), status, constants.NONFINITE).int()
    true = None
    if verify:
        true = torch.linalg.vector_norm(right - plain(x), dim=1)
        true = torch.where(true.isfinite(), true, math.inf)
        allowed = torch.maximum(2 * target, 10 * torch.finfo(b.dtype).eps * length)
        status = torch.where((status == Status.CONVERGED) & (true > allowed), Status.INEXACT, status).int()
    return GMRESResult(layout.restore(x), residual, total, status, curves, true, tuple(cycles))


@dataclass(frozen=True)
class ArnoldiResult:
    """A Krylov space of each sample.

    Args:
        basis: (B, m + 1, D) orthonormal v_0 .. v_k, 0 behind a sample's end.
        hessenberg: (B, m + 1, m) with A V_m = V_{m+1} H.
        iterations: (B,) int32, columns of H in use: k.
        length: (B,) ||b||.
        layout: how rows of D become samples.
    """

    basis: Tensor
    hessenberg: Tensor
    iterations: Tensor
    length: Tensor
    layout: Layout = field(repr=False)

    def combine(self, z: Tensor) -> Tensor:
        """V_m z of b's shape, for z (B, m)."""
        return self.layout.restore(ops.krylov_combine(self.basis, z.t()))


def arnoldi(
    matvec: Callable[..., Tensor],
    b: Tensor,
    *,
    max_dim: int,
    rcond: float | None = None,
    check_every: int | None = 1,
    compact: bool = False,
) -> ArnoldiResult:
    r"""An orthonormal basis of K_m(A_i, b_i) = span{b, A b, .., A^(m-1) b} and the Hessenberg matrix A has on it.

    For a symmetric A, H is tridiagonal up to rounding, and this is the Lanczos process with full orthogonalisation. The
    process ends for a sample where its space is exhausted, h_{j+1,j} <= rcond ||A v_j|| (A V = V H up to that), where b
    is 0, or where a product is not finite. Arguments as :func:`gmres`.

    >>> import torch
    >>> space = arnoldi(lambda v: v * torch.tensor([1.0, 3.0]), torch.ones(1, 2), max_dim=2)
    >>> torch.linalg.eigvalsh(space.hessenberg[0, :2]).round(decimals=4)
    tensor([1., 3.])
    """
    layout = check_basis(b, max_dim)
    product = product_of(matvec, layout, compact)
    space = Basis(layout.rows(b, "b"), max_dim)
    length, _ = space.start(product, layout.rows(b, "b"))
    status = torch.where(length > 0, constants.ACTIVE, constants.BREAKDOWN).int()
    tiny = _RCOND[b.dtype] if rcond is None else rcond
    begun = [length > 0]  # of each column
    for j in range(max_dim):
        if check_every is not None and j % check_every == 0 and _nobody_active(status):
            space.basis[:, j + 1 :] = 0.0
            space.hessenberg[j:], space.norms[j:] = 0.0, 0.0
            break
        product.step(space, status, j)
        begun.append(space.hessenberg[j, j + 1] > tiny * space.norms[j])  # false where they are NaN, or 0: not active
        status = torch.where(begun[-1], constants.ACTIVE, constants.BREAKDOWN).int()
    columns = torch.stack(begun[:max_dim])
    iterations = (columns & space.norms[: len(columns)].isfinite()).sum(0, dtype=torch.int32)
    hessenberg = torch.where(space.hessenberg.isfinite(), space.hessenberg, 0.0)
    return ArnoldiResult(space.basis, hessenberg.permute(2, 1, 0), iterations, length, layout)


def _nobody_active(status: Tensor) -> bool:
    return constants.ACTIVE not in status.tolist()  # one copy in place of two ops and one


def check_basis(b: Tensor, max_dim: int) -> Layout:
    layout = Layout(b)
    if b.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"b must be float32 or float64, got {b.dtype}: a Krylov basis does not stay orthogonal in half precision"
        )
    check_max_dim(max_dim, math.prod(layout.sample))
    return layout


def check_max_dim(max_dim: int, size: int, name: str = "max_dim") -> int:
    """max_dim, where it lies in 1..D: asked by callers before their first pass."""
    if not 1 <= whole_number(max_dim, name) <= size:
        raise ValueError(f"{name} must lie in 1..{size}, the entries of a sample, got {max_dim!r}")
    return max_dim
