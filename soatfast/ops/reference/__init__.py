"""The pure-PyTorch twin of every op: readable, float64-capable, and the specification of the kernels.

Every function has the signature of its schema in :mod:`soatfast.ops.contract`. Tensors are (B, D), one sample a row.
Three rules hold everywhere and are kept by every kernel:

* arithmetic is done in float32 (float64 for float64 inputs), storage keeps the input's dtype;
* a NaN gradient entry counts as 0 and an infinite one as the largest finite number (``torch.nan_to_num``);
  sign(0) = 0, and a sample whose gradient is all zero makes no step: never a NaN, and never a sample
  that changes another;
* norms are scaled by the row's maximum, so that entries of 1e-24 or 1e+30 neither underflow nor overflow.

The second is about gradients: the logits of :func:`cross_entropy_derivative` give NaN in their row where softmax does.
"""

from soatfast.ops.reference.krylov import arnoldi_start, arnoldi_step, givens_step, krylov_combine, triangular_solve
from soatfast.ops.reference.memory import replay_start, replay_step
from soatfast.ops.reference.streaming import (
    cross_entropy_derivative,
    frank_wolfe_init,
    frank_wolfe_step,
    lmo,
    lp_norm,
    pgd_step,
    power_step,
    project,
)

__all__ = [
    "arnoldi_start",
    "arnoldi_step",
    "cross_entropy_derivative",
    "frank_wolfe_init",
    "frank_wolfe_step",
    "givens_step",
    "krylov_combine",
    "lmo",
    "lp_norm",
    "pgd_step",
    "power_step",
    "project",
    "replay_start",
    "replay_step",
    "triangular_solve",
]
