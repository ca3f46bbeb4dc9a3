"""Fused operations on batches: everything that happens between two network passes, in one launch each.

Each takes tensors of any shape (B, ...), the one of logits (B, K), validates, views them as (B, D) and calls the
registered kernel: C++ on the CPU, Triton or CUDA C++ on a GPU, the pure-PyTorch reference anywhere else. A
channels_last batch is viewed, not copied, but for the replay ops: they copy it to the order of the memory's rows
(NCHW), and their result back. None of them is differentiable: an attack's perturbation carries no gradient.
"""

from soatfast.ops.dispatch import backend
from soatfast.ops.krylov import arnoldi_start, arnoldi_step, givens_step, krylov_combine, triangular_solve
from soatfast.ops.memory import replay_start, replay_step
from soatfast.ops.streaming import (
    Init,
    cross_entropy_derivative,
    frank_wolfe_init,
    frank_wolfe_step,
    lmo,
    lp_norm,
    pgd_step,
    pgd_stepper,
    power_step,
    project,
)

__all__ = [
    "Init",
    "arnoldi_start",
    "arnoldi_step",
    "backend",
    "cross_entropy_derivative",
    "frank_wolfe_init",
    "frank_wolfe_step",
    "givens_step",
    "krylov_combine",
    "lmo",
    "lp_norm",
    "pgd_step",
    "pgd_stepper",
    "power_step",
    "project",
    "replay_start",
    "replay_step",
    "triangular_solve",
]
