"""Every op in one table: schema, shape rule (fake) and default kernel (the reference).

The schemas live in Python, so a native library or a Triton kernel only adds itself under its device key, in any load
order. Without one, the reference serves every device: slower, never broken.

To add an op: one entry in ``SCHEMAS``, one function of that name in ``_Fakes`` and one in :mod:`.reference`.
A value that is structural (p, gamma, h, bounds) is a Python number; one that changes between replays of a CUDA graph
(eps, alpha) may be a tensor, given beside the number and used in its place. A schema marks what is updated in place:
the replay ops' memory and the state of a Krylov solve.
"""

from __future__ import annotations

import torch
from torch import Tensor

from soatfast.ops import reference
from soatfast.ops.constants import accumulate_dtype

NAMESPACE = "soatfast"

SCHEMAS: dict[str, str] = {
    # g (B, D) -> s (B, D); with x (B, D) over ball and box
    "lmo": (
        "(Tensor g, float p, float eps, Tensor? eps_tensor=None, Tensor? x=None, float lower=0.0, float upper=1.0)"
        " -> Tensor"
    ),
    # g (B, D) -> ||g||_p (B,), in the accumulation dtype
    "lp_norm": "(Tensor g, float p) -> Tensor",
    # g0, x (B, D) -> v (B, D), probe (B, D) or (2B, D)
    "frank_wolfe_init": (
        "(Tensor g0, Tensor x, float p, float eps, Tensor? eps_tensor, int init, float h, bool central,"
        " float lower, float upper) -> (Tensor, Tensor)"
    ),
    # g0, v, x (B, D), g1 (B, D) or (2B, D) -> v (B, D), probe (B, D) or (2B, D), gap (B,)
    "frank_wolfe_step": (
        "(Tensor g0, Tensor g1, Tensor v, Tensor x, float p, float eps, Tensor? eps_tensor, float gamma, float h,"
        " bool central, bool last, float lower, float upper, bool in_box) -> (Tensor, Tensor, Tensor)"
    ),
    # x_adv, x (B, D) -> x_adv (B, D)
    "project": (
        "(Tensor x_adv, Tensor x, float p, float eps, Tensor? eps_tensor, float lower, float upper, bool exact)"
        " -> Tensor"
    ),
    # x_adv, g, x (B, D) -> x_adv (B, D)
    "pgd_step": (
        "(Tensor x_adv, Tensor g, Tensor x, float p, float eps, Tensor? eps_tensor, float alpha,"
        " Tensor? alpha_tensor, float lower, float upper, bool exact, int k) -> Tensor"
    ),
    # memory (N, D) with scale (N,) for int8, index (B,), x (B, D) -> x_adv (B, D)
    "replay_start": (
        "(Tensor memory, Tensor? scale, Tensor index, Tensor x, float eps, Tensor? eps_tensor, float lower,"
        " float upper) -> Tensor"
    ),
    # memory (N, D) with scale (N,) for int8, index (B,), g, x (B, D) -> x_adv (B, D); rows `index` of memory, scale
    "replay_step": (
        "(Tensor(a!) memory, Tensor(b!)? scale, Tensor index, Tensor g, Tensor x, float p, float eps,"
        " Tensor? eps_tensor, float gamma, float lower, float upper, bool in_box) -> Tensor"
    ),
    # g0, g1, u, x (B, D) -> u (B, D), probe (B, D), rayleigh (B,), norm (B,)
    "power_step": "(Tensor g0, Tensor g1, Tensor u, Tensor x, float h) -> (Tensor, Tensor, Tensor, Tensor)",
    # logits (B, K), y (B,) int64 -> (B, K)
    "cross_entropy_derivative": "(Tensor logits, Tensor y, float sign) -> Tensor",
    # basis (B, m + 1, D) and probe (B, D) updated; r, x (B, D) -> ||r|| (B,)
    "arnoldi_start": "(Tensor(a!) basis, Tensor r, Tensor? x, Tensor(b!)? probe, float step) -> Tensor",
    # basis (B, m + 1, D), hessenberg (m, m + 1, B), norms (m, B), probe (B, D), all updated; w, base, x (B, D),
    # status (B,)
    "arnoldi_step": (
        "(Tensor(a!) basis, Tensor(b!) hessenberg, Tensor(c!) norms, Tensor w, Tensor status, int column,"
        " Tensor? base, Tensor? x, Tensor(d!)? probe, float step) -> ()"
    ),
    # triangle (m, m, B), rotations (m, 2, B), rhs (m + 1, B), iterations, status (B,), all updated; hessenberg
    # (m, m + 1, B), norms (m, B), target (B,) -> residual (count, B)
    "givens_step": (
        "(Tensor(a!) triangle, Tensor(b!) rotations, Tensor(c!) rhs, Tensor(d!) iterations, Tensor(e!) status,"
        " Tensor hessenberg, Tensor norms, Tensor target, int column, int count, float rcond) -> Tensor"
    ),
    # triangle (m, m, B), rhs (m + 1, B), iterations (B,) -> y (m, B)
    "triangular_solve": "(Tensor triangle, Tensor rhs, Tensor iterations) -> Tensor",
    # basis (B, m + 1, D), y (m, B), x0 (B, D) -> x (B, D)
    "krylov_combine": "(Tensor basis, Tensor y, Tensor? x0=None) -> Tensor",
}

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
MEMORY_DTYPES = (torch.float32, torch.bfloat16, torch.int8)


def _rows(*tensors: Tensor) -> None:
    """All (B, D), dense by rows, of one shape, dtype and device."""
    first = tensors[0]
    torch._check(first.dtype in _DTYPES, lambda: f"expected a floating dtype, got {first.dtype}")
    for t in tensors:
        torch._check(t.dim() == 2, lambda t=t: f"expected a (B, D) tensor, got {t.dim()} dimensions")
        torch._check(t.shape == first.shape, lambda t=t: f"expected shape {first.shape}, got {t.shape}")
        torch._check(t.dtype == first.dtype, lambda t=t: f"expected {first.dtype}, got {t.dtype}")
        torch._check(t.device == first.device, lambda t=t: f"expected device {first.device}, got {t.device}")


def _remembered(memory: Tensor, scale: Tensor | None, index: Tensor, x: Tensor) -> None:
    """memory (N, D) and scale (N,), dense, index (B,), for a float32 or float64 batch x (B, D)."""
    wide = x.dtype in (torch.float32, torch.float64)
    torch._check(wide, lambda: f"expected a float32 or float64 batch, got {x.dtype}")
    torch._check(memory.dtype in MEMORY_DTYPES, lambda: f"expected a memory in {MEMORY_DTYPES}, got {memory.dtype}")
    torch._check(memory.dim() == 2 and memory.is_contiguous(), lambda: "expected a dense (N, D) memory")
    torch._check(memory.shape[1] == x.shape[1], lambda: f"expected rows of {memory.shape[1]}, got {x.shape[1]}")
    torch._check(index.dtype == torch.int64 and index.dim() == 1, lambda: "expected index (B,) of int64")
    torch._check(index.shape[0] == x.shape[0], lambda: f"expected {x.shape[0]} indices, got {index.shape[0]}")
    torch._check((scale is not None) == (memory.dtype == torch.int8), lambda: "expected a scale with int8, else none")
    for t in (memory, index) if scale is None else (memory, index, scale):
        torch._check(t.device == x.device, lambda t=t: f"expected device {x.device}, got {t.device}")
    if scale is not None:
        torch._check(scale.dtype == torch.float32, lambda: f"expected a float32 scale, got {scale.dtype}")
        torch._check(scale.shape == memory.shape[:1], lambda: f"expected one scale a row, got {scale.shape}")
        torch._check(scale.is_contiguous(), lambda: "expected a dense scale")


def _krylov(basis: Tensor, **others: tuple[Tensor, tuple]) -> None:
    """A dense (B, m + 1, D) basis in float32 or float64, and others of its dtype and of given shapes."""
    wide = basis.dtype in (torch.float32, torch.float64)
    torch._check(wide, lambda: f"expected float32 or float64, got {basis.dtype}")
    torch._check(basis.is_contiguous(), lambda: "expected a dense tensor, which is updated in place")
    for name, (t, shape) in others.items():
        whole = name in ("status", "iterations")
        dtype = torch.int32 if whole else basis.dtype
        torch._check(tuple(t.shape) == tuple(shape), lambda n=name, t=t, s=shape: f"{n}: expected {s}, got {t.shape}")
        torch._check(t.dtype == dtype, lambda n=name, t=t, d=dtype: f"{n}: expected {d}, got {t.dtype}")
        torch._check(t.device == basis.device, lambda n=name, t=t: f"{n}: expected {basis.device}, got {t.device}")


def _probed(basis: Tensor, x: Tensor | None, probe: Tensor | None) -> None:
    torch._check((x is None) == (probe is None), lambda: "expected both of x and probe, or neither")
    if x is not None and probe is not None:
        rows, _, size = basis.shape
        _krylov(basis, x=(x, (rows, size)), probe=(probe, (rows, size)))
        torch._check(probe.is_contiguous(), lambda: "expected a dense probe, which is updated in place")


def _columns(column: int, count: int, m: int) -> None:
    torch._check(0 <= column < m, lambda: f"column must lie in 0..{m - 1}, got {column}")
    torch._check(1 <= count <= m - column, lambda: f"count must lie in 1..{m - column}, got {count}")


def _empty(like: Tensor, rows: int | torch.SymInt | None = None) -> Tensor:
    return like.new_empty((like.shape[0] if rows is None else rows, like.shape[1]))


def _per_sample(like: Tensor) -> Tensor:
    return like.new_empty((like.shape[0],), dtype=accumulate_dtype(like.dtype))


class _Fakes:
    """What each kernel allocates, without values."""

    @staticmethod
    def lmo(g: Tensor, p, eps, eps_tensor=None, x: Tensor | None = None, lower=0.0, upper=1.0) -> Tensor:
        _rows(g, *(() if x is None else (x,)))
        return _empty(g)

    @staticmethod
    def lp_norm(g: Tensor, p) -> Tensor:
        _rows(g)
        return _per_sample(g)

    @staticmethod
    def frank_wolfe_init(
        g0: Tensor, x: Tensor, p, eps, eps_tensor, init, h, central, lower, upper
    ) -> tuple[Tensor, Tensor]:
        _rows(g0, x)
        return _empty(g0), _empty(g0, 2 * g0.shape[0] if central else None)

    @staticmethod
    def frank_wolfe_step(
        g0: Tensor, g1: Tensor, v: Tensor, x: Tensor, p, eps, eps_tensor, gamma, h, central, last, lower, upper, in_box
    ) -> tuple[Tensor, Tensor, Tensor]:
        _rows(g0, v, x)
        rows = 2 * g0.shape[0] if central else g0.shape[0]
        torch._check(g1.shape[0] == rows, lambda: f"expected {rows} rows of probe gradients, got {g1.shape[0]}")
        return _empty(g0), _empty(g0, rows if central and not last else None), _per_sample(g0)

    @staticmethod
    def project(x_adv: Tensor, x: Tensor, p, eps, eps_tensor, lower, upper, exact) -> Tensor:
        _rows(x_adv, x)
        return _empty(x)

    @staticmethod
    def pgd_step(
        x_adv: Tensor, g: Tensor, x: Tensor, p, eps, eps_tensor, alpha, alpha_tensor, lower, upper, exact, k
    ) -> Tensor:
        _rows(x_adv, g, x)
        return _empty(x)

    @staticmethod
    def replay_start(memory: Tensor, scale, index: Tensor, x: Tensor, eps, eps_tensor, lower, upper) -> Tensor:
        _rows(x)
        _remembered(memory, scale, index, x)
        return _empty(x)

    @staticmethod
    def replay_step(
        memory: Tensor, scale, index: Tensor, g: Tensor, x: Tensor, p, eps, eps_tensor, gamma, lower, upper, in_box
    ) -> Tensor:
        _rows(g, x)
        _remembered(memory, scale, index, x)
        return _empty(x)

    @staticmethod
    def power_step(g0: Tensor, g1: Tensor, u: Tensor, x: Tensor, h) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _rows(g0, g1, u, x)
        return _empty(g0), _empty(g0), _per_sample(g0), _per_sample(g0)

    @staticmethod
    def cross_entropy_derivative(logits: Tensor, y: Tensor, sign) -> Tensor:
        _rows(logits)
        torch._check(y.dtype == torch.int64 and y.dim() == 1, lambda: "expected y (B,) of int64")
        torch._check(y.shape[0] == logits.shape[0], lambda: f"expected {logits.shape[0]} labels, got {y.shape[0]}")
        torch._check(y.device == logits.device, lambda: f"expected device {logits.device}, got {y.device}")
        return _empty(logits)

    @staticmethod
    def arnoldi_start(basis: Tensor, r: Tensor, x, probe, step) -> Tensor:
        rows, _, size = basis.shape
        _krylov(basis, r=(r, (rows, size)))
        _probed(basis, x, probe)
        return basis.new_empty((rows,))

    @staticmethod
    def arnoldi_step(
        basis: Tensor, hessenberg: Tensor, norms: Tensor, w: Tensor, status: Tensor, column, base, x, probe, step
    ) -> None:
        rows, blocks, size = basis.shape
        m = blocks - 1
        _probed(basis, x, probe)
        if base is not None:
            _krylov(basis, base=(base, (rows, size)))
        _krylov(
            basis,
            hessenberg=(hessenberg, (m, blocks, rows)),
            norms=(norms, (m, rows)),
            w=(w, (rows, size)),
            status=(status, (rows,)),
        )
        _columns(column, 1, m)

    @staticmethod
    def givens_step(
        triangle: Tensor, rotations, rhs, iterations, status, hessenberg, norms, target, column, count, rcond
    ) -> Tensor:
        m, _, rows = triangle.shape
        _krylov(
            triangle,
            triangle=(triangle, (m, m, rows)),
            rotations=(rotations, (m, 2, rows)),
            rhs=(rhs, (m + 1, rows)),
            iterations=(iterations, (rows,)),
            status=(status, (rows,)),
            hessenberg=(hessenberg, (m, m + 1, rows)),
            norms=(norms, (m, rows)),
            target=(target, (rows,)),
        )
        _columns(column, count, m)
        return triangle.new_empty((count, rows))

    @staticmethod
    def triangular_solve(triangle: Tensor, rhs: Tensor, iterations: Tensor) -> Tensor:
        m, _, rows = triangle.shape
        _krylov(triangle, triangle=(triangle, (m, m, rows)), rhs=(rhs, (m + 1, rows)), iterations=(iterations, (rows,)))
        return triangle.new_empty((m, rows))

    @staticmethod
    def krylov_combine(basis: Tensor, y: Tensor, x0: Tensor | None = None) -> Tensor:
        rows, blocks, size = basis.shape
        _krylov(basis, y=(y, (blocks - 1, rows)))
        if x0 is not None:
            _krylov(basis, x0=(x0, (rows, size)))
        return basis.new_empty((rows, size))


def define() -> None:
    """Register every op; once, when :mod:`soatfast.ops` is imported."""
    for name, schema in SCHEMAS.items():
        qualified = f"{NAMESPACE}::{name}"
        torch.library.define(qualified, schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(qualified, "CompositeExplicitAutograd", getattr(reference, name))
        torch.library.register_fake(qualified, getattr(_Fakes, name))
