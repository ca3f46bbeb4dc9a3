"""Cases and error budgets for the fused ops: one set for the C++ tests, the Triton tests and the benchmarks.

How to use it::

    for case in op_cases("lmo"):                       # op_cases("lmo", SMALL_SHAPES) for slow runs
        args = case.args(torch.bfloat16, "cpu")        # positional arguments of torch.ops.soatfast.lmo, made afresh
        outputs = call("lmo", torch.ops.soatfast.lmo, args)  # results, then the updated arguments; args stay
        check("lmo", torch.ops.soatfast.lmo, args)     # raises AssertionError with the worst element

* ``op_cases(op, shapes=SHAPES)`` is a list of :class:`Case`; ``case.id`` is a readable pytest id. The arguments are the
  raw op's (see ``soatfast.ops.contract.SCHEMAS``): (B, D) tensors, numbers, and per-sample eps or alpha tensors of
  shape (1,) or (B,) in the accumulation dtype. A case is deterministic: the same id gives the same numbers. Tensors
  stay below 1e5 elements. The last case of every parameter set is a batch of degenerate rows (:func:`degenerate_rows`).
* ``dtypes(op)`` are the dtypes that an op takes: the replay ops have no half types.
* ``check(op, kernel, args)`` calls the kernel, and the reference in the same dtype and in float64 on the CPU, and
  compares (:func:`compare` does the last part alone, on what :func:`call` gave)::

      |kernel - fp64| <= 2 (max_row |same-dtype reference - fp64| + eps(dtype) max_row |fp64|)

  (with eps(accumulate) max_row |x| in addition where the output is a point x + ...: its entries may cancel, as the
  terms of a Frank-Wolfe gap and of a Rayleigh quotient may, which are allowed the rounding of their terms).
  The row's largest reference error is used, not the element's own, because one element of the reference may be right
  by luck. Where the same-dtype reference is not finite the kernel must be not finite in the same places. Where the
  result jumps (the sign for p = inf, the arg max for p = 1 in a Frank-Wolfe step) an element may differ only inside
  the boundary band: where the fp64 model gradient is within rounding of 0, or of the largest.
  A memory's rows must hold what some u within the budget of the fp64 u' is stored as, so an int8 entry may be one step
  off only at a jump of the rounding; rows that are not in the index must keep their bits.
* ``LAYOUTS`` maps a name to a function that gives a tensor of the same values in another memory layout.
* ``DTYPES``, ``SHAPES``, ``SMALL_SHAPES``, ``GENERAL_P`` (lmo, lp_norm, frank_wolfe_*, replay_*), ``BALL_P`` (others).
"""

from soatfast.testing.budget import UPDATED, call, check, compare
from soatfast.testing.cases import (
    BALL_P,
    BOUNDS,
    DTYPES,
    EPS,
    GENERAL_P,
    LAYOUTS,
    OPS,
    SHAPES,
    SMALL_SHAPES,
    Case,
    degenerate_rows,
    dtypes,
    op_cases,
)

__all__ = [
    "BALL_P",
    "BOUNDS",
    "DTYPES",
    "EPS",
    "GENERAL_P",
    "LAYOUTS",
    "OPS",
    "SHAPES",
    "SMALL_SHAPES",
    "UPDATED",
    "Case",
    "call",
    "check",
    "compare",
    "degenerate_rows",
    "dtypes",
    "op_cases",
]
