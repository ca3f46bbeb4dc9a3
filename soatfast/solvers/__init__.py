"""Second-order solvers on input gradients: batched GMRES, Hessian products, quadratic models, curvature."""

from soatfast.solvers.curvature import top_eigenpair
from soatfast.solvers.ggn import gauss_newton
from soatfast.solvers.hessian import Scheme, hvp, unit_step
from soatfast.solvers.krylov import ArnoldiResult, GMRESResult, Status, arnoldi, gmres
from soatfast.solvers.quadratic import newton, trust_region
from soatfast.solvers.spaces import Difference

__all__ = [
    "ArnoldiResult",
    "Difference",
    "GMRESResult",
    "Scheme",
    "Status",
    "arnoldi",
    "gauss_newton",
    "gmres",
    "hvp",
    "newton",
    "top_eigenpair",
    "trust_region",
    "unit_step",
]
